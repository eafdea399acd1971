"""Training by kernels: every gradient equals float64, interpreted and on a GPU; and what only a GPU can show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import ssdgen.mamba2_ops as ops
from ssdgen.tune.gate import poisoned_memory
from tests.parity import gradients, settings, tolerances
from tests.parity.cases import BASE, DSTATES, HEADDIMS, HEADS, PACKED, ROUNDED, SEQLENS, TOGETHER, Call, Case, draw

scan = ops.mamba_chunk_scan_combined
KERNELS = ("interpreter", "gpu")
ON_KERNELS = [pytest.param(name, marks=settings.MARKS[name]) for name in KERNELS]
OPTIONS = [
    *(Case(options=options) for options in (("D",), ("D_headdim",), ("z",), ("dt_bias",), ("dt_limit",))),
    *(Case(options=options) for options in (("seq_idx",), ("initial_states",), ("strided",), *TOGETHER)),
    *(Case(batch=1, options=options) for options in PACKED),
]
ALL = [BASE, *SEQLENS, *HEADDIMS, *DSTATES, *HEADS, *OPTIONS, *ROUNDED]
# a model's layer: 8 heads of 64, 128 states, long enough for several segments
MODEL = Case(2, 1030, 8, 64, 128, 1, "bfloat16", ("D", "dt_bias", "dt_softplus"))
FULL = Case(2, 300, 4, 64, 128, 2, "bfloat16", TOGETHER[-1])


def on_gpu(case: Case) -> tuple[Call, gradients.Adjoints]:
    call = draw(case)
    return call.on("cuda"), gradients.draw_adjoints(call)


def step(call: Call, adjoints: gradients.Adjoints, function: Callable[..., Any] = scan) -> Callable[[], list]:
    """A forward and backward pass on leaves of its own: y, the final states, and the gradients of all leaves."""
    leaf = gradients.leaves(call)
    tensors = {**leaf.operands, **leaf.options}
    wanted = [t for t in tensors.values() if isinstance(t, torch.Tensor) and t.requires_grad]
    given = [t.to(call.operands["x"].device) for t in (adjoints.d_y, adjoints.d_final) if t is not None]

    def once() -> list[torch.Tensor]:
        results = list(function(**tensors, chunk_size=64, return_final_states=True))
        return [*(t.detach() for t in results), *torch.autograd.grad(results, wanted, given)]

    return once


@pytest.mark.parametrize(("name", "case"), settings.parameters(ALL, KERNELS))
def test_every_gradient_equals_float64(name: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = settings.enter(name, monkeypatch)
    call = draw(case)
    adjoints = gradients.draw_adjoints(call)
    with poisoned_memory():
        _, found = gradients.run(setting.call, call.on(setting.device), adjoints)
    dtypes = [case.dtype, *["bfloat16"] * case.has("state_bf16")]
    wanted = gradients.exact(call, adjoints)
    gradients.check(call, found, wanted, *dtypes, tensor_cores=name == "gpu", adjoints=adjoints)


@pytest.mark.parametrize("name", ON_KERNELS)
@pytest.mark.parametrize("A", [-1e-4, -100.0, 3.0])
@pytest.mark.parametrize("size", [0.0, 1e-8, 20.0, 100.0, "mixed"])
def test_extreme_steps_and_rates(name: str, size: float | str, A: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decays that underflow, differences that cancel, rates that would make a state grow: every gradient is finite."""
    setting = settings.enter(name, monkeypatch)
    call = draw(Case(batch=1, seqlen=130, nheads=2, options=("D",)))
    if size == "mixed":
        pick = torch.randint(4, call.operands["dt"].shape, generator=torch.Generator().manual_seed(1))
        call.operands["dt"] = torch.tensor([0.0, 1e-8, 20.0, 100.0])[pick]
    else:
        call.operands["dt"] = torch.full_like(call.operands["dt"], float(size))
    call.operands["A"] = torch.full((2,), A)
    adjoints = gradients.draw_adjoints(call)
    _, found = gradients.run(setting.call, call.on(setting.device), adjoints)
    for operand, gradient in found.items():
        assert torch.isfinite(gradient).all(), f"d_{operand}"
    exact = gradients.exact(call, adjoints)
    row = tolerances.limit("float32", tensor_cores=name == "gpu")
    for operand in ("x", "B", "C", "D"):
        allowed = tolerances.Limit(gradients.SLACK * row.relative, gradients.SLACK * row.largest)
        tolerances.check(f"d_{operand}", found[operand], exact[operand], allowed)


@pytest.mark.parametrize("name", ON_KERNELS)
def test_only_the_final_states_are_used(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = settings.enter(name, monkeypatch)
    call = draw(Case(options=("D", "initial_states")))
    adjoints = gradients.Adjoints(None, gradients.draw_adjoints(call).d_final)
    _, found = gradients.run(setting.call, call.on(setting.device), adjoints)
    gradients.check(call, found, gradients.exact(call, adjoints), "float32", tensor_cores=name == "gpu")


@pytest.mark.parametrize("name", ON_KERNELS)
def test_two_halves_are_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state handed over, and its gradient handed back, give the gradients of one whole sequence."""
    setting = settings.enter(name, monkeypatch)
    call = draw(Case(options=("D", "z", "dt_bias", "dt_softplus", "initial_states")))
    adjoints = gradients.draw_adjoints(call)
    _, found = gradients.run(gradients.in_two(setting.call, 33), call.on(setting.device), adjoints)
    gradients.check(call, found, gradients.exact(call, adjoints), "float32", tensor_cores=name == "gpu")


@pytest.mark.gpu
@pytest.mark.parametrize("case", [MODEL, FULL], ids=str)
def test_same_bits_every_time(case: Case) -> None:
    once = step(*on_gpu(case))
    first = once()
    for _ in range(10):
        assert all(torch.equal(*pair) for pair in zip(once(), first, strict=True))
    torch.use_deterministic_algorithms(True)
    try:
        assert all(torch.equal(*pair) for pair in zip(once(), first, strict=True))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
@pytest.mark.parametrize("case", [MODEL, FULL], ids=str)
def test_a_graph_captures_the_whole_step(case: Case) -> None:
    replays_a_step(case)


def replays_a_step(case: Case) -> None:
    """Replayed after the operands have changed, a captured step computes the gradients of the new ones."""
    call, adjoints = on_gpu(case)
    once = step(call, adjoints)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            wanted = once()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = once()
    for tensor in found:
        tensor.fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))
    # the leaves share their memory with the call
    call.operands["x"].neg_()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(*pair) for pair in zip(found, once(), strict=True))
    assert not torch.equal(found[0], wanted[0])


@pytest.mark.gpu
@pytest.mark.parametrize("options", [("D", "seq_idx", "initial_states"), ("cu_seqlens", "D", "one_state")], ids=str)
def test_nothing_waits_for_the_device(options: tuple[str, ...]) -> None:
    once = step(*on_gpu(Case(1, 300, 4, 64, 128, 1, "bfloat16", options)))
    once()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        once()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_by_inductor_as_one_graph(mode: str) -> None:
    torch._dynamo.reset()
    call, adjoints = on_gpu(FULL)
    wanted = step(call, adjoints)()
    compiled = torch.compile(scan, fullgraph=True, mode=mode)
    once = step(call, adjoints, compiled)
    for _ in range(3):
        torch.compiler.cudagraph_mark_step_begin()
        found = [t.clone() for t in once()]
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("case", [FULL, Case(1, 65, 3, 16, 16, 1, "float32", ("cu_seqlens",))], ids=str)
def test_opcheck(case: Case) -> None:
    """Schemas, fake implementations and gradients of the operators, with kernels behind them."""
    call = gradients.leaves(draw(case).on("cuda"))
    given = {**call.operands, **call.options}
    tensors = [given.get(name) for name in (*ops.autograd.DIFFERENTIABLE, "seq_idx", "cu_seqlens")]
    arguments = (*tensors, bool(given.get("dt_softplus")), *given.get("dt_limit", (0.0, float("inf"))))
    torch.library.opcheck(ops.autograd.chunk_scan, (*arguments, 64, True, None))
    y, states = (t.detach() for t in ops.autograd.chunk_scan(*arguments, 64, True, None))
    plain = [t.detach() if isinstance(t, torch.Tensor) else t for t in arguments]
    needs = [t is not None for t in tensors[: len(ops.autograd.DIFFERENTIABLE)]]
    torch.library.opcheck(ops.autograd.chunk_scan_backward, (y, states, *plain, needs))


@pytest.mark.gpu
def test_autocast() -> None:
    """fp32 operands run in bf16; the gradients come back in fp32."""
    call = draw(Case(2, 130, 4, 64, 64, 1, "float32", ("D", "z", "dt_bias", "dt_softplus")))
    adjoints = gradients.draw_adjoints(call)
    lowered = gradients.Adjoints(adjoints.d_y.bfloat16(), adjoints.d_final)  # type: ignore[union-attr]

    def run(**given: Any) -> Any:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return scan(**given)

    results, found = gradients.run(run, call.on("cuda"), lowered)
    assert results["y"].dtype is torch.bfloat16
    gradients.check(call, found, gradients.exact(call, lowered), "bfloat16", adjoints=lowered)


@pytest.mark.gpu
def test_the_operands_alone_are_kept() -> None:
    """Between the passes a call holds its results and no state of a chunk."""
    leaf = gradients.leaves(on_gpu(MODEL)[0])
    scan(**leaf.operands, **leaf.options, chunk_size=64)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    y = scan(**leaf.operands, **leaf.options, chunk_size=64)
    torch.cuda.synchronize()
    # the allocator rounds to 512 bytes, and the empty states are a tensor too
    assert torch.cuda.memory_allocated() - before <= y.numel() * y.element_size() + 2048


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second GPU")
def test_another_device_than_the_current_one() -> None:
    call, adjoints = draw(FULL), gradients.draw_adjoints(draw(FULL))
    _, found = gradients.run(scan, call.on("cuda:1"), adjoints)
    assert torch.cuda.current_device() == 0
    gradients.check(call, found, gradients.exact(call, adjoints), "bfloat16", adjoints=adjoints)


@pytest.mark.parametrize("name", ON_KERNELS)
def test_results_of_the_operator_share_no_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels add up what is alike in one tensor; Inductor takes no operator of which a result aliases another."""
    setting = settings.enter(name, monkeypatch)
    case = MODEL if name == "gpu" else Case(1, 20, 2, 16, 16, 1, "float32", ("D", "dt_bias", "dt_softplus"))
    call = draw(case).on(setting.device)
    given = {**call.operands, **call.options}
    tensors = [given.get(operand) for operand in (*ops.autograd.DIFFERENTIABLE, "seq_idx", "cu_seqlens")]
    needs = [t is not None for t in tensors[: len(ops.autograd.DIFFERENTIABLE)]]
    d_y = torch.ones_like(given["x"])
    found = ops.autograd.chunk_scan_backward(d_y, None, *tensors, True, 0.0, float("inf"), needs)
    assert len({gradient.untyped_storage().data_ptr() for gradient in found}) == len(found) == sum(needs)
