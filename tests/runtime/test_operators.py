"""What PyTorch asks of an operator with gradients: tracing, autocast, checkpoints, saved tensors, errors."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from ssdgen.runtime import autograd, interface
from ssdgen.runtime.errors import DoubleBackwardError, GradientError, OptionError, ShapeError
from tests.parity import gradients
from tests.parity.cases import BASE, PACKED, Case, draw, layer

scan = interface.mamba_chunk_scan_combined
PACKS = [Case(batch=1, options=options) for options in PACKED]
EVERYTHING = Case(options=("D", "z", "dt_bias", "dt_softplus", "initial_states", "seq_idx"))


def arguments(case: Case, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    """Of the operator, in its order."""
    call = gradients.leaves(draw(case))
    given = {**call.operands, **call.options}
    tensors = [given.get(name) for name in (*autograd.DIFFERENTIABLE, "seq_idx", "cu_seqlens")]
    return (*tensors, layer(case).dt_softplus, 0.0, float("inf"), 64, True, None)


@pytest.mark.parametrize("case", [Case(seqlen=9), EVERYTHING, PACKS[1]], ids=str)
def test_opcheck(case: Case) -> None:
    given = arguments(case)
    torch.library.opcheck(autograd.chunk_scan, given)
    y, states = (t.detach() for t in autograd.chunk_scan(*given))
    operands = [t.detach() if isinstance(t, torch.Tensor) else t for t in given]
    needs = [t is not None for t in operands[: len(autograd.DIFFERENTIABLE)]]
    torch.library.opcheck(autograd.chunk_scan_backward, (y, states, *operands[:14], needs))
    torch.library.opcheck(autograd.chunk_scan_backward, (None, states, *operands[:14], needs))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("case", [EVERYTHING, PACKS[2]], ids=str)
def test_compiled_whole(case: Case, dynamic: bool) -> None:
    """One graph forward, one backward; the launch path is not traced."""
    torch._dynamo.reset()

    def step(**given):
        # something before and after, so that the operators stand inside of a graph
        y, final = scan(**{**given, "x": 2 * given["x"]})
        return y.sin(), final

    call = draw(case)
    adjoints = gradients.draw_adjoints(call)
    results, wanted = gradients.run(step, call, adjoints)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    again, found = gradients.run(compiled, call, adjoints)
    torch.testing.assert_close(again, results)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        plain = compiled(**call.operands, **call.options, chunk_size=64, return_final_states=True)
    torch.testing.assert_close(plain[0], results["y"])


def test_compiled_with_inductor() -> None:
    torch._dynamo.reset()
    call = draw(Case(seqlen=9))
    adjoints = gradients.draw_adjoints(call)
    _, wanted = gradients.run(scan, call, adjoints)
    _, found = gradients.run(torch.compile(scan, fullgraph=True), call, adjoints)
    torch.testing.assert_close(found, wanted)


def test_autocast_inside_of_a_graph_and_a_checkpoint() -> None:
    torch._dynamo.reset()

    def step(x, **given):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return checkpoint(lambda x: scan(x, **given), x, use_reentrant=False)

    call = draw(Case(seqlen=9, options=("D", "z", "dt_bias")))
    drawn = gradients.draw_adjoints(call)
    adjoints = gradients.Adjoints(drawn.d_y.bfloat16(), drawn.d_final)
    results, wanted = gradients.run(step, call, adjoints)
    again, found = gradients.run(torch.compile(step, fullgraph=True, backend="aot_eager"), call, adjoints)
    assert again["y"].dtype is torch.bfloat16
    torch.testing.assert_close((again, found), (results, wanted))


def test_mistakes_are_found_in_what_is_compiled(path: str) -> None:
    call = draw(BASE)
    with pytest.raises(ShapeError, match="dt has shape"):
        scan(**{**call.operands, "dt": call.operands["dt"][:, 1:]}, chunk_size=64)
    with pytest.raises(OptionError, match="needs cu_seqlens"):
        scan(**call.operands, chunk_size=64, return_varlen_states=True)


@pytest.mark.parametrize("compiled", [False, True])
def test_autocast(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """x, B, C and z in autocast's dtype; step sizes, rates, states and all sums as they were."""
    monkeypatch.setattr(interface, "is_compiling", lambda: compiled)
    call = draw(EVERYTHING)
    adjoints = gradients.draw_adjoints(call)
    low = {name: t.bfloat16() if name in "xBCz" else t for name, t in {**call.operands, **call.options}.items()
           if isinstance(t, torch.Tensor)}  # fmt: skip
    exact = scan(**low, dt_softplus=True, chunk_size=64, return_final_states=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        leaf = gradients.leaves(call)
        y, final = scan(**leaf.operands, **leaf.options, chunk_size=64, return_final_states=True)
        assert torch.is_autocast_enabled("cpu")
    assert y.dtype is torch.bfloat16 and final.dtype is torch.float32
    torch.testing.assert_close((y, final), exact, rtol=0, atol=0)
    torch.autograd.backward([y, final], [adjoints.d_y.bfloat16(), adjoints.d_final])
    found = {
        name: t.grad for name, t in {**leaf.operands, **leaf.options}.items() if getattr(t, "grad", None) is not None
    }
    gradients.check(call, found, gradients.exact(call, adjoints), "bfloat16")
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        wide = gradients.double(call)
        assert scan(**wide.operands, **wide.options, chunk_size=64).dtype is torch.float64


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool, path: str) -> None:
    call = draw(EVERYTHING)
    adjoints = gradients.draw_adjoints(call)
    _, wanted = gradients.run(scan, call, adjoints)

    def checkpointed(x, **rest):
        return checkpoint(lambda x: scan(x, **rest), x, use_reentrant=reentrant)

    _, found = gradients.run(checkpointed, call, adjoints)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_parameters_that_are_views_of_one_buffer(path: str) -> None:
    """As sharded training keeps them: gradients arrive in the buffer."""
    call = draw(EVERYTHING)
    adjoints = gradients.draw_adjoints(call)
    names = ("A", "D", "dt_bias")
    given = {**call.operands, **call.options}
    flat = torch.nn.Parameter(torch.cat([given[name] for name in names]))
    views = dict(zip(names, flat.split([3, 3, 3]), strict=True))
    y, final = scan(**{**given, **views}, chunk_size=64, return_final_states=True)
    torch.autograd.backward([y, final], [adjoints.d_y, adjoints.d_final])
    wanted = gradients.exact(call, adjoints)
    whole = torch.cat([torch.from_numpy(wanted[name]) for name in names])
    torch.testing.assert_close(flat.grad.double(), whole, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_states", "seq_idx"])
def test_an_operand_changed_in_place_is_noticed(name: str, path: str) -> None:
    call = draw(EVERYTHING)
    given = {**call.operands, **call.options}
    given["dt"] = given["dt"].requires_grad_().clone()
    y = scan(**given, chunk_size=64)
    with torch.no_grad():
        given[name].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_second_derivative_is_an_error(path: str) -> None:
    call = gradients.leaves(draw(BASE))
    y = scan(**call.operands, **call.options, chunk_size=64)
    (first,) = torch.autograd.grad(y.square().sum(), call.operands["x"], create_graph=True)
    with pytest.raises(DoubleBackwardError, match="first derivatives only"):
        first.square().sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y[:, 1:], "shape"),
        (lambda y: y.double(), "float64"),
        (lambda y: y.to("meta"), "is on meta"),
    ],
)
def test_a_gradient_that_does_not_fit_is_an_error(change: Callable, message: str) -> None:
    given = [t.detach() if isinstance(t, torch.Tensor) else t for t in arguments(BASE)]
    needs = [t is not None for t in given[: len(autograd.DIFFERENTIABLE)]]
    with pytest.raises(GradientError, match=message):
        autograd._backward_checked(change(given[0]), None, *given[:14], needs)
    y = scan(**gradients.leaves(draw(BASE)).operands, chunk_size=64)
    with pytest.raises(RuntimeError, match="hape"):
        y.backward(torch.ones(3))


def test_the_operands_alone_are_kept(path: str) -> None:
    """Neither chunk states nor y: only what the caller holds anyway."""
    call = gradients.leaves(draw(EVERYTHING))
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = scan(**call.operands, **call.options, chunk_size=64)
    mine = {t.data_ptr() for t in (*call.operands.values(), *call.options.values()) if isinstance(t, torch.Tensor)}
    assert kept and {t.data_ptr() for t in kept} <= mine
    gone = weakref.ref(y)
    del y
    gc.collect()
    assert gone() is None


def test_deterministic_algorithms_change_nothing(path: str) -> None:
    """Nothing adds atomically, so there is nothing to switch: the same bits each time, asked for or not."""
    call = draw(EVERYTHING)
    adjoints = gradients.draw_adjoints(call)
    _, wanted = gradients.run(scan, call, adjoints)
    torch.use_deterministic_algorithms(True)
    try:
        _, found = gradients.run(scan, call, adjoints)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_each_package_has_operators_of_its_own() -> None:
    """Two packages in one process, of two layers: a name that both had would be the later one's."""
    import ssdgen.mamba2_ops.autograd as shipped

    assert (shipped.NAMESPACE, autograd.NAMESPACE) == ("ssdgen", "ssdgen_runtime")
    assert torch.ops.ssdgen.chunk_scan.default is shipped.chunk_scan._opoverload
    assert torch.ops.ssdgen_runtime.chunk_scan.default is autograd.chunk_scan._opoverload
