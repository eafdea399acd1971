"""The float64 oracle that every test compares with: the layer as its recurrence over tokens.  layer -> numbers

It reads the formulas of `layer` and the index maps of its layout, and nothing of the block decomposition: the two meet
in the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy

from . import layer as formulas
from .dims import HEAD, NGROUPS, NHEADS
from .layer import Layer
from .numeric import function

Array = np.ndarray[Any, Any]


class OracleInput(ValueError):
    """An argument of the oracle does not fit the layer or the other arguments."""


@dataclass(frozen=True)
class Result:
    """Float64 results.  y: [b, L, H, P]; final_states: [b, H, P, N], after the last token;
    varlen_states: [nseq, H, P, N], after the last token of each sequence, or None without cu_seqlens."""

    y: Array
    final_states: Array
    varlen_states: Array | None


def oracle(
    layer: Layer,
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    *,
    D: Array | None = None,
    z: Array | None = None,
    dt_bias: Array | None = None,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    initial_states: Array | None = None,
    seq_idx: Array | None = None,
    cu_seqlens: Array | None = None,
) -> Result:
    """The layer in float64 (docs/maths.md, The layer).

    The layer names the mask family, the head layout and whether dt passes a softplus. Every other option is on where
    its array is given; a layer that asks for an array which is not given is an error.

    x: [b, L, H or G, P] and B, C: [b, L, H or G, N], by layout; dt: [b, L, H], before its transform; A: [H], of a
    family per token [b, L, H]; D: [H] or [H, P]; z: [b, L, H, P]; dt_bias: [H];
    initial_states: [b, H, P, N]; with cu_seqlens [nseq, H, P, N], or [1, H, P, N] for the first sequence alone;
    seq_idx: [b, L], a new value starts from a zero state; cu_seqlens: [nseq + 1], rising from 0 to L, and b is 1.

    Log-decays are clamped to <= 0, so that a positive A acts as 0. Raises OracleInput on shapes that do not fit.
    """
    asked = {
        "D": (D, layer.skip != "none"),
        "z": (z, layer.gate),
        "dt_bias": (dt_bias, layer.dt_bias),
        "initial_states": (initial_states, layer.initial_states),
        "seq_idx or cu_seqlens": (seq_idx if seq_idx is not None else cu_seqlens, layer.boundaries),
    }
    if absent := [name for name, (array, wanted) in asked.items() if wanted and array is None]:
        raise OracleInput(f"the layer has {', '.join(absent)}, which was not given; give it, or use a layer without it")

    x, dt, A, B, C = (_float(array) for array in (x, dt, A, B, C))
    if dt.ndim != 3:
        raise OracleInput(f"dt has shape {dt.shape}; it must be [batch, seqlen, nheads]")
    batch, seqlen, nheads = dt.shape
    index = index_maps(layer, {"x": x, "B": B, "C": C}, nheads)
    headdim, dstate = x.shape[-1], B.shape[-1]
    for name, array, last in (("x", x, headdim), ("B", B, dstate), ("C", C, dstate)):
        _shape(name, array, (batch, seqlen, array.shape[2], last))
    _shape("A", A, dt.shape if layer.family.per_token else (nheads,))

    # infinite limits, a NaN and exp(-inf) are all meant
    with np.errstate(all="ignore"):
        if dt_bias is not None:
            dt = _pointwise(formulas.add_bias, dt, _shape("dt_bias", _float(dt_bias), (nheads,)))
        if layer.dt_softplus:
            dt = _pointwise(formulas.rectify, dt)
        dt = _pointwise(formulas.clamp, dt, *(np.asarray(limit) for limit in dt_limit))
        kept = np.exp(np.minimum(_pointwise(layer.log_decay, dt, A), 0.0)) * np.ones_like(dt)  # [b, L, H]
        weight = _pointwise(formulas.input_weight, dt) * np.ones_like(dt)  # [b, L, H]

        spans, states = sequences(cu_seqlens, initial_states, (batch, seqlen, nheads, headdim, dstate))
        y, ends = np.empty((batch, seqlen, nheads, headdim)), []
        for (start, stop), state in zip(spans, states, strict=True):
            part = np.s_[:, start:stop]
            restart = np.zeros((batch, stop - start), bool)
            if seq_idx is not None:
                owner = _shape("seq_idx", np.asarray(seq_idx), (batch, seqlen))[part]
                restart[:, 1:] = owner[:, 1:] != owner[:, :-1]
            y[part], end = _recurrence(kept[part], weight[part], x[part], B[part], C[part], index, state, restart)
            ends.append(end)

        if D is not None:
            d = _float(D)
            _shape("D", d, (nheads,) if d.ndim == 1 else (nheads, headdim))
            y = _pointwise(formulas.skip, y, d[:, None] if d.ndim == 1 else d, x[:, :, index["x"]])
        if z is not None:
            y = _pointwise(formulas.gate, y, _shape("z", _float(z), y.shape))
    return Result(y, ends[-1], None if cu_seqlens is None else np.concatenate(ends))


def _recurrence(
    kept: Array,
    weight: Array,
    x: Array,
    B: Array,
    C: Array,
    index: dict[str, list[int]],
    state: Array,
    restart: Array,
) -> tuple[Array, Array]:
    """y_t = h_t C_t with h_t = a_t h_{t-1} + weight_t x_t B_t^T, and the last h.

    restart: [b, L], tokens that see a zero state.
    """
    y, state = np.empty((*weight.shape, x.shape[-1])), state.copy()
    for t in range(x.shape[1]):
        state[restart[:, t]] = 0.0  # set, not scaled: 0 * inf is not 0
        state *= kept[:, t, :, None, None]
        state += (weight[:, t, :, None] * x[:, t, index["x"]])[..., None] * B[:, t, index["B"], None, :]
        y[:, t] = np.einsum("bhpn,bhn->bhp", state, C[:, t, index["C"]])
    return y, state


def sequences(
    cu_seqlens: Array | None, initial_states: Array | None, sizes: tuple[int, ...]
) -> tuple[list[tuple[int, int]], list[Array]]:
    """First and past-the-end token of each sequence, and the state that it starts from, [b, H, P, N]."""
    batch, seqlen, *shape = sizes
    if cu_seqlens is None:
        given = None if initial_states is None else _shape("initial_states", _float(initial_states), (batch, *shape))
        return [(0, seqlen)], [np.zeros((batch, *shape)) if given is None else given]
    bounds = [int(bound) for bound in np.asarray(cu_seqlens)]
    if batch != 1 or len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != seqlen or bounds != sorted(bounds):
        raise OracleInput(
            f"cu_seqlens is {bounds} for batch {batch} and seqlen {seqlen}; it must rise from 0 to seqlen, with batch 1"
        )
    spans = list(zip(bounds[:-1], bounds[1:], strict=True))
    states = np.zeros((len(spans), *shape))
    if initial_states is not None:
        # one row for several sequences belongs to the first, as in mamba_ssm
        rows = 1 if len(initial_states) == 1 else len(spans)
        states[:rows] = _shape("initial_states", _float(initial_states), (rows, *shape))
    return spans, list(states[:, None])


def index_maps(layer: Layer, operands: dict[str, Array], nheads: int) -> dict[str, list[int]]:
    """For x, B and C, which entry each head uses: the layout's index map in numbers."""
    if wrong := [f"{name} {array.shape}" for name, array in operands.items() if array.ndim != 4]:
        raise OracleInput(f"{', '.join(wrong)}: x, B and C must be [batch, seqlen, heads or groups, headdim or dstate]")
    shared = {name: array.shape[2] for name, array in operands.items() if not layer.layout.per_head(name)}
    groups = next(iter(shared.values()), 1)
    if len(set(shared.values())) > 1 or groups == 0 or nheads % groups:
        raise OracleInput(
            f"layout {layer.layout.name} has groups {shared} for {nheads} heads; all must agree and divide the heads"
        )
    sizes = {NHEADS: nheads, NGROUPS: groups}
    for name, array in operands.items():
        if array.shape[2] != (extent := layer.layout.extent(name).subs(sizes)):
            raise OracleInput(f"{name} has {array.shape[2]} heads; layout {layer.layout.name} needs {extent}")
    return {
        name: [int(layer.layout.index(name).subs({**sizes, HEAD: head})) for head in range(nheads)] for name in operands
    }


def _pointwise(formula: Any, *arrays: Array) -> Array:
    """A formula of the layer applied to arrays with NumPy's broadcasting."""
    symbols = sympy.symbols(f"v0:{len(arrays)}", real=True)
    return function(symbols, formula(*symbols))(*arrays)


def _float(array: Any) -> Array:
    return np.asarray(array, dtype=np.float64)


def _shape(name: str, array: Array, shape: tuple[int, ...]) -> Array:
    if array.shape != shape:
        raise OracleInput(f"{name} has shape {array.shape}; it must be {shape}")
    return array
