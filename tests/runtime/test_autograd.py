"""Gradients of the public call and its operators: right, in float64 and fp32, and what PyTorch asks of an operator."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ssdgen.runtime import interface, paths, select
from ssdgen.runtime.errors import OptionError, SsdWarning
from ssdgen.runtime.sequences import seq_idx_of
from tests.parity import gradients
from tests.parity.cases import BASE, PACKED, SHAPES, TOGETHER, Call, Case, draw

scan = interface.mamba_chunk_scan_combined
SIZES = [case for case in SHAPES if case.seqlen * case.headdim * case.dstate <= 65 * 64 * 96]
WITH_OPTIONS = [
    Case(options=options) for options in [("z",), ("D_headdim",), ("dt_limit",), ("state_bf16",), *TOGETHER]
]
PACKS = [Case(batch=1, options=options) for options in PACKED]
EVERYTHING = Case(options=("D", "z", "dt_bias", "dt_softplus", "initial_states", "seq_idx"))


def verify(call: Call, adjoints: gradients.Adjoints, *dtypes: str, function: Callable[..., Any] = scan) -> None:
    _, found = gradients.run(function, call, adjoints)
    gradients.check(call, found, gradients.exact(call, adjoints), *dtypes)


@pytest.mark.parametrize("case", [*SIZES, *WITH_OPTIONS, *PACKS], ids=str)
def test_every_gradient_equals_float64(case: Case, operator: None) -> None:
    """y and the final states are used; of packed rows also the state of each sequence."""
    call = draw(case)
    dtypes = ["float32", "bfloat16"] if case.has("state_bf16") else ["float32"]
    verify(call, gradients.draw_adjoints(call), *dtypes)
    if case.has("cu_seqlens"):
        verify(call, gradients.draw_adjoints(call, varlen=True), *dtypes)


@pytest.mark.parametrize("case", [BASE, EVERYTHING, *PACKS[:3]], ids=str)
@pytest.mark.parametrize("compiled", [False, True])
def test_in_float64_they_agree_to_the_last_digits(case: Case, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interface, "is_compiling", lambda: compiled)
    call = gradients.double(draw(case))
    adjoints = gradients.draw_adjoints(call)
    _, found = gradients.run(scan, call, adjoints)
    for name, wanted in gradients.exact(call, adjoints).items():
        torch.testing.assert_close(found[name], torch.from_numpy(wanted), rtol=1e-9, atol=1e-9)


def test_only_the_final_states_are_used(path: str) -> None:
    call = draw(EVERYTHING)
    some = gradients.draw_adjoints(call)
    only = gradients.Adjoints(None, some.d_final)
    _, found = gradients.run(scan, call, only)
    gradients.check(call, found, gradients.exact(call, only), "float32")
    assert found["z"].eq(0).all() and found["D"].eq(0).all()


@pytest.mark.parametrize("kind", ["expanded", "turned", "sliced"])
def test_gradients_of_y_with_any_strides(kind: str, kernels: list) -> None:
    call = draw(EVERYTHING)
    shape = call.operands["x"].shape
    d_y = {
        "expanded": lambda: torch.ones(()).expand(shape),
        "turned": lambda: torch.randn(shape[::-1]).permute(3, 2, 1, 0),
        "sliced": lambda: torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2],
    }[kind]()
    verify(call, gradients.Adjoints(d_y), "float32")
    got = kernels[-1][1].d_y
    assert got.stride(-1) == 1 and 0 not in got.stride() and torch.equal(got, d_y)


@pytest.mark.parametrize("wanted", [("x",), ("A", "dt_bias"), ("initial_states",), ("D", "z", "dt")])
def test_only_what_is_needed_is_computed(wanted: tuple[str, ...], kernels: list) -> None:
    call = draw(EVERYTHING)
    tensors = {**call.operands, **call.options}
    for name in wanted:
        tensors[name] = tensors[name].detach().requires_grad_()
    y = scan(**tensors, chunk_size=64)
    y.sum().backward()
    assert [kind for kind, _ in kernels] == ["forward", "backward"]
    assert kernels[1][1].needs == frozenset(wanted)
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            assert (tensor.grad is not None) == (name in wanted)


@pytest.mark.parametrize("case", PACKS, ids=str)
def test_packed_rows_take_the_kernels_where_seq_idx_says_the_same(case: Case, kernels: list) -> None:
    call = draw(case)
    many = case.has("initial_states")
    verify(call, gradients.draw_adjoints(call), "bfloat16" if case.has("state_bf16") else "float32")
    assert [kind for kind, _ in kernels] == ["forward", *([] if many else ["backward"])]
    assert many or (kernels[0][1].cu_seqlens is None and kernels[1][1].seq_idx.dtype is torch.int32)
    kernels.clear()
    verify(call, gradients.draw_adjoints(call, varlen=True), "bfloat16" if case.has("state_bf16") else "float32")
    assert [kind for kind, _ in kernels] == ["forward"]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_cuts_as_seq_idx(dtype: torch.dtype) -> None:
    found = seq_idx_of(torch.tensor([0, 1, 4, 6], dtype=dtype), 6)
    assert found.tolist() == [[0, 1, 1, 1, 2, 2]] and found.dtype is torch.int32


def test_each_pass_runs_with_a_config_of_its_own(kernels: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked up once, as that of the forward pass is."""
    looked_up = []

    def choose(problem: Any, gpu: Any, direction: str = "forward") -> select.Choice:
        looked_up.append(direction)
        return select.Choice({"of": direction}, "a test")

    monkeypatch.setattr(select, "choose", choose)
    monkeypatch.setattr(select, "_configs", {})
    call = draw(BASE)
    for _ in range(2):
        verify(call, gradients.draw_adjoints(call), "float32")
    assert [(kind, given.config["of"]) for kind, given in kernels] == [
        ("forward", "forward"),
        ("backward", "backward"),
    ] * 2
    assert looked_up == ["forward", "backward"]


@pytest.mark.parametrize("fits", ["the default of any GPU", "the smallest"])
def test_a_config_that_does_not_fit_is_replaced(fits: str, kernels: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the default that goes by no architecture, which is not far behind, before the smallest, which is slow."""

    class OutOfResources(Exception):
        pass

    launcher = paths.backward_launcher()
    works = launcher.backward
    defaults = sys.modules["ssdgen.runtime.backward_defaults"]
    plain = {"chunk": 32}
    monkeypatch.setattr(defaults, "default_backward", lambda problem, sms, arch: {"chunk": 64} if arch else plain)
    small = plain if fits == "the default of any GPU" else launcher.MINIMAL_BACKWARD

    def fails(config, *operands, **options):
        if config != small:
            raise OutOfResources("shared memory")
        return works(config, *operands, **options)

    monkeypatch.setattr(launcher, "backward", fails)
    call = draw(BASE)
    with pytest.warns(UserWarning, match="does not fit"):
        verify(call, gradients.draw_adjoints(call), "float32")
    verify(call, gradients.draw_adjoints(call), "float32")
    configs = [given.config for kind, given in kernels if kind == "backward"]
    assert configs == [small] * 2


def test_sizes_without_a_kernel_have_gradients_all_the_same(kernels: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning, and PyTorch's backward pass from then on."""

    def fails(config, *operands, **options):
        raise OptionError("headdim is 1000; the backward kernels take at most 512")

    monkeypatch.setattr(paths.backward_launcher(), "backward", fails)
    call = draw(BASE)
    with pytest.warns(SsdWarning, match="no backward kernel takes .*headdim is 1000"):
        verify(call, gradients.draw_adjoints(call), "float32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verify(call, gradients.draw_adjoints(call), "float32")


def test_the_default_config_is_one_object(kernels: list) -> None:
    """Launchers remember what they compiled by the identity of the config."""
    call = draw(BASE)
    for _ in range(2):
        gradients.run(scan, call, gradients.draw_adjoints(call))
    first, second = (given.config for kind, given in kernels if kind == "backward")
    assert first is second


def test_no_rows(path: str) -> None:
    call = draw(BASE)
    empty = {name: (t if name == "A" else t[:0]).requires_grad_() for name, t in call.operands.items()}
    y, final = scan(**empty, chunk_size=64, return_final_states=True)
    (y.sum() + final.sum()).backward()
    assert all(t.grad.shape == t.shape for t in empty.values()) and empty["A"].grad.eq(0).all()


@pytest.mark.parametrize("compiled", [False, True])
def test_two_halves_are_the_whole(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state handed over, and its gradient handed back: outputs and every gradient of one sequence."""
    monkeypatch.setattr(interface, "is_compiling", lambda: compiled)
    call = gradients.double(draw(Case(options=("D", "z", "dt_bias", "dt_softplus", "initial_states"))))
    adjoints = gradients.draw_adjoints(call)
    results, wanted = gradients.run(scan, call, adjoints)
    again, found = gradients.run(gradients.in_two(scan, 33), call, adjoints)
    torch.testing.assert_close(again, results)
    torch.testing.assert_close(found, wanted)


def test_truncated_backpropagation(path: str) -> None:
    """With the state detached, each half has the gradients of a sequence of its own."""
    call = gradients.double(draw(Case(options=("D", "dt_bias", "dt_softplus"))))
    adjoints = gradients.draw_adjoints(call, final=False)
    _, found = gradients.run(gradients.in_two(scan, 33, detach=True), call, adjoints)
    total: dict[str, Any] = {}
    state = None
    for part in (slice(0, 33), slice(33, None)):
        half = Call({k: t if k == "A" else t[:, part] for k, t in call.operands.items()}, dict(call.options))
        if state is not None:
            half.options["initial_states"] = state
        wanted = gradients.exact(half, gradients.Adjoints(adjoints.d_y[:, part]))
        state = scan(**half.operands, **half.options, chunk_size=64, return_final_states=True)[1].detach()
        for name, value in wanted.items():
            total.setdefault(name, []).append(torch.from_numpy(value))
    for name in ("x", "dt", "B", "C"):
        torch.testing.assert_close(found[name], torch.cat(total[name], dim=1))
    for name in ("A", "D", "dt_bias"):
        torch.testing.assert_close(found[name], sum(total[name]))
