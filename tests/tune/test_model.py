"""The model of compiled code: it must order what is known to be better and worse."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ssdgen import gpus
from ssdgen.plan.problem import Problem
from ssdgen.tune import model, work
from ssdgen.tune.compile import Compiled
from ssdgen.tune.resources import Resources

H200 = gpus.find("h200")
PROBLEM = Problem(8, 2048, 80, 64, 128, 1)
# one CTA per head of the 2.7B shape, 32 chunks of 64
WALK = work.Work(640, 32, 4, 3.5e8, 1e9, 640 * 32 * 3.67e6, 640 * 32 * 4224.0, 64)


@dataclass(frozen=True)
class Launch:
    kernel: Any
    grid: tuple[int, ...]
    args: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    maxnreg: int = 0


def launch(name: str, *grid: int, **args: Any) -> Launch:
    return Launch(SimpleNamespace(__name__=name), grid, args)


def code(registers: int = 200, spilled: int = 0, shared: int = 60_000, num_warps: int = 4) -> Compiled:
    return Compiled("single_pass", "", Resources(registers, spilled, shared, num_warps))


def us(counted: work.Work = WALK, made: Compiled | None = None, dtype: str = "bfloat16", stages: int = 3) -> float:
    return model.launch_time(counted, made or code(), H200, dtype, stages).us


def test_near_what_a_prototype_took_on_an_h200() -> None:
    assert 230 < us() < 340  # measured: 287
    wide = replace(WALK, steps=16, flops=640 * 16 * 10.5e6, exps=640 * 16 * 16640.0, rows=128)
    assert 320 < us(wide, code(240, num_warps=8)) < 440  # measured: 380


def test_never_below_the_floor() -> None:
    estimate = model.launch_time(WALK, code(), H200, "bfloat16", 3)
    assert estimate.memory_us == pytest.approx(3.5e8 / 4.27e6, rel=1e-6)
    assert estimate.us > max(estimate.memory_us, WALK.flops / (H200.bf16_tflops * 1e6))
    assert us(replace(WALK, memory_bytes=1e10)) == pytest.approx(model.LAUNCH_US + 1e10 / 4.27e6)


def test_what_is_worse_takes_longer() -> None:
    assert us(made=code(spilled=2000)) > 2 * us()
    assert us(made=code(registers=255, shared=150_000)) > us()
    assert us(stages=1) > us()
    assert us(dtype="float32") > us()
    assert us(replace(WALK, rows=32)) > us()
    assert us(replace(WALK, ctas=20, flops=WALK.flops / 32, exps=WALK.exps / 32)) > us() / 8


def test_work_of_a_single_pass() -> None:
    x = torch.empty(8, 2048, 80, 64, dtype=torch.bfloat16, device="meta")
    B = torch.empty(8, 2048, 1, 128, dtype=torch.bfloat16, device="meta")
    config = {"schedule": "single_pass", "chunk": 64, "kernels": {"single_pass": {"heads": 2, "block_p": 64}}}
    descriptor = SimpleNamespace(base=x)
    counted = work.of_launch(
        launch("single_pass_2heads_tma", 40, 1, 8, x_desc=descriptor, B_ptr=B, seqlen=2048, D_ptr=None), config, PROBLEM
    )
    assert (counted.ctas, counted.steps, counted.rows) == (320, 32, 64)
    assert counted.memory_bytes == 2 * (x.numel() + B.numel())
    # C B^T once for both heads, and three more products each
    assert counted.flops == 320 * 32 * (2 * 64 * 64 * 128 + 2 * (2 * 64 * 64 * 64 + 2 * 2 * 64 * 128 * 64))
    one = work.of_launch(launch("single_pass", 80, 1, 8), {**config, "kernels": {"single_pass": {}}}, PROBLEM)
    assert one.flops > counted.flops


def test_work_of_segments_and_small_kernels() -> None:
    config = {"schedule": "segments", "chunk": 64, "segment": 512, "kernels": {"segment_state": {}, "single_pass": {}}}
    assert work.of_launch(launch("segment_state", 80, 4, 8), config, PROBLEM).steps == 8
    assert work.of_launch(launch("state_passing", 80, 4, 8), config, PROBLEM).steps == 4
    assert work.of_launch(launch("dt_cumsum", 80, 4, 8), config, PROBLEM).flops == 0
    split = {"schedule": "split", "chunk": 256, "kernels": {"segment_state": {"heads": 2}}}
    assert work.of_launch(launch("segment_state", 40, 8, 8), split, PROBLEM).steps == 1
    assert work.of_launch(launch("state_passing", 80, 4, 8), split, PROBLEM).steps == 8
    with pytest.raises(ValueError, match="known: dt_cumsum"):
        work.of_launch(launch("attention", 1), config, PROBLEM)


def test_work_of_the_backward_pass() -> None:
    config = {"schedule": "chunks", "chunk": 64, "parts": 4, "state_dtype": "bfloat16", "kernels": {}}
    whole = work.of_launch(launch("chunk_gradients_2consumers", 1, 32, 8), {**config, "parts": 1}, PROBLEM)
    shared = work.of_launch(launch("chunk_gradients_2consumers", 4, 32, 8), config, PROBLEM)
    assert (whole.steps, shared.steps) == (80, 20) and whole.flops == shared.flops
    # of each head of each chunk: four products with a state and two of scores
    assert whole.flops == 8 * 32 * 80 * 2 * (4 * 64 * 128 * 64 + 2 * 64 * 64 * 64)
    consumers = {**config, "kernels": {"chunk_states": {"consumers": 2}}}
    one = work.of_launch(launch("chunk_states", 80, 1, 8), config, PROBLEM)
    two = work.of_launch(launch("chunk_states_2consumers", 40, 1, 8), consumers, PROBLEM)
    assert one.steps == two.steps == 32 and one.flops == two.flops
    segments = {**config, "segment": 512}
    assert work.of_launch(launch("chunk_adjoints", 80, 4, 8), segments, PROBLEM).steps == 8
    for passing in ("state_passing", "adjoint_passing"):
        assert work.of_launch(launch(passing, 16, 80, 8), segments, PROBLEM).steps == 4
    walk = {**config, "schedule": "walk"}
    assert work.of_launch(launch("reverse_walk_2n", 80, 1, 8), walk, PROBLEM).steps == 32
    assert work.of_launch(launch("group_gradients", 1, 32, 8), walk, PROBLEM).steps == 80
    assert work.of_launch(launch("dt_gradients", 10, 32, 8), walk, PROBLEM).flops == 0
    states = torch.empty(8, 32, 80, 64, 128, dtype=torch.bfloat16, device="meta")
    moved = work.of_launch(launch("chunk_states", 80, 1, 8, states_ptr=states), walk, PROBLEM).memory_bytes
    assert moved == 2 * states.numel()


def test_segment_states_are_counted_in_both_passes() -> None:
    of_forward = {"schedule": "segments", "chunk": 64, "segment": 512, "kernels": {"segment_state": {"block_p": 64}}}
    of_backward = {"schedule": "walk", "chunk": 64, "segment": 512, "kernels": {"segment_state": {"block_p": 64}}}
    made = launch("segment_state", 80, 4, 8)
    assert work.of_launch(made, of_forward, PROBLEM) == work.of_launch(made, of_backward, PROBLEM)
