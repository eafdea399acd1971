"""The layer with gradients: a function in eager mode, operators of torch elsewhere.  interface -> autograd -> paths

`chunk_scan` and `chunk_scan_backward` are opaque to torch.compile, which neither traces a launch nor breaks its graph.
Their namespace is that of the package, so that two packages in one process have operators of their own.  In eager mode
an autograd function runs the same code: an operator written in Python costs the host as much as several launches.

Kept for the backward pass are the operands alone, and the states of chunks where `memory.keeps_states` says so; else
they are computed again.  No kernel adds atomically, so torch.use_deterministic_algorithms has nothing to switch.
Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from math import inf
from typing import NoReturn

import torch
from torch import Tensor

from . import fallback, memory, paths
from .checks import check_forward
from .errors import DoubleBackwardError, GradientError, OptionError
from .problem import Problem
from .repeats import OPERANDS, Again, Call, Forms, form_of
from .sequences import seq_idx_of

# operands that may need a gradient, in the order of the operators' arguments
DIFFERENTIABLE = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_states")
# the operators' first arguments
TENSORS = (*DIFFERENTIABLE, "seq_idx", "cu_seqlens")
_TENSORS = len(TENSORS)
_ARGUMENTS = _TENSORS + 6
_STATE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_OWN = "mamba2_ops"
_PACKAGE = __package__ or _OWN
NAMESPACE = "ssdgen" if _PACKAGE == f"ssdgen.{_OWN}" else _PACKAGE.replace(".", "_")

# what kernels of the backward pass are given, and how those of earlier calls are called again
_GIVEN = (*OPERANDS, "d_y", "d_final_states", "states")
_backwards: Forms[Again] = Forms(4096)

# where a call inside of another autograd function leaves the states that it keeps
_handed: ContextVar[list[Tensor | None] | None] = ContextVar("handed", default=None)

_OPERANDS = (
    "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? dt_bias, Tensor? initial_states, "
    "Tensor? seq_idx, Tensor? cu_seqlens, bool dt_softplus, float dt_min, float dt_max"
)


def scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, inf),
    final_states: bool = False,
    state_dtype: torch.dtype | None = None,
    chunk_size: int = 64,
    varlen_states: bool = False,
    problem: Problem | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`fallback.forward` on kernels where they can run, differentiable once.

    problem: the sizes, of arguments that were checked; None: by the operator, which checks them.
    varlen_states: whether a state is wanted for each packed sequence.  Without it only the last one is returned, where
    cu_seqlens can become seq_idx: unless there are initial states for more than the first sequence.
    Errors: those of `check_forward`, from inside of the operator.
    """
    if cu_seqlens is None:
        if varlen_states:
            raise OptionError("return_varlen_states=True needs cu_seqlens; give it, or ask for return_final_states")
    elif not varlen_states and (initial_states is None or initial_states.shape[0] == 1):
        seq_idx, cu_seqlens = seq_idx_of(cu_seqlens, x.shape[1]), None
        problem = problem and replace(problem, sequences=0)
    low, high = dt_limit
    given = (
        x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, cu_seqlens, dt_softplus, float(low), float(high),
        chunk_size, final_states, state_dtype,
    )  # fmt: skip
    # a subclass of Tensor is a tracer's, and knows operators alone
    if problem is not None and type(x) in (Tensor, torch.nn.Parameter):
        operands = dict(zip(TENSORS, given[:_TENSORS], strict=True))
        there = {name: operand for name, operand in operands.items() if operand is not None}
        call = Call(problem, tuple(there), given[_TENSORS : _TENSORS + 3], final_states, state_dtype)
        return _Scan.apply(call, *there.values())
    y, ends = chunk_scan(*given)
    return y, ends if final_states else None


@contextmanager
def handing_over() -> Iterator[list[Tensor | None]]:
    """The states that enter the chunks of each call in here, None where none are kept, for `gradients`.

    For autograd functions that call others in their own forward pass, where nothing is differentiated.
    """
    handed: list[Tensor | None] = []
    token = _handed.set(handed)
    try:
        yield handed
    finally:
        _handed.reset(token)


def keeps(differentiable: bool) -> bool:
    """Whether a call keeps the states that enter its chunks."""
    return _handed.get() is not None or (differentiable and memory.keeps_states())


def repeated(call: Call, operands: tuple[Tensor, ...], differentiable: bool) -> tuple[Tensor, Tensor | None]:
    """`scan` for a call in a form that is known.  operands: those of `Call.names`."""
    if differentiable:
        return _Scan.apply(call, *operands)
    return _left(paths.again(call.again(keeps(False)), call.names, operands))


def _left(found: tuple[Tensor | None, ...]) -> tuple[Tensor, Tensor | None]:
    """y and the final states; states that a call was asked to hand over go there."""
    handed = _handed.get()
    if handed is not None:
        handed.append(found[2])
    return found[0], found[1]  # type: ignore[return-value]


def _checked(
    x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, cu_seqlens, dt_min, dt_max, chunk_size=64, state_dtype=None
) -> Problem:
    return check_forward(
        x, dt, A, B, C, chunk_size, D, z, dt_bias, initial_states, seq_idx, cu_seqlens, (dt_min, dt_max), False,
        state_dtype, general=True,
    )  # fmt: skip


def _forward(
    problem, x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, cu_seqlens, dt_softplus, dt_min, dt_max,
    chunk_size, final_states, state_dtype, keeps=False,
):  # fmt: skip
    """y, and the last state of each row or packed sequence, or None where states are not wanted.

    keeps: and the states that enter the chunks, None where no kernel keeps them.
    """
    options = {
        "D": D,
        "z": z,
        "dt_bias": dt_bias,
        "initial_states": initial_states,
        "seq_idx": seq_idx,
        "cu_seqlens": cu_seqlens,
        "dt_softplus": dt_softplus,
        "dt_limit": (dt_min, dt_max),
        "final_states": final_states,
        "state_dtype": state_dtype,
    }
    states = None
    if problem.batch and paths.runs_kernels(x):
        y, ends, *kept = paths.forward(problem, x, dt, A, B, C, **options, **({"keeps": True} if keeps else {}))
        states = kept[0] if kept else None
    else:
        with torch.autocast(x.device.type, enabled=False):
            y, ends = fallback.forward(x, dt, A, B, C, **options)
    found = y.contiguous(), None if ends is None else ends.contiguous()
    return (*found, states) if keeps else found


def _forward_checked(*given):
    """`_forward` of arguments that nobody has looked at; an operator has states without elements instead of none."""
    tensors, (_, *limits, chunk_size, _, state_dtype) = given[:_TENSORS], given[_TENSORS:]
    y, ends = _forward(_checked(*tensors, *limits, chunk_size, state_dtype), *given)
    x = given[0]
    return y, x.new_empty(0, dtype=_state_dtype(x, state_dtype)) if ends is None else ends


def _forward_fake(
    x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, cu_seqlens, dt_softplus, dt_min, dt_max, chunk_size,
    final_states, state_dtype,
):  # fmt: skip
    _checked(
        x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, cu_seqlens, dt_min, dt_max, chunk_size, state_dtype
    )
    batch, _, nheads = dt.shape
    rows = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    states = (rows, nheads, x.shape[3], B.shape[3]) if final_states else (0,)
    return x.new_empty((*dt.shape, x.shape[3])), x.new_empty(states, dtype=_state_dtype(x, state_dtype))


def _state_dtype(x: Tensor, state_dtype: torch.dtype | None) -> torch.dtype:
    return state_dtype or (torch.float64 if x.dtype is torch.float64 else torch.float32)


def _backward(
    problem, d_y, d_states, x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, cu_seqlens, dt_softplus, dt_min,
    dt_max, needs,
):  # fmt: skip
    """Gradients of the operands that need one (a bool for each of DIFFERENTIABLE), in their order."""
    names = [name for name, needed in zip(DIFFERENTIABLE, needs, strict=True) if needed]
    operands = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "z": z, "dt_bias": dt_bias}
    operands |= {"initial_states": initial_states, "seq_idx": seq_idx}
    options = {"dt_softplus": dt_softplus, "dt_limit": (dt_min, dt_max), "needs": frozenset(names)}
    found = _gradients(problem, d_y, d_states, operands, cu_seqlens, options)
    return [found[name] for name in names]


def _gradients(problem, d_y, d_states, operands, cu_seqlens, options, states=None) -> dict[str, Tensor]:
    """Gradients by name.  operands: by name, those that may be None too, cu_seqlens apart; states: see `gradients`."""
    x, dt, B = operands["x"], operands["dt"], operands["B"]
    _check_gradients(d_y, d_states, x, dt, B, cu_seqlens)
    given = {**operands, **options, "d_y": d_y, "d_final_states": d_states}
    found = None
    if problem.batch and cu_seqlens is None and paths.runs_kernels(x) and paths.backward_launcher(problem.layout):
        found = paths.backward(problem, **given, **({} if states is None else {"states": states}))
    if found is None:
        found = fallback.backward(**given, cu_seqlens=cu_seqlens)
    return {name: gradient.contiguous() for name, gradient in found.items()}


def _backward_checked(d_y, d_states, *given):
    """`_backward` of arguments that nobody has looked at."""
    tensors, (_, *limits, _) = given[:_TENSORS], given[_TENSORS:]
    return _apart(_backward(_checked(*tensors, *limits), d_y, d_states, *given))


def _apart(gradients: list[Tensor]) -> list[Tensor]:
    """Each in memory of its own, as an operator's results must be: kernels add up what is alike in one tensor."""
    seen: set[int] = set()
    found = []
    for gradient in gradients:
        storage = gradient.untyped_storage().data_ptr()
        found.append(gradient.clone() if storage in seen and gradient.numel() else gradient)
        seen.add(storage)
    return found


def _backward_fake(
    d_y, d_states, x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx, cu_seqlens, dt_softplus, dt_min, dt_max,
    needs,
):  # fmt: skip
    _check_gradients(d_y, d_states, x, dt, B, cu_seqlens)
    operands = (x, dt, A, B, C, D, z, dt_bias, initial_states)
    return [operand.new_empty(operand.shape) for operand, needed in zip(operands, needs, strict=True) if needed]


def _check_gradients(d_y, d_states, x, dt, B, cu_seqlens) -> None:
    """Errors: GradientError."""
    batch, _, nheads = dt.shape
    rows = batch if cu_seqlens is None else cu_seqlens.shape[0] - 1
    outputs = (
        ("y", d_y, (*dt.shape, x.shape[3]), (x.dtype,)),
        ("the states", d_states, (rows, nheads, x.shape[3], B.shape[3]), _STATE_DTYPES),
    )
    for name, gradient, shape, dtypes in outputs:
        if gradient is None:
            continue
        if gradient.shape != shape:
            raise GradientError(f"the gradient of {name} has shape {list(gradient.shape)}; it must be {list(shape)}")
        if gradient.dtype not in dtypes:
            allowed = ", ".join(str(dtype) for dtype in dtypes)
            raise GradientError(
                f"the gradient of {name} is {gradient.dtype}; allowed: {allowed}: convert with .to(...)"
            )
        if gradient.device != x.device:
            raise GradientError(f"the gradient of {name} is on {gradient.device}, x is on {x.device}; move it there")


def _keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:_TENSORS])
    ctx.options = inputs[_TENSORS:][:3]
    # a result that nobody used has no gradient, instead of one full of zeros
    ctx.set_materialize_grads(False)


def _differentiate(ctx, d_y, d_states):
    needs = list(ctx.needs_input_grad[: len(DIFFERENTIABLE)])
    found = None
    if d_y is not None or d_states is not None:
        found = chunk_scan_backward(d_y, d_states, *ctx.saved_tensors, *ctx.options, needs)
    return _spread(found, needs)


def _spread(found: list[Tensor] | None, needs: list[bool]) -> tuple[Tensor | None, ...]:
    """A gradient, or None, for each argument of the operator."""
    each = iter(found or ())
    gradients = [next(each) if needed and found is not None else None for needed in needs]
    return (*gradients, *[None] * (_ARGUMENTS - len(needs)))


class _Scan(torch.autograd.Function):
    """`chunk_scan` past the dispatcher.  Arguments: the call, then those of its operands that are there."""

    @staticmethod
    def forward(ctx, call, *operands):
        ctx.call, ctx.kept = call, keeps(any(ctx.needs_input_grad))
        # a result that nobody used has no gradient, instead of one full of zeros
        ctx.set_materialize_grads(False)
        again = call.again(ctx.kept)
        if again is not None:
            found = paths.again(again, call.names, operands)
        else:
            given = dict(zip(call.names, operands, strict=True))
            given = (*map(given.get, TENSORS), *call.options, 64, call.final_states, call.state_dtype)
            found = _forward(call.problem, *given, keeps=ctx.kept)
        ctx.save_for_backward(*operands, *found[2:])
        return _left(found)

    @staticmethod
    def backward(ctx, d_y, d_states):  # type: ignore[override]
        call, needs = ctx.call, ctx.needs_input_grad[1:]
        if d_y is None and d_states is None:
            return (None,) * (1 + len(needs))
        operands, states = ctx.saved_tensors, None
        if ctx.kept:
            *operands, states = operands
        given = dict(zip(call.names, operands, strict=True))
        wanted = frozenset(name for name, needed in zip(call.names, needs, strict=True) if needed)
        found = gradients(d_y, d_states, [*map(given.get, TENSORS)], call.options, wanted, call.problem, states)
        return (None, *map(found.get, call.names))


def gradients(
    d_y: Tensor | None,
    d_states: Tensor | None,
    tensors: list[Tensor | None],
    options: tuple[bool, float, float],
    wanted: frozenset[str],
    problem: Problem | None = None,
    states: Tensor | None = None,
) -> dict[str, Tensor]:
    """`chunk_scan_backward` past the dispatcher: the gradients of the operands in `wanted`, by name.

    tensors: those of TENSORS; options: dt_softplus and both limits; problem: None for operands that nobody has checked;
    states: those that enter the chunks, which the forward pass has kept.
    Several may be parts of one tensor.  Errors: GradientError, those of `check_forward`.
    """
    if torch.is_grad_enabled():
        # with create_graph gradients may be differentiated, of which the operator says that it cannot be
        names = [name for name in DIFFERENTIABLE if name in wanted]
        needs = [name in wanted for name in DIFFERENTIABLE]
        return dict(zip(names, chunk_scan_backward(d_y, d_states, *tensors, *options, needs), strict=True))
    *operands, cu_seqlens = tensors
    form = None
    if cu_seqlens is None:
        form = form_of((*operands, d_y, d_states, states), options, wanted, memory.limit())
        again = _backwards.get(form)
        if again is not None:
            return paths.again(again, _GIVEN, (*operands, d_y, d_states, states))
    problem = problem or _checked(*tensors, *options[1:])
    given = dict(zip(OPERANDS, operands, strict=True))
    how = {"dt_softplus": options[0], "dt_limit": options[1:], "needs": wanted}
    found = _gradients(problem, d_y, d_states, given, cu_seqlens, how, states)
    if form is not None and problem.batch and paths.runs_kernels(tensors[0]):
        made = {"d_y": d_y, "d_final_states": d_states, "states": states}
        again = paths.backward_again(problem, {**given, **made}, **how)
        if again is not None:
            _backwards.put(form, again)
    return found


def _differentiate_again(ctx, *gradients) -> NoReturn:
    raise DoubleBackwardError(
        "the gradient of chunk_scan was differentiated, and it has first derivatives only; for second ones call it in "
        "float64 or on a CPU, and without create_graph=True where none are wanted"
    )


chunk_scan = torch.library.custom_op(
    f"{NAMESPACE}::chunk_scan",
    _forward_checked,
    mutates_args=(),
    schema=f"({_OPERANDS}, int chunk_size, bool final_states, ScalarType? state_dtype) -> (Tensor, Tensor)",
)
chunk_scan.register_fake(_forward_fake)
chunk_scan.register_autograd(_differentiate, setup_context=_keep)

chunk_scan_backward = torch.library.custom_op(
    f"{NAMESPACE}::chunk_scan_backward",
    _backward_checked,
    mutates_args=(),
    schema=f"(Tensor? d_y, Tensor? d_states, {_OPERANDS}, bool[] needs) -> Tensor[]",
)
chunk_scan_backward.register_fake(_backward_fake)
chunk_scan_backward.register_autograd(_differentiate_again, setup_context=lambda ctx, inputs, output: None)
