"""The problems that a layer's shape stands for, pass by pass.  {name: shape} -> {name: Problem} -> session, doctor"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace

import torch

from ..mamba2_ops import part_problem
from ..mamba2_ops.problem import Problem as CallProblem
from ..pack.records import CONV, CONV_UPDATE, DECODE, NORM, REPLAY, Direction
from ..plan.problem import Problem

# of the convolution of every published model
WIDTH = 4
# formats of states by the bytes of a number, which is what decode records go by
STATES = ("float32", "bfloat16", "int8")
# batches of the problems of one token that a named shape stands for: between two of them the nearest is used
BATCHES = (1, 4, 16, 64, 256)


def of_layer(direction: Direction, shape: Problem) -> Problem:
    """What one pass of a layer of this shape is to the look-up; a state is stored in the shape's dtype."""
    dtype = getattr(torch, shape.dtype)
    inner = shape.nheads * shape.headdim
    if direction in (DECODE, REPLAY):
        return replace(shape, seqlen=1, dtype="float32" if shape.dtype == "float32" else "bfloat16")
    if direction in CONV:
        length = 1 if direction == CONV_UPDATE else shape.seqlen
        channels = inner + 2 * shape.ngroups * shape.dstate
        return _problem(part_problem.of_conv(shape.batch, length, channels, WIDTH, dtype))
    if direction in NORM:
        rows = shape.batch * shape.seqlen
        return _problem(part_problem.of_norm(rows, shape.ngroups, inner // shape.ngroups, dtype))
    return shape


def of_layers(
    direction: Direction, shapes: Mapping[str, Problem], named: Mapping[str, tuple[int, ...]]
) -> dict[str, Problem]:
    """The problems of a pass that shapes stand for, by the names of their searches, each once.

    Where a call has one token there is one for each batch of BATCHES, and of a decode step for each way to store a
    state.  A shape of numbers, which is not in `named`, has its own batch alone.
    """
    found: dict[str, Problem] = {}
    for name, shape in shapes.items():
        for words, problem in _of_shape(direction, shape, name in named).items():
            if problem not in found.values():
                found[" ".join((name, *words))] = problem
    return found


def _of_shape(direction: Direction, shape: Problem, every_batch: bool) -> dict[tuple[str, ...], Problem]:
    problem = of_layer(direction, shape)
    batches = BATCHES if every_batch else (shape.batch,)
    if direction in (DECODE, REPLAY):
        return {
            (direction, str(batch), state): replace(problem, batch=batch, dtype=state)
            for batch in batches
            for state in STATES
        }
    if direction == CONV_UPDATE:
        return {(direction, str(batch)): replace(problem, batch=batch) for batch in batches}
    return {() if direction == "forward" else (direction,): problem}


def _problem(call: CallProblem) -> Problem:
    sizes = asdict(call)
    del sizes["sequences"]
    return Problem(**sizes)
