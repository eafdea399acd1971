"""The floor at sizes that the design states, and what changes it."""

from __future__ import annotations

import pytest

from ssdgen.spec.layer import Layer
from ssdgen.spec.layouts import MULTI_HEAD
from ssdgen.spec.roofline import floor

# 16384 tokens of the 2.7B layer in bf16 on an H200
SIZES = {"batch": 8, "seqlen": 2048, "nheads": 80, "headdim": 64, "dstate": 128, "ngroups": 1, "element_bytes": 2}
RATES = {"copy_tbs": 4.3, "bf16_tflops": 790.0}


@pytest.mark.parametrize(("chunk", "flops_us"), [(64, 61), (128, 68), (256, 82)])
def test_the_floor_of_a_large_layer(chunk: int, flops_us: float):
    found = floor(Layer(), **SIZES, **RATES, chunk=chunk)
    assert found.flops_us == pytest.approx(flops_us, abs=0.5)
    assert found.bytes == 16384 * (2 * 80 * 64 * 2 + 2 * 128 * 2 + 80 * 2)
    assert found.bytes_us == pytest.approx(80.6, abs=0.05)
    assert found.us == max(found.bytes_us, found.flops_us)
    assert found.binds == ("flops" if chunk == 256 else "bytes")


@pytest.mark.parametrize(("chunk", "flops_us"), [(64, 150), (128, 164), (256, 193)])
def test_the_floor_of_its_backward_pass(chunk: int, flops_us: float):
    found = floor(Layer(), **SIZES, **RATES, chunk=chunk, backward=True)
    assert found.flops_us == pytest.approx(flops_us, abs=0.6)
    assert found.bytes == 16384 * (3 * 80 * 64 * 2 + 4 * 128 * 2 + 2 * 80 * 2)
    assert found.bytes_us == pytest.approx(122, abs=0.5) and found.binds == "flops"
    states = floor(Layer(), **SIZES, **RATES, chunk=chunk, backward=True, final_states=True)
    assert states.bytes - found.bytes == 8 * 80 * 64 * 128 * 4


def test_final_states_of_eight_sequences():
    found = floor(Layer(), **SIZES, **RATES, chunk=64, final_states=True)
    assert found.bytes_us == pytest.approx(85.5, abs=0.05)


def test_every_option_and_layout_moves_it():
    plain = floor(Layer(), **SIZES, **RATES, chunk=64)
    assert floor(Layer(gate=True), **SIZES, **RATES, chunk=64).bytes > 1.4 * plain.bytes
    per_head = floor(Layer(layout=MULTI_HEAD), **SIZES, **RATES, chunk=64)
    assert per_head.bytes > 2.5 * plain.bytes and per_head.flops > plain.flops
    assert floor(Layer(), **{**SIZES, "batch": 16}, **RATES, chunk=64).us == pytest.approx(2 * plain.us)


@pytest.mark.parametrize("change", [{"headdim": 0}, {"copy_tbs": 0.0}, {"chunk": -1}])
def test_sizes_and_rates_must_be_positive(change: dict):
    (name,) = change
    with pytest.raises(ValueError, match=f"{name} is .*every size and rate must be positive"):
        floor(Layer(), **{**SIZES, **RATES, "chunk": 64, **change})
