"""The graphs of the convolution and the norms, and the adjoints derived from them, against torch in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ssdgen.spec.conv import WIDTHS, conv_adjoint, conv_graph
from ssdgen.spec.dims import entry
from ssdgen.spec.evaluate import evaluate
from ssdgen.spec.gradient import adjoint
from ssdgen.spec.graph import Graph, Input, Shift
from ssdgen.spec.norm import KINDS, Norm, norm_adjoint, norm_graph

torch = pytest.importorskip("torch")
TOKENS, CHANNELS = 7, 4


def differentiated(
    run: Callable[..., tuple[torch.Tensor, ...]], given: dict[str, np.ndarray], adjoints: tuple[np.ndarray, ...]
) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Results and gradients by torch, both as arrays."""
    leaves = {name: torch.tensor(array, requires_grad=True) for name, array in given.items()}
    outputs = run(**leaves)
    total = sum((out * torch.tensor(d_out)).sum() for out, d_out in zip(outputs, adjoints, strict=True))
    gradients = torch.autograd.grad(total, list(leaves.values()))
    found = {f"d_{name}": gradient.numpy() for name, gradient in zip(leaves, gradients, strict=True)}
    return [out.detach().numpy() for out in outputs], found


def agree(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    for name, array in wanted.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-10, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("sequences", (False, True))
def test_the_convolution_and_its_gradients(width: int, sequences: bool, seed: int) -> None:
    made = np.random.default_rng(seed)
    given = {"x": made.standard_normal((TOKENS, CHANNELS)), "bias": made.standard_normal(CHANNELS)}
    given |= {f"weight_{back}": made.standard_normal(CHANNELS) for back in range(width)}
    seq = np.array([-1, 3, 3, 3, 3, 0, 0])
    d_y, d_state = made.standard_normal((2, TOKENS, CHANNELS))

    def run(x, bias, **weights):
        rows, states = [], []
        for t in range(TOKENS):
            reach = [back for back in range(width) if t >= back and (not sequences or seq[t - back] == seq[t])]
            row = bias + sum(weights[f"weight_{back}"] * x[t - back] for back in reach)
            row = torch.nn.functional.silu(row)
            rows.append(torch.zeros_like(row) if sequences and seq[t] < 0 else row)
            states.append(x[t] * float(not sequences or seq[t] == seq[-1]))
        return torch.stack(rows), torch.stack(states)

    (y, state), wanted = differentiated(run, given, (d_y, d_state))
    flags = {"HAS_BIAS": True, "SILU": True, "HAS_SEQ_IDX": sequences}
    inputs = {**given, "seq": seq, "seq_last": seq[-1]}
    agree(evaluate(conv_graph(width), inputs, flags, ("y", "state_out")), {"y": y, "state_out": state})
    more = {"d_y": d_y, "d_state_out": d_state}
    agree(evaluate(conv_adjoint(width), {**inputs, **more}, flags, tuple(wanted)), wanted)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("gate", (False, True))
def test_the_norms_and_their_gradients(kind: Norm, gate: bool, seed: int) -> None:
    made = np.random.default_rng(seed)
    given = {name: made.standard_normal((TOKENS, CHANNELS)) for name in ("x", *(["z"] if gate else []))}
    given |= {name: made.standard_normal(CHANNELS) for name in ("weight", "bias")}
    d_y = made.standard_normal((TOKENS, CHANNELS))

    def run(x, weight, bias, z=None):
        silu = torch.nn.functional.silu
        value = x * silu(z) if z is not None and kind.gate_first else x
        value = value if kind.rms else value - value.mean(1, keepdim=True)
        value = value / (value.square().mean(1, keepdim=True) + 0.5).sqrt() * weight + bias
        return (value * silu(z) if z is not None and not kind.gate_first else value,)

    (y,), wanted = differentiated(run, given, (d_y,))
    flags = {"HAS_Z": gate, "HAS_BIAS": True}
    inputs = {**given, "size": CHANNELS, "eps": 0.5}
    agree(evaluate(norm_graph(kind), inputs, flags, ("y",)), {"y": y})
    agree(evaluate(norm_adjoint(kind), {**inputs, "d_y": d_y}, flags, tuple(wanted)), wanted)


@pytest.mark.parametrize("by", (-9, -2, 0, 1, 7))
def test_a_shift_and_its_adjoint(by: int) -> None:
    """What moves away past an end is lost, and its adjoint comes back as zero."""
    x = entry("x", "t", "d")
    graph = Graph("shift", (Input("x", ("t", "d"), "anything"), Shift("y", ("t", "d"), x, "t", by)))
    value, d_y = np.random.default_rng(3).standard_normal((2, TOKENS, CHANNELS))
    y = evaluate(graph, {"x": value}, {}, ("y",))["y"]
    for t in range(TOKENS):
        np.testing.assert_array_equal(y[t], value[t - by] if 0 <= t - by < TOKENS else 0)
    d_x = evaluate(adjoint(graph, ("y",)), {"x": value, "d_y": d_y}, {}, ("d_x",))["d_x"]
    assert np.isclose((d_x * value).sum(), (d_y * y).sum())
