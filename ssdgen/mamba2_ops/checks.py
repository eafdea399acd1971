"""Every mistake in the arguments is found here, before any launch.  interface -> checks -> Problem

Written flat: it runs in front of every launch and may take about ten microseconds.  What a message needs is worked out
only once something is wrong.
"""

from __future__ import annotations

from typing import NoReturn

import torch

from .errors import DeviceError, DtypeError, OperandError, OptionError, ShapeError
from .problem import Problem
from .sequences import check_sequences
from .settings import GATED, LAYOUT, LAYOUTS, PER_HEAD

NAMES = {
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float32: "float32",
    torch.float64: "float64",
}
_FLOATS = frozenset((torch.bfloat16, torch.float16, torch.float32))
_FLOATS_64 = frozenset(NAMES)
_INTS = frozenset((torch.int32, torch.int64))
_X_PER_HEAD = PER_HEAD["x"]
_USUAL = PER_HEAD == {"x": True, "B": False, "C": False}


def check_forward(
    x,
    dt,
    A,
    B,
    C,
    chunk_size,
    D,
    z,
    dt_bias,
    initial_states,
    seq_idx,
    cu_seqlens,
    dt_limit,
    return_varlen_states,
    state_dtype,
    general=False,
) -> Problem:
    """Check the arguments of `mamba_chunk_scan_combined` (shapes and dtypes are listed there).

    general: take all that kernels are there for, as `ssd` makes use of it: A in the shape of dt is the log-decay of
    every token, and x, B and C may have the heads of any layout in `settings.LAYOUTS`.
    Returns: the sizes of the call.
    Errors: ShapeError, DtypeError, DeviceError, OptionError, SequenceError, OperandError.
    Reads one tensor's contents, those of cu_seqlens, and those once per tensor (see `sequences`).
    """
    try:
        shape, dtype, device = x.shape, x.dtype, x.device
        if len(shape) != 4:
            _shape("x", x, "[batch, seqlen, nheads, headdim]")
        batch, seqlen, nheads, headdim = shape
        if not (seqlen and nheads and headdim):
            _shape("x", x, "at least 1 in seqlen, nheads and headdim")
        if (general or not _X_PER_HEAD) and len(dt.shape) == 3:
            nheads = dt.shape[2]

        if dt.shape != (batch, seqlen, nheads):
            _shape("dt", dt, "[batch, seqlen, nheads]", (batch, seqlen, nheads))
        if A.shape != (nheads,) and not (general and GATED and A.shape == dt.shape):
            _shape("A", A, "[nheads]", (nheads,))
        b_shape = B.shape
        if len(b_shape) != 4 or b_shape[0] != batch or b_shape[1] != seqlen:
            _shape("B", B, "[batch, seqlen, ngroups, dstate]", (batch, seqlen, "ngroups", "dstate"))
        ngroups, dstate = b_shape[2], b_shape[3]
        layout = ""
        if general:
            layout, ngroups = layout_of(x, B, C, nheads)
        elif not _USUAL:
            ngroups = _groups(x, B, C, nheads)
        elif C.shape != b_shape:
            _c_shape(B, C)
        if not dstate:
            _shape("B", B, "at least 1 in dstate")
        if not ngroups or nheads % ngroups:
            raise ShapeError(f"nheads {nheads} is not divisible by ngroups {ngroups} (of B and C); choose a divisor")

        name = NAMES.get(dtype)
        if name is None:
            _dtype("x", x, _FLOATS_64)
        floats = _FLOATS if dtype is not torch.float64 else _FLOATS_64
        if B.dtype is not dtype:
            _mixed("B", B, dtype)
        if C.dtype is not dtype:
            _mixed("C", C, dtype)
        if dt.dtype not in floats:
            _dtype("dt", dt, floats)
        if A.dtype not in floats:
            _dtype("A", A, floats)
        if dt.device != device or A.device != device or B.device != device or C.device != device:
            _device(device, dt=dt, A=A, B=B, C=C)

        if D is not None:
            if D.shape != (nheads,) and D.shape != (nheads, headdim):
                _shape("D", D, f"[nheads] = [{nheads}] or [nheads, headdim]", (nheads, headdim))
            if D.dtype not in floats:
                _dtype("D", D, floats)
            if D.device != device:
                _device(device, D=D)
        if z is not None:
            if z.shape != (batch, seqlen, nheads, headdim):
                _shape("z", z, "[batch, seqlen, nheads, headdim]", (batch, seqlen, nheads, headdim))
            if z.dtype is not dtype:
                _mixed("z", z, dtype)
            if z.device != device:
                _device(device, z=z)
        if dt_bias is not None:
            if dt_bias.shape != (nheads,):
                _shape("dt_bias", dt_bias, "[nheads]", (nheads,))
            if dt_bias.dtype not in floats:
                _dtype("dt_bias", dt_bias, floats)
            if dt_bias.device != device:
                _device(device, dt_bias=dt_bias)
        if seq_idx is not None:
            if seq_idx.shape != (batch, seqlen):
                _shape("seq_idx", seq_idx, "[batch, seqlen]", (batch, seqlen))
            if seq_idx.dtype not in _INTS:
                _dtype("seq_idx", seq_idx, _INTS)
            if seq_idx.device != device:
                _device(device, seq_idx=seq_idx)

        sequences = 0
        if cu_seqlens is not None:
            if batch != 1:
                raise ShapeError(
                    f"cu_seqlens was given with batch {batch}; packed sequences are one row: pack them into batch 1"
                )
            if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
                _shape("cu_seqlens", cu_seqlens, "[number of sequences + 1], with at least one sequence")
            if cu_seqlens.dtype not in _INTS:
                _dtype("cu_seqlens", cu_seqlens, _INTS)
            if cu_seqlens.device != device:
                _device(device, cu_seqlens=cu_seqlens)
            sequences = cu_seqlens.shape[0] - 1
            check_sequences(cu_seqlens, seqlen)
        elif return_varlen_states:
            raise OptionError("return_varlen_states=True needs cu_seqlens; give it, or ask for return_final_states")

        if initial_states is not None:
            one_each = (sequences or batch, nheads, headdim, dstate)
            if initial_states.shape != one_each and initial_states.shape != (batch, nheads, headdim, dstate):
                _states_shape(initial_states, (batch, nheads, headdim, dstate), sequences)
            if initial_states.dtype not in floats:
                _dtype("initial_states", initial_states, floats)
            if initial_states.device != device:
                _device(device, initial_states=initial_states)
    except AttributeError:
        _operands(
            x=x, dt=dt, A=A, B=B, C=C, D=D, z=z, dt_bias=dt_bias, initial_states=initial_states, seq_idx=seq_idx,
            cu_seqlens=cu_seqlens,
        )  # fmt: skip
        raise

    if not isinstance(chunk_size, int) or chunk_size < 1:
        raise OptionError(f"chunk_size is {chunk_size!r}; it must be an integer of at least 1 (64 to 256 is usual)")
    if state_dtype is not None and state_dtype not in floats:
        raise OptionError(f"state_dtype is {state_dtype!r}; allowed are None (float32) and {_list(floats)}")
    try:
        low, high = dt_limit
        ordered = low <= high
    except (TypeError, ValueError):
        ordered = False
    if not ordered:
        raise OptionError(f"dt_limit is {dt_limit!r}; it must be two numbers, (low, high), with low <= high")
    return Problem(batch, seqlen, nheads, headdim, dstate, ngroups, name, sequences, layout)


def _shape(name: str, tensor, letters: str, expected: tuple | None = None) -> NoReturn:
    wanted = "" if expected is None else " = [" + ", ".join(map(str, expected)) + "]"
    why = "" if name == "x" or expected is None else " to agree with x, B and C"
    raise ShapeError(f"{name} has shape {list(tensor.shape)}; it must be {letters}{wanted}{why}")


def _c_shape(B, C) -> NoReturn:
    b, c = list(B.shape), list(C.shape)
    for axis, what in ((2, "groups"), (3, "states")):
        if len(c) == 4 and c[axis] != b[axis]:
            raise ShapeError(f"C has {c[axis]} {what}, B has {b[axis]}; they must agree (B is {b}, C is {c})")
    raise ShapeError(f"C has shape {c}; it must be that of B, [batch, seqlen, ngroups, dstate] = {b}")


def _states_shape(states, expected: tuple, sequences: int) -> NoReturn:
    rows = f"{sequences} (one for each packed sequence) or 1 (for the first)" if sequences else f"batch = {expected[0]}"
    raise ShapeError(
        f"initial_states has shape {list(states.shape)}; it must be [rows, nheads, headdim, dstate] = "
        f"[rows, {', '.join(map(str, expected[1:]))}] with rows = {rows}"
    )


def _groups(x, B, C, nheads: int) -> int:
    """The number of groups where the layout is not Mamba-2's own; checks the heads of all operands."""
    tensors = {"x": x, "B": B, "C": C}
    if C.dim() != 4 or C.shape[:2] != B.shape[:2] or C.shape[3] != B.shape[3]:
        _shape("C", C, "[batch, seqlen, nheads or ngroups, dstate]", (*B.shape[:2], "heads", B.shape[3]))
    grouped = [name for name in tensors if not PER_HEAD[name]]
    ngroups = tensors[grouped[0]].shape[2] if grouped else nheads
    for name, tensor in tensors.items():
        wanted, word = (nheads, "nheads") if PER_HEAD[name] else (ngroups, "ngroups")
        if tensor.shape[2] != wanted:
            raise ShapeError(f"{name} has {tensor.shape[2]} heads; in this layout it must have {word} = {wanted}")
    return ngroups


def layout_of(x, B, C, nheads: int, named: str | None = None) -> tuple[str, int]:
    """The head layout that the operands have, "" for the package's own, and its number of groups.

    named: the layout that they must have, or None for the first of `settings.LAYOUTS` that fits.  Errors: ShapeError.
    """
    heads = {"x": x.shape[2], "B": B.shape[2], "C": C.shape[2]}
    if B.shape[:2] != x.shape[:2] or C.shape[:2] != B.shape[:2] or C.shape[3:] != B.shape[3:]:
        _shape("C" if B.shape[:2] == x.shape[:2] else "B", C if B.shape[:2] == x.shape[:2] else B,
               "[batch, seqlen, nheads or ngroups, dstate]", (*x.shape[:2], "heads", B.shape[3]))  # fmt: skip
    for layout, per_head in LAYOUTS.items():
        # compared and never hashed: sizes may be a tracer's
        shared = [count for name, count in heads.items() if not per_head[name]]
        groups = shared[0] if shared else nheads
        fits = all(heads[name] == (nheads if per_head[name] else groups) for name in heads)
        if fits and (named is None or named == layout):
            return "" if layout == LAYOUT else layout, groups
    return _no_layout(heads, nheads, named)


def _no_layout(heads: dict[str, int], nheads: int, named: str | None) -> NoReturn:
    def words(per_head: dict[str, bool]) -> str:
        return ", ".join(f"{name} {nheads if per_head[name] else 'ngroups'}" for name in heads)

    allowed = {name: each for name, each in LAYOUTS.items() if named in (None, name)}
    raise ShapeError(
        f"x, B and C have {heads['x']}, {heads['B']} and {heads['C']} heads, of nheads {nheads}; "
        + ("allowed are " if named is None else "this layout has ")
        + "; ".join(f"{layout}: {words(per_head)}" for layout, per_head in allowed.items())
        + ", with one ngroups that divides nheads: expand or name the operands accordingly"
    )


def _list(dtypes: frozenset) -> str:
    return ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


def _dtype(name: str, tensor, allowed: frozenset) -> NoReturn:
    hint = "; float64 only together with a float64 x" if tensor.dtype is torch.float64 else ""
    raise DtypeError(f"{name} is {tensor.dtype}; allowed are {_list(allowed)}{hint}: convert it with .to(...)")


def _mixed(name: str, tensor, dtype: torch.dtype) -> NoReturn:
    raise DtypeError(
        f"{name} is {tensor.dtype}, x is {dtype}; x, B, C and z must have one dtype: convert with .to(...)"
    )


def _device(device: torch.device, **operands) -> NoReturn:
    name, where = next((name, t.device) for name, t in operands.items() if t.device != device)
    raise DeviceError(f"{name} is on {where}, x is on {device}; move it there with .to({str(device)!r})")


def _operands(**operands) -> None:
    """Name the operand that is no tensor; say nothing if all are (the AttributeError is then another mistake)."""
    for name, value in operands.items():
        optional = name not in ("x", "dt", "A", "B", "C")
        if not isinstance(value, torch.Tensor) and not (value is None and optional):
            allowed = "a torch.Tensor or None" if optional else "a torch.Tensor"
            raise OperandError(f"{name} is a {type(value).__name__}; it must be {allowed}") from None
