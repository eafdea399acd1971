"""Mamba-3 in float64: the recurrence over tokens, and gradients by the adjoints of its graphs.  mamba3 -> numbers

The recurrence reads the formulas of a step and nothing of the chunks; the gradients go through the graphs of tokens,
chunks and entering state.  The two meet in the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import sympy

from . import layer as formulas
from . import mamba3
from .decompose import chunk_graph as decomposed
from .evaluate import evaluate
from .gradient import adjoint
from .graph import Graph
from .numeric import function
from .oracle import OracleInput

Array = np.ndarray[Any, Any]
# what a run of tokens leaves for the next one
STATES = ("angle", "state", "B_before", "x_before")


@cache
def _chunk() -> Graph:
    return decomposed(mamba3.LAYER)


@cache
def _chunk_adjoint() -> Graph:
    return adjoint(_chunk())


@dataclass(frozen=True)
class Result:
    """Float64 results.  y: [b, L, H, P]; then what goes on to the next run of tokens: angle [b, H, R], in [0, 2 pi),
    state [b, H, P, N], B_before [b, H, N], turned, and x_before [b, H, P]."""

    y: Array
    angle: Array
    state: Array
    B_before: Array
    x_before: Array


def oracle(inputs: Mapping[str, Any]) -> Result:
    """The recurrence of spec/mamba3.py, token after token.

    inputs: x [b, L, H, P]; B, C [b, L, G, N], N even; adt, step, mix [b, L, H]; rate [b, L, H, R], R <= N / 2: the
    pairs after the first R do not turn; B_bias, C_bias [H, N]; and, where they are there, D [H], z [b, L, H, P] and
    what a run of tokens before has left, all of angle, state, B_before and x_before in the shapes of Result.
    Raises OracleInput where one of these four is missing or shapes do not fit.
    """
    given = _checked(inputs)
    share = _pointwise(mamba3.own_share, given["mix"])
    own, before = (_pointwise(f, given["step"], share) for f in (mamba3.own_weight, mamba3.weight_before))
    turns = _pointwise(mamba3.turn, given["rate"], given["step"][..., None])
    kept, x = np.exp(given["adt"]), given["x"]
    angle, state, b_before, x_before = (given[name] for name in STATES)
    y = np.empty(x.shape)
    for t in range(x.shape[1]):
        angle = angle + turns[:, t]
        b, c = (_turned(_per_head(given, name)[:, t] + given[f"{name}_bias"], angle) for name in ("B", "C"))
        handed = (before[:, t] * kept[:, t])[..., None, None] * x_before[..., None] * b_before[:, :, None]
        state = kept[:, t, :, None, None] * state + handed
        state = state + own[:, t, :, None, None] * x[:, t, :, :, None] * b[:, :, None]
        y[:, t] = np.einsum("bhpn,bhn->bhp", state, c)
        b_before, x_before = b, x[:, t]
    if "D" in given:
        y = _pointwise(formulas.skip, y, given["D"][:, None], x)
    if "z" in given:
        y = _pointwise(formulas.gate, y, given["z"])
    return Result(y, np.mod(angle, 2 * np.pi), state, b_before, x_before)


def backward(
    inputs: Mapping[str, Any], d_y: Array, d_states: Mapping[str, Array] | None = None, *, chunk: int
) -> dict[str, Array]:
    """Gradients of sum(d_y * y) + the sums of d_states[name] * result, for the names of Result but y.

    inputs: as `oracle` takes them.  chunk: tokens per chunk.  Returns d_<name> of every input that is there, in its
    shape.  Raises OracleInput.
    """
    given = _checked(inputs)
    batch, _, nheads, _ = given["x"].shape
    found = {f"d_{name}": np.zeros(array.shape) for name, array in given.items()}
    last = d_states or {}
    for b in range(batch):
        for group in range(given["B"].shape[2]):
            per = nheads // given["B"].shape[2]
            _Group(given, found, b, group, slice(group * per, (group + 1) * per), chunk).through(d_y, last)
    return {name: value for name, value in found.items() if name.removeprefix("d_") in inputs}


@dataclass(frozen=True)
class _Group:
    """The heads of one group of one batch entry; gradients are added to `found`."""

    given: Mapping[str, Array]
    found: Mapping[str, Array]
    b: int
    group: int
    heads: slice
    chunk: int

    def through(self, d_y: Array, d_states: Mapping[str, Array]) -> None:
        x, seqlen = self._head_first("x"), self.given["x"].shape[1]
        cuts = [slice(first, min(first + self.chunk, seqlen)) for first in range(0, seqlen, self.chunk)]
        tokens = self._tokens()
        has_d = {"HAS_D": "D" in self.given}
        made = evaluate(mamba3.tokens_graph(), tokens, has_d, mamba3.TOKEN_OUTPUTS)
        operands = {name: _joined(made, name) for name in ("B", "C")}
        enters = self._enters(tokens)
        states = [evaluate(mamba3.entering_graph(), enters, {}, ("state_in",))["state_in"]]
        chunks, flags = [], {"HAS_D": False, "HAS_Z": "z" in self.given}
        for part in cuts:
            chunks.append(self._inputs(part, made, operands, x, states[-1]))
            states.append(evaluate(_chunk(), chunks[-1], flags, ("state_out",))["state_out"])

        at = (self.b, self.heads)
        d_state = d_states["state"][at] if "state" in d_states else np.zeros(states[-1].shape)
        d_made = {f"d_{name}": np.zeros(made[name].shape) for name in mamba3.TOKEN_OUTPUTS}
        if "angle" in d_states:
            d_made["d_angle_out"][:, : d_states["angle"].shape[2]] += d_states["angle"][at]
        d_x = np.zeros(x.shape)
        for part, inputs in zip(reversed(cuts), reversed(chunks), strict=True):
            adjoints = {"d_y": np.moveaxis(d_y[self.b, part][:, self.heads], 1, 0), "d_state_out": d_state}
            names = ("d_x", "d_dt", "d_own", "d_log_decay", "d_B", "d_C", "d_state")
            names += ("d_z",) if "z" in self.given else ()
            values = evaluate(_chunk_adjoint(), {**inputs, **adjoints}, flags, names)
            d_state = values["d_state"]
            d_x[:, part] += values["d_x"]
            for name in ("d_dt", "d_own", "d_log_decay"):
                d_made[name][:, part] += values[name]
            for name in ("B", "C"):
                for k in (0, 1):
                    d_made[f"d_{name}_{k}_turned"][:, part] += values[f"d_{name}"][..., k::2]
            if "z" in self.given:
                self.found["d_z"][self.b, part, self.heads] += np.moveaxis(values["d_z"], 0, 1)
        # the last token goes on as it is
        d_x[:, -1] += d_states["x_before"][at] if "x_before" in d_states else 0.0
        for k in (0, 1) if "B_before" in d_states else ():
            d_made[f"d_B_{k}_turned"][:, -1] += d_states["B_before"][at][..., k::2]
        self.found["d_x"][self.b, :, self.heads] += np.moveaxis(d_x, 0, 1)
        names = [f"d_{name}" for name in mamba3.TOKEN_INPUTS if name in tokens]
        back = evaluate(mamba3.tokens_adjoint(), {**tokens, **d_made}, has_d, names)
        names = [f"d_{name}" for name in mamba3.ENTERING_INPUTS]
        first = evaluate(mamba3.entering_adjoint(), {**enters, "d_state_in": d_state}, {}, names)
        back["d_step"][:, 0] += first["d_step_first"]
        back["d_mix"][:, 0] += first["d_mix_first"]
        self._give(back, first)

    def _give(self, back: Mapping[str, Array], first: Mapping[str, Array]) -> None:
        """Gradients of the operands, from those of a group's heads."""
        found, b, heads = self.found, self.b, self.heads
        rates = found["d_rate"].shape[3]
        for name in ("adt", "step", "mix"):
            found[f"d_{name}"][b, :, heads] += back[f"d_{name}"].T
        found["d_rate"][b, :, heads] += np.moveaxis(back["d_rate"], 0, 1)[..., :rates]
        for name in ("B", "C"):
            for k in (0, 1):
                found[f"d_{name}"][b, :, self.group, k::2] += back[f"d_{name}_{k}"]
                found[f"d_{name}_bias"][heads, k::2] += back[f"d_{name}_{k}_bias"]
        found["d_angle"][b, heads] += back["d_angle_in"][:, :rates]
        if "D" in self.given:
            found["d_D"][heads] += back["d_D_head"]
        for name in ("state", "B_before", "x_before"):
            found[f"d_{name}"][b, heads] += first[f"d_{name}"]

    def _head_first(self, name: str) -> Array:
        return np.moveaxis(self.given[name][self.b][:, self.heads], 1, 0)

    def _tokens(self) -> dict[str, Array]:
        given, pairs = self.given, self.given["B"].shape[3] // 2
        found = {name: self._head_first(name) for name in ("adt", "step", "mix")}
        found["rate"] = _padded(self._head_first("rate"), pairs)
        found["angle_in"] = _padded(given["angle"][self.b, self.heads], pairs)
        for name in ("B", "C"):
            for k in (0, 1):
                found[f"{name}_{k}"] = given[name][self.b, :, self.group, k::2]
                found[f"{name}_{k}_bias"] = given[f"{name}_bias"][self.heads, k::2]
        if "D" in given:
            found["D_head"] = given["D"][self.heads]
        return found

    def _enters(self, tokens: Mapping[str, Array]) -> dict[str, Array]:
        found = {name: self.given[name][self.b, self.heads] for name in ("state", "x_before", "B_before")}
        return found | {"step_first": tokens["step"][:, 0], "mix_first": tokens["mix"][:, 0]}

    def _inputs(
        self, part: slice, made: Mapping[str, Array], operands: Mapping[str, Array], x: Array, state: Array
    ) -> dict[str, Any]:
        found: dict[str, Any] = {name: made[name][:, part] for name in ("dt", "own", "log_decay")}
        found |= {name: value[:, part] for name, value in operands.items()}
        found |= {"x": x[:, part], "state": state}
        if "z" in self.given:
            found["z"] = self._head_first("z")[:, part]
        return found


def _joined(made: Mapping[str, Array], name: str) -> Array:
    """Both of each pair, one after the other."""
    pairs = np.stack([made[f"{name}_{k}_turned"] for k in (0, 1)], axis=-1)
    return pairs.reshape(*pairs.shape[:-2], -1)


def _padded(array: Array, pairs: int) -> Array:
    """With zeros for the pairs that do not turn."""
    return np.concatenate([array, np.zeros((*array.shape[:-1], pairs - array.shape[-1]))], axis=-1)


def _turned(operand: Array, angle: Array) -> Array:
    """Pairs of the last axis turned by their angles."""
    pairs = operand.reshape(*operand.shape[:-1], -1, 2)
    both = mamba3.turned(sympy.symbols("first second", real=True), sympy.Symbol("angle", real=True))
    symbols = sympy.symbols("first second angle", real=True)
    angle = _padded(angle, pairs.shape[-2])
    made = [function(symbols, value)(pairs[..., 0], pairs[..., 1], angle) for value in both]
    return np.stack(made, axis=-1).reshape(operand.shape)


def _per_head(given: Mapping[str, Array], name: str) -> Array:
    return np.repeat(given[name], given["x"].shape[2] // given[name].shape[2], axis=2)


def _pointwise(formula: Callable[..., Any], *arrays: Array) -> Array:
    symbols = [sympy.Symbol(f"v{place}", real=True) for place in range(len(arrays))]
    return np.asarray(function(symbols, formula(*symbols))(*arrays), np.float64)


def _checked(inputs: Mapping[str, Any]) -> dict[str, Array]:
    """The inputs in float64, states of zero where there are none."""
    given = {name: np.asarray(array, np.float64) for name, array in inputs.items() if array is not None}
    batch, seqlen, nheads, headdim = given["x"].shape
    groups, dstate = given["B"].shape[2:]
    rates = given["rate"].shape[3]
    there = [name for name in STATES if name in given]
    if there and len(there) != len(STATES):
        raise OracleInput(f"{', '.join(there)} given; give all of {', '.join(STATES)}, or none of them")
    if dstate % 2 or rates > dstate // 2 or nheads % groups:
        raise OracleInput(
            f"dstate {dstate}, {rates} rates, {nheads} heads in {groups} groups; dstate must be even, with at most "
            "dstate / 2 rates, and groups must divide heads"
        )
    shapes = {
        "x": (batch, seqlen, nheads, headdim),
        "z": (batch, seqlen, nheads, headdim),
        "D": (nheads,),
        "rate": (batch, seqlen, nheads, rates),
        "angle": (batch, nheads, rates),
        "state": (batch, nheads, headdim, dstate),
        "B_before": (batch, nheads, dstate),
        "x_before": (batch, nheads, headdim),
        **dict.fromkeys(("B", "C"), (batch, seqlen, groups, dstate)),
        **dict.fromkeys(("B_bias", "C_bias"), (nheads, dstate)),
        **dict.fromkeys(("adt", "step", "mix"), (batch, seqlen, nheads)),
    }
    for name, array in given.items():
        if array.shape != shapes[name]:
            raise OracleInput(f"{name} has shape {array.shape}; it must be {shapes[name]}")
    return {**{name: np.zeros(shapes[name]) for name in STATES}, **given}


__all__ = ["STATES", "Result", "backward", "oracle"]
