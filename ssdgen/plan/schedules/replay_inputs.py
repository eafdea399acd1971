"""What y has of inputs, kept and new, before `step_tiles` reads the state; and what is kept.  step_graph -> Kernel

A program has some heads of a group, whose C B^T it makes once.  It reads a tenth of what the step does, which may start
beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ...spec.layer import Layer
from ...spec.step import step_graph
from ..ir import (
    Arange,
    Begun,
    Index,
    Kernel,
    Leave,
    Load,
    Mask,
    Release,
    Scalar,
    Span,
    Stmt,
    Store,
    Tensor,
    Value,
    When,
)
from ..lower import Lowering, Piece, Pieces, Source, merge
from . import common, decode
from .replay import kept_sources, kept_tensors

_HEADS = Span("h", "h", "BLOCK_H", "head", "h_in")
MASK = "k_in"
# a kept token's dimension in whole blocks
MADE = (
    Tensor("held", ("batch",), "int"),
    Tensor("y_given", ("batch", "nheads", "HEADDIM"), "float32"),
    Tensor("left_decay", ("batch", "nheads"), "float32"),
    Tensor("weights", ("batch", "nheads", "BLOCK_K"), "float32"),
)
_USED = ("x", "B", "C", "dt", "A", "dt_bias", "D")


def applies(layer: Layer) -> bool:
    """Whether there are such kernels: x is of a head, B and C of a group."""
    return layer.layout.per_head("x") and not layer.layout.per_head("B") and not layer.layout.per_head("C")


def kernel(layer: Layer) -> Kernel:
    """y of kept and new inputs, the decay of the state, and the weights of kept ones where the state is to be written.

    held: how many inputs are kept before the step.
    """
    if not applies(layer):
        raise ValueError("heads of a program share B and C; take the other kernels for this layout")
    rows = Piece("", Span("p", "p", "BLOCK_P", "p0"))
    columns = Piece("", Span("j", "k", "BLOCK_K", "0", MASK), position="k")
    heads = Piece("", _HEADS)
    body: list[Stmt] = []
    lowering = Lowering(
        step_graph(layer, replay=True, merged=True),
        {"h": (heads,), "p": (rows,), "n": (Piece("", Span("n", "n", "BLOCK_N")),), "j": (columns,)},
        _sources(layer),
        rename={**decode.RENAME, "y_inputs": "y_given"},
        # what is not kept is loaded all the same: the count is then not waited for
        zero_past_end=frozenset(("kept_log_decay", "kept_CB_terms")),
        # tokens in front: a thread then has all of them, and sums them up alone
        value_axes={
            **dict.fromkeys(("kept_dt", "kept_log_decay", "dA_cs", "weights", "kept_scores"), ("j", "h")),
            **dict.fromkeys(("kept_x", "y_kept_terms"), ("j", "h", "p")),
        },
        constant_level=0,
        scopes=[body, body],
    )
    at = {**lowering.combinations(("h", "p", "n"))[0], "j": columns}
    values = {name: _value(lowering, name, at) for name in ("y_given", "left_decay", "weights", "x", "dt", "B")}
    there = Span("j", "k", "BLOCK_K", "0")
    x = Store("new_x", ("slot", _HEADS, "count", decode.on_p(at)), values["x"])
    dt = Store("new_dt", ("slot", _HEADS, "count"), values["dt"])
    shared = Store("new_B", ("slot", "group", "count", common.on(at["n"], "n")), values["B"])
    keep = (x, When("p0 == 0", (dt,)), When("of_group == 0", (shared,)))
    write = (When("p0 == 0", (Store("weights", ("b", _HEADS, there), values["weights"]),)),)
    dims = {tensor.name: tensor for tensor in (*decode.operand_tensors(layer), *kept_tensors(layer))}
    used = [name for name in _USED if name in dims]
    kept = ("count", "kept_x", "kept_dt", "kept_B", "new_x", "new_dt", "new_B")
    return Kernel(
        "replay_inputs",
        "One program makes what y has of inputs, for some heads of a group, and keeps those of the new token.",
        ("y_given", "left_decay", "weights"),
        (
            Tensor("state_batch_indices", ("batch",), "index", flag="HAS_SLOTS"),
            *(dims[name] for name in (*used, *kept)),
            *(replace(tensor, out=True) for tensor in MADE),
        ),
        (*decode.SIZES, "group_heads"),
        ("dt_min", "dt_max"),
        ("HEADDIM", "DSTATE", "KEPT", "BLOCK_H", "BLOCK_P", "BLOCK_N", "BLOCK_K"),
        ("HAS_D", "HAS_DT_BIAS", "DT_SOFTPLUS", "HAS_SLOTS", "EARLY"),
        ("cdiv(group_heads, BLOCK_H) * (HEADDIM // BLOCK_P)", "ngroups", "batch"),
        (
            When("EARLY", (Release(),)),
            Scalar("p_blocks", "HEADDIM // BLOCK_P"),
            Scalar("p0", "program_id(0) % p_blocks * BLOCK_P", wide=True),
            Scalar("group", "program_id(1)", wide=True),
            Scalar("b", "program_id(2)", wide=True),
            Scalar("first_head", "program_id(0) // p_blocks * BLOCK_H", wide=True),
            Scalar("head", "group * group_heads + first_head", wide=True),
            Arange("h", "h", "BLOCK_H"),
            Mask("h_in", "h", "h", "group_heads - first_head"),
            Arange("p", "p", "BLOCK_P"),
            Arange("n", "n", "BLOCK_N"),
            Arange("k", "j", "BLOCK_K"),
            Mask("k_there", "j", "k", "KEPT"),
            *decode.slot_of_row((Leave(),)),
            Load(Value("count", (), "int"), "count", ("slot",)),
            Mask(MASK, "j", "k", "count"),
            Scalar("of_group", "program_id(0)"),
            Scalar("of_row", "program_id(0) + program_id(1)"),
            *_loads_before(body),
            Store("y_given", ("b", _HEADS, decode.on_p(at)), values["y_given"]),
            When("p0 == 0", (Store("left_decay", ("b", _HEADS), values["left_decay"]),)),
            When("count < KEPT", keep, write),
            When(
                "of_row == 0",
                (Store("held", ("b",), Value("count", (), "int")),),
            ),
        ),
    )


def _sources(layer: Layer) -> dict[str, Source]:
    """Those of a step, of all heads of a program."""
    found = {name: decode.of_the_only_token(each) for name, each in decode.sources(layer, True, level=0).items()}
    found |= kept_sources(layer)
    there = Span("j", "k", "BLOCK_K", "0", "k_there")
    found["kept_B"] = Source(
        "kept_B", lambda at: ("slot", "group", there, common.on(at["n"], "n")), level=0, dtype="operand"
    )
    if not layer.family.uses_a:
        del found["A"]
    return {name: replace(each, index=_of_heads(each)) for name, each in found.items()}


def _loads_before(body: list[Stmt]) -> tuple[Stmt, ...]:
    """What needs no count, what does, and then what is computed: a compiler would move loads behind a wait."""
    ordered = common.loads_first(body)
    loads = [stmt for stmt in ordered if is_load(stmt)]
    counted = [stmt for stmt in loads if loaded(stmt) in ("kept_x", "kept_dt")]
    others = [stmt for stmt in loads if stmt not in counted]
    computed = [stmt for stmt in ordered if not is_load(stmt)]
    return (*merge(tuple(others)), Begun(), *counted, Begun(), *merge(tuple(computed)))


def loaded(stmt: Stmt) -> str:
    """The tensor of a load."""
    load = stmt.body[0] if isinstance(stmt, When) else stmt
    assert isinstance(load, Load)
    return load.tensor


def is_load(stmt: Stmt) -> bool:
    """Whether a statement is a load, or some under an option."""
    return isinstance(stmt, Load) or (isinstance(stmt, When) and all(isinstance(inner, Load) for inner in stmt.body))


def _of_heads(source: Source) -> Callable[[Pieces], tuple[Index, ...]]:
    def index(at: Pieces) -> tuple[Index, ...]:
        return tuple(_HEADS if part == "head" else part for part in source.index(at))

    return index


def _value(lowering: Lowering, name: str, at: Pieces) -> Value:
    made = lowering.need(name, at)
    assert made is not None
    return made[0]


__all__ = ["MADE", "applies", "is_load", "kernel", "loaded"]
