"""The public call.  arguments -> checks -> config -> launchers, the same with gradients, or the PyTorch path"""

from __future__ import annotations

from functools import partial
from math import inf
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import autograd, fallback, paths
from .checks import check_forward
from .errors import ShapeError
from .repeats import OPERANDS, Call, Forms, form_of

if TYPE_CHECKING:
    from torch.distributed import DeviceMesh, ProcessGroup


# as many as there are recipes
_calls: Forms[Call] = Forms(4096)


def mamba_chunk_scan_combined(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, inf),
    return_final_states: bool = False,
    return_varlen_states: bool = False,
    state_dtype: torch.dtype | None = None,
    *,
    process_group: ProcessGroup | DeviceMesh | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """The Mamba-2 layer's sequence transformation (SSD), same signature as mamba_ssm's function of this name.

    With dt_t = clamp(softplus(dt_t + dt_bias), dt_limit), for each row, head and its group:

        h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T        [headdim, dstate]
        y_t = (h_t C_t + D x_t) silu(z_t)

    x: [batch, seqlen, nheads, headdim], bf16, fp16 or fp32; seqlen, nheads and headdim at least 1, batch may be 0.
    dt: [batch, seqlen, nheads], step size before bias and softplus, any floating dtype and strides.
    A: [nheads], normally < 0.  Exponents are clamped to <= 0: a positive A acts as 0 (the state never grows).
    B, C: [batch, seqlen, ngroups, dstate], x's dtype; nheads divisible by ngroups; head h uses group
        h // (nheads / ngroups).
    chunk_size: at least 1.  It does not change what is computed, and the chunk that runs is the tuner's choice.
    D: [nheads] or [nheads, headdim]; None: no skip.
    z: [batch, seqlen, nheads, headdim], x's dtype; None: no gate.
    dt_bias: [nheads]; None: no bias.
    initial_states: [batch, nheads, headdim, dstate], the state before position 0; None: zero.  With cu_seqlens one row
        for each sequence, or a single row for the first one.
    seq_idx: [batch, seqlen], int32 or int64; each value is one contiguous run, and the state is zero where it changes.
    cu_seqlens: [number of sequences + 1], int32 or int64, on x's device, batch 1: sequence s is positions
        cu_seqlens[s] to cu_seqlens[s + 1], none of them empty.  It alone then says where sequences begin; seq_idx may
        be given too, as mamba_ssm wants it, and is only checked for its shape and dtype.  The contents are checked once
        per tensor, which waits for the device; never while a CUDA graph is captured, nor with SSDGEN_ASSUME_VALID=1.
    dt_softplus: apply softplus.  dt_limit: (low, high) for the step size.
    return_final_states: also return the state after the last position; with cu_seqlens that of the last sequence.
    return_varlen_states: also return the state after each packed sequence; needs cu_seqlens.
    state_dtype: dtype of returned states, default fp32.
    process_group: the ranks that share a sequence, a ProcessGroup or a DeviceMesh with one dimension: each gives its
        own shard of at least one token, in the order of the ranks, and gets the y of its shard (`parallel`).  All ranks
        make the same call, and the same backward pass, with shards that differ in seqlen alone.  initial_states belong
        to the first rank, final states are those that leave the rank's own shard: on the last rank those of the
        sequence.  cu_seqlens is that of the whole row.  Gradients of A, D and dt_bias are sums over the rank's own
        tokens: add them up over the ranks.

    Returns: y [batch, seqlen, nheads, headdim] in x's dtype; with states a tuple: (y, final), (y, varlen) or
    (y, final, varlen), final [batch, nheads, headdim, dstate], varlen [number of sequences, nheads, headdim, dstate].

    All math on decays and states is in fp32.  x, B, C and z are read in place if their last stride is 1 (slices of a
    wider projection) and copied otherwise.  NaN in gives NaN out.

    Gradients of y and of returned states reach every floating operand, and are computed for those that require one.
    Only operands are kept for the backward pass.  First derivatives only: a second one is a DoubleBackwardError where
    kernels ran.  The same call gives the same bits each time, also in the backward pass: nothing is added atomically,
    and torch.use_deterministic_algorithms changes nothing.  With gradients, cu_seqlens becomes seq_idx on the device;
    with return_varlen_states or initial states for more than the first sequence the backward pass is PyTorch's.
    It keeps the states that enter the chunks and their adjoints; with SSDGEN_MEMORY_LIMIT=512M it goes through rows and
    heads in slices where that would be more (`memory`).
    torch.compile takes the call whole (fullgraph); the contents of cu_seqlens are then not checked.
    Under torch.autocast x, B, C and z are cast to its dtype, as the projection in front would have given them; the
    others, and all sums and decays, stay in the precision that they have.

    The PyTorch path (`fallback`, slower) runs on a CPU, where there is no Triton, and for float64.  With
    TRITON_INTERPRET=1 and SSDGEN_FORCE_TRITON=1 the kernels run on CPU tensors, interpreted.

    Errors, all before any launch, all ValueError: ShapeError, DtypeError, DeviceError, OptionError, OperandError,
    SequenceError (contents of cu_seqlens), RecordError (a tuned file is broken), UntunedError (SSDGEN_ASSERT_TUNED=1).
    In the backward pass: GradientError, DoubleBackwardError, SettingError (SSDGEN_MEMORY_LIMIT).
    With process_group: GroupError, RankMismatchError, CommunicationError (a rank has died), on every rank.
    Source: Dao and Gu, Transformers are SSMs, 2024, section 6 and listing 1.
    """
    if _is_autocast(x):
        x, B, C, z = (autocast(tensor) for tensor in (x, B, C, z))
        if process_group is not None or is_compiling():
            with torch.autocast(x.device.type, enabled=False):
                return mamba_chunk_scan_combined(
                    x, dt, A, B, C, chunk_size, D, z, dt_bias, initial_states, seq_idx, cu_seqlens, dt_softplus,
                    dt_limit, return_final_states, return_varlen_states, state_dtype, process_group=process_group,
                )  # fmt: skip
    if process_group is not None:
        # what ranks need is imported where there are some
        from .context_parallel import on_ranks

        return on_ranks(
            process_group, x, dt, A, B, C, chunk_size, D, z, dt_bias, initial_states, seq_idx, cu_seqlens, dt_softplus,
            dt_limit, return_final_states, return_varlen_states, state_dtype,
        )  # fmt: skip
    if is_compiling() and A.dim() != 1:
        # the operator takes more than this call
        raise ShapeError(f"A has shape {list(A.shape)}; it must be [nheads]: `ssd` takes a decay for every token")
    return scan(
        x, dt, A, B, C, chunk_size, D, z, dt_bias, initial_states, seq_idx, cu_seqlens, dt_softplus, dt_limit,
        return_final_states, return_varlen_states, state_dtype,
    )  # fmt: skip


def scan(
    x, dt, A, B, C, chunk_size, D, z, dt_bias, initial_states, seq_idx, cu_seqlens, dt_softplus, dt_limit,
    return_final_states, return_varlen_states, state_dtype, general=False,
) -> Tensor | tuple[Tensor, ...]:  # fmt: skip
    """The call on one device: with gradients where they are wanted, on kernels where they can run.

    Arguments and results as above, autocast aside; general: as in `check_forward`.
    """
    states = return_final_states or return_varlen_states
    form, call, compiling = None, None, is_compiling()
    operands = (x, dt, A, B, C, D, z, dt_bias, initial_states, seq_idx)
    if not compiling and cu_seqlens is None and not return_varlen_states:
        form = form_of(operands, chunk_size, dt_softplus, dt_limit, states, state_dtype, general)
        call = _calls.get(form)
        if call is not None:
            there = [operand for operand in operands if operand is not None]
            differentiable = _needs_gradient(*there)
            if call.again(autograd.keeps(differentiable)) is not None:
                y, ends = autograd.repeated(call, there, differentiable)
                return (y, ends) if states else y
    if not compiling and _is_autocast(x):
        # what PyTorch does in place of kernels is not cast in its turn
        with torch.autocast(x.device.type, enabled=False):
            return scan(
                *operands[:5], chunk_size, D, z, dt_bias, initial_states, seq_idx, cu_seqlens, dt_softplus, dt_limit,
                return_final_states, return_varlen_states, state_dtype, general,
            )  # fmt: skip
    if compiling:
        # one operator, which checks its arguments itself: nothing below can be traced
        run = partial(autograd.scan, chunk_size=chunk_size, varlen_states=return_varlen_states)
    else:
        problem = check_forward(
            x, dt, A, B, C, chunk_size, D, z, dt_bias, initial_states, seq_idx, cu_seqlens, dt_limit,
            return_varlen_states, state_dtype, general,
        )  # fmt: skip
        if not (problem.batch and paths.runs_kernels(x)):
            run = fallback.forward
        elif autograd.keeps(False) or _needs_gradient(x, dt, A, B, C, D, z, dt_bias, initial_states):
            run = partial(autograd.scan, problem=problem, varlen_states=return_varlen_states)
        else:
            run = partial(paths.forward, problem)
    if cu_seqlens is not None:
        seq_idx = None
    y, ends = run(
        x, dt, A, B, C, D=D, z=z, dt_bias=dt_bias, initial_states=initial_states, seq_idx=seq_idx,
        cu_seqlens=cu_seqlens, dt_softplus=dt_softplus, dt_limit=dt_limit, final_states=states, state_dtype=state_dtype,
    )  # fmt: skip
    if form is not None:
        if call is None:
            call = _call(problem, operands, dt_softplus, dt_limit, states, state_dtype)
            _calls.put(form, call)
        # of a known form too: with states that are kept another plan is made than without
        _learn(call, operands, autograd.keeps(_needs_gradient(*operands)))

    if not states:
        return y
    # of a packed row, the last sequence ends where the row ends
    final = ends if cu_seqlens is None else ends[-1:]
    if not return_varlen_states:
        return y, final
    return (y, final, ends) if return_final_states else (y, ends)


def _call(problem, operands, dt_softplus, dt_limit, states, state_dtype) -> Call:
    """What calls of the same form need."""
    low, high = dt_limit
    limits = float(low), float(high)
    given = dict(zip(OPERANDS, operands, strict=True))
    names = tuple(name for name, operand in given.items() if operand is not None)
    return Call(problem, names, (dt_softplus, *limits), states, state_dtype)


def _learn(call: Call, operands: tuple[Tensor | None, ...], keeps: bool) -> None:
    """How the pass that was just made is made again."""
    x = operands[0]
    if call.problem.batch and x is not None and paths.runs_kernels(x):
        softplus, *limits = call.options
        again = paths.forward_again(
            call.problem, dict(zip(OPERANDS, operands, strict=True)), dt_softplus=softplus, dt_limit=tuple(limits),
            final_states=call.final_states, state_dtype=call.state_dtype, keeps=keeps,
        )  # fmt: skip
        call.learn(again, keeps)


def _is_autocast(x: Tensor) -> bool:
    return isinstance(x, Tensor) and not x.is_meta and torch.is_autocast_enabled(x.device.type)


def autocast(tensor: Tensor | None) -> Tensor | None:
    """In the dtype of the autocast that is on; float64 and what is no floating tensor stay as they are."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.dtype is torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(tensor.device.type))


def _needs_gradient(*operands: Tensor | None) -> bool:
    if torch.is_grad_enabled():
        for operand in operands:
            if operand is not None and operand.requires_grad:
                return True
    return False
