"""State space duality in the words of linear attention: any head layout, any mask.  arguments -> duality -> interface

Nothing is computed here.  Every mask is one with a log-decay for every token: a constant one is that of a head for all
of its tokens, and none is zero, both expanded without a copy.  Operands that heads share go to kernels of their layout.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import settings
from .checks import check_forward, layout_of
from .errors import DeviceError, DtypeError, OperandError, OptionError, ShapeError
from .interface import autocast, scan
from .mirror import with_upper
from .sequences import seq_idx_of

# every head a group of its own
MULTI_HEAD = "multi-head"


def ssd(
    x: Tensor,
    a: Tensor | None,
    b: Tensor,
    c: Tensor,
    *,
    weight: Tensor | None = None,
    D: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    layout: str | None = None,
    two_sided: bool | tuple[Tensor | None, Tensor, Tensor] = False,
    chunk_size: int = 64,
    return_final_states: bool = False,
    return_varlen_states: bool = False,
    state_dtype: torch.dtype | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Structured masked attention with a 1-semiseparable mask, in time that is linear in seqlen.

    For each row and head, with x the values, b the keys and c the queries that the head uses:

        y = (L * (c b^T)) x,   L_ij = exp(a_{j+1} + ... + a_i) for j <= i, else 0        [seqlen, seqlen]

    which is the recurrence h_t = exp(a_t) h_{t-1} + weight_t x_t b_t^T, y_t = h_t c_t + D x_t with a weight of one.

    x: values, [batch, seqlen, heads, headdim], bf16, fp16, fp32 or fp64.
    a: log-decay, any floating dtype and strides: [batch, seqlen, nheads] for every token (gated linear attention, SSD),
        [nheads] for every head (retention), or None for no decay (linear attention).  Finite; what is positive counts
        as 0.
    b, c: keys and queries, [batch, seqlen, heads, dstate], x's dtype; dstate at most 512 on kernels.
    weight: of a token's input, [batch, seqlen, nheads], any floating dtype; None: 1.  With weight=dt and a=dt * A this
        is Mamba-2's layer, which `mamba_chunk_scan_combined` computes without a = dt * A in memory.
    D: [nheads] or [nheads, headdim], what a token gives to itself; None: nothing.
    layout: which operands have all nheads heads; the others have ngroups, which divides nheads, and each of their heads
        serves nheads / ngroups heads that follow each other.  None: what the numbers of heads say.

            multi-input      x             (multi-value: Mamba-2)
            multi-contract   c             (multi-query; with several groups grouped-query)
            multi-expand     b             (multi-key)
            multi-head       x, b and c

    two_sided: True: the mask goes on above the diagonal (bidirectional, quasiseparable), with
        L_ij = exp(a_{i+1} + ... + a_j) for j > i, so that it decays with the distance of two tokens.  (a, b, c): with
        these above the diagonal, b and c as those below; any a, as above.  Such a call has neither initial nor final
        states; its sequences are apart as ever.

    initial_states, seq_idx, cu_seqlens, chunk_size, return_final_states, return_varlen_states, state_dtype: as in
        `mamba_chunk_scan_combined`; states are [rows, nheads, headdim, dstate].

    Returns: y [batch, seqlen, nheads, headdim] in x's dtype; with states a tuple, as there.

    Shared operands are read in place and never repeated in memory, but for gradients above the diagonal of
    multi-contract and multi-expand calls, and there where heads are few.  Gradients reach every floating operand, in
    its own shape; what is said of them there, of torch.compile, autocast and the PyTorch path, holds here too.
    Multi-input and multi-head calls run on Mamba-2's kernels and their tuned records; the other layouts have kernels
    and records of their own (`ssdgen tune --layout multi-contract`), whatever the mask.
    A package that was emitted for another layout or without decays has kernels for that alone.

    Errors, before any launch: OperandError, ShapeError, DtypeError, DeviceError, OptionError, SequenceError.
    Source: Dao and Gu, Transformers are SSMs, 2024, sections 4 and 7.2.
    """
    _operands(x=x, b=b, c=c)
    _operands(optional=True, a=a, weight=weight, D=D, initial_states=initial_states, seq_idx=seq_idx)
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        x, b, c = (autocast(tensor) for tensor in (x, b, c))
        if isinstance(two_sided, tuple):
            two_sided = (two_sided[0], *(autocast(tensor) for tensor in two_sided[1:]))  # type: ignore[assignment]
        with torch.autocast(x.device.type, enabled=False):
            return ssd(
                x, a, b, c, weight=weight, D=D, initial_states=initial_states, seq_idx=seq_idx, cu_seqlens=cu_seqlens,
                layout=layout, two_sided=two_sided, chunk_size=chunk_size, return_final_states=return_final_states,
                return_varlen_states=return_varlen_states, state_dtype=state_dtype,
            )  # fmt: skip
    nheads = _heads(x, a, b, c)
    _check_layout(layout, x, b, c, nheads)
    tokens = (*x.shape[:2], nheads)
    ones = x.new_ones((), dtype=_wide(x)).expand(tokens)
    if weight is not None and weight.shape != tokens:
        raise ShapeError(
            f"weight has shape {list(weight.shape)}; it must be [batch, seqlen, nheads] = {list(tokens)}, or None"
        )
    if two_sided is not False:
        upper = _upper(two_sided, a, b, c)
        if initial_states is not None or return_final_states or return_varlen_states:
            raise OptionError("a two-sided mask has no state to begin or end with; leave initial and final states out")
        return _both_sides(x, a, b, c, weight, ones, D, upper, seq_idx, cu_seqlens, chunk_size)
    weight = ones if weight is None else weight
    return scan(
        x, weight, _decays(a, x, tokens), b, c, chunk_size, D, None, None, initial_states, seq_idx, cu_seqlens, False,
        (-inf, inf), return_final_states, return_varlen_states, state_dtype, general=True,
    )  # fmt: skip


def _upper(two_sided: Any, a: Tensor | None, b: Tensor, c: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
    """The decays, keys and queries above the diagonal."""
    if two_sided is True:
        return a, b, c
    if not isinstance(two_sided, tuple) or len(two_sided) != 3:
        raise OptionError(
            f"two_sided is {two_sided!r:.60}; allowed are False, True and the (a, b, c) above the diagonal"
        )
    decays, keys, queries = two_sided
    _operands(optional=True, **{"two_sided[0]": decays})
    _operands(**{"two_sided[1]": keys, "two_sided[2]": queries})
    for place, (given, like) in enumerate(((keys, b), (queries, c)), start=1):
        if given.shape != like.shape or given.dtype != like.dtype or given.device != like.device:
            raise ShapeError(
                f"two_sided[{place}] is {list(given.shape)}, {given.dtype} on {given.device}; it must be as below the "
                f"diagonal: {list(like.shape)}, {like.dtype} on {like.device}"
            )
    return two_sided


def _both_sides(
    x: Tensor,
    a: Tensor | None,
    b: Tensor,
    c: Tensor,
    weight: Tensor | None,
    ones: Tensor,
    D: Tensor | None,
    upper: tuple[Tensor | None, Tensor, Tensor],
    seq_idx: Tensor | None,
    cu_seqlens: Tensor | None,
    chunk_size: int,
) -> Tensor:
    """One pass for the mask up to the diagonal, the transpose of another one for what is above it."""
    tokens = (*x.shape[:2], ones.shape[2])
    below = (x, ones if weight is None else weight, _decays(a, x, tokens), b, c, chunk_size, D, None, None, None)
    rest = (False, (-inf, inf), False, False, None)
    problem = None
    if not is_compiling():
        problem = check_forward(*below, seq_idx, cu_seqlens, (-inf, inf), False, None, general=True)
        problem = replace(problem, sequences=0)
    if cu_seqlens is not None:
        seq_idx = seq_idx_of(cu_seqlens, x.shape[1])
    y = scan(*below, seq_idx, None, *rest, general=True)
    assert isinstance(y, Tensor)
    decays, keys, queries = upper
    rates = _decays(decays, x, tokens)
    return with_upper(y, x, weight, ones, rates, keys, queries, seq_idx, problem)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def _decays(a: Tensor | None, x: Tensor, tokens: tuple[int, int, int]) -> Tensor:
    """The log-decay of every token as the kernels take it."""
    if not settings.GATED:
        if a is not None:
            raise OptionError("a was given; this package was emitted without decays: leave a out, or emit it with them")
        return x.new_zeros(tokens[2], dtype=_wide(x))
    if a is None:
        return x.new_zeros((), dtype=_wide(x)).expand(tokens)
    if a.device != x.device:
        raise DeviceError(f"a is on {a.device}, x is on {x.device}; move it there with .to({str(x.device)!r})")
    if not a.is_floating_point() or (a.dtype is torch.float64 and x.dtype is not torch.float64):
        raise DtypeError(f"a is {a.dtype}; allowed are floating dtypes, float64 only together with a float64 x")
    if a.shape == tokens:
        return a
    if a.shape == tokens[2:]:
        # the gradient is a sum over tokens: none of its terms may be rounded to less
        return a.to(_wide(x)).expand(tokens)
    raise ShapeError(
        f"a has shape {list(a.shape)}; it must be [batch, seqlen, nheads] = {list(tokens)}, [nheads] = "
        f"[{tokens[2]}], or None for no decay"
    )


def _heads(x: Tensor, a: Tensor | None, b: Tensor, c: Tensor) -> int:
    """The number of heads: the most that an operand has."""
    for name, tensor, last in (("x", x, "headdim"), ("b", b, "dstate"), ("c", c, "dstate")):
        if tensor.dim() != 4 or 0 in tensor.shape[1:]:
            raise ShapeError(
                f"{name} has shape {list(tensor.shape)}; it must be [batch, seqlen, heads, {last}], none of the last "
                "three 0"
            )
    nheads = max(tensor.shape[2] for tensor in (x, b, c))
    if a is not None and a.dim() in (1, 3) and a.shape[-1] != nheads:
        raise ShapeError(
            f"a has {a.shape[-1]} heads, the most that x, b and c have is {nheads}; a needs a number for each of these"
        )
    return nheads


def _check_layout(layout: str | None, x: Tensor, b: Tensor, c: Tensor, nheads: int) -> None:
    known = [*settings.LAYOUTS, *([MULTI_HEAD] if MULTI_HEAD not in settings.LAYOUTS else [])]
    if layout is not None and layout not in known:
        raise OptionError(f"layout is {layout!r}; allowed are None and {', '.join(known)}")
    heads = [tensor.shape[2] for tensor in (x, b, c)]
    if layout == MULTI_HEAD and heads != [nheads] * 3:
        raise ShapeError(
            f"x, b and c have {heads[0]}, {heads[1]} and {heads[2]} heads; multi-head wants the same of all: expand "
            "those with fewer, or name the layout that shares them"
        )
    _, ngroups = layout_of(x, b, c, nheads, None if layout == MULTI_HEAD else layout)
    if nheads % ngroups:
        raise ShapeError(f"{nheads} heads do not divide into {ngroups} groups; choose a divisor for what heads share")


def _operands(*, optional: bool = False, **given: object) -> None:
    for name, value in given.items():
        if not isinstance(value, Tensor) and not (optional and value is None):
            _no_tensor(name, value, optional)


def _no_tensor(name: str, value: object, optional: bool) -> NoReturn:
    allowed = "a torch.Tensor or None" if optional else "a torch.Tensor"
    raise OperandError(f"{name} is a {type(value).__name__}; it must be {allowed}")
