"""The public call.  arguments -> checks -> config -> launchers, or the PyTorch path"""

from __future__ import annotations

import os
import warnings
from functools import partial
from importlib.util import find_spec
from math import inf

import torch
from torch import Tensor

from . import fallback
from .checks import check_forward
from .errors import SsdWarning
from .problem import Problem
from .select import config_for, replace


# looked for, not imported: importing Triton takes a second and is not needed on a CPU
def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ImportError:
        return False


HAVE_TRITON = _installed("triton")
_OPTIONAL = ("D", "z", "dt_bias", "initial_states", "seq_idx", "cu_seqlens")


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

    Returns: y [batch, seqlen, nheads, headdim] in x's dtype; with states a tuple: (y, final), (y, varlen) or
    (y, final, varlen), final [batch, nheads, headdim, dstate], varlen [number of sequences, nheads, headdim, dstate].

    All math on decays and states is in fp32.  x, B, C and z are read in place if their last stride is 1 (slices of a
    wider projection) and copied otherwise.  NaN in gives NaN out.

    The PyTorch path (`fallback`, slower) runs on a CPU, where there is no Triton, for float64, and whenever an input
    requires a gradient.  With TRITON_INTERPRET=1 and SSDGEN_FORCE_TRITON=1 the kernels run on CPU tensors, interpreted.

    Errors, all before any launch, all ValueError: ShapeError, DtypeError, DeviceError, OptionError, OperandError,
    SequenceError (contents of cu_seqlens), RecordError (a tuned file is broken), UntunedError (SSDGEN_ASSERT_TUNED=1).
    Source: Dao and Gu, Transformers are SSMs, 2024, section 6 and listing 1.
    """
    problem = check_forward(
        x, dt, A, B, C, chunk_size, D, z, dt_bias, initial_states, seq_idx, cu_seqlens, dt_limit, return_varlen_states,
        state_dtype,
    )  # fmt: skip
    states = return_final_states or return_varlen_states
    if cu_seqlens is not None:
        seq_idx = None
    kernels = problem.batch and _runs_kernels(x) and not _needs_gradient(x, dt, A, B, C, D, z, dt_bias, initial_states)
    run = partial(_launch, problem) if kernels else fallback.forward
    y, ends = run(
        x, dt, A, B, C, D=D, z=z, dt_bias=dt_bias, initial_states=initial_states, seq_idx=seq_idx,
        cu_seqlens=cu_seqlens, dt_softplus=dt_softplus, dt_limit=dt_limit, final_states=states, state_dtype=state_dtype,
    )  # fmt: skip

    if not states:
        return y
    # of a packed row, the last sequence ends where the row ends
    final = ends if cu_seqlens is None else ends[-1:]
    if not return_varlen_states:
        return y, final
    return (y, final, ends) if return_final_states else (y, ends)


def _runs_kernels(x: Tensor) -> bool:
    """Whether the emitted kernels can run on this tensor."""
    if x.dtype is torch.float64:
        return False
    if x.is_cuda:
        if not HAVE_TRITON:
            _warn_no_triton()
        return HAVE_TRITON
    # the interpreter computes with NumPy, which has no bf16
    return (
        x.device.type == "cpu"
        and x.dtype is not torch.bfloat16
        and HAVE_TRITON
        and os.environ.get("TRITON_INTERPRET") == "1"
        and os.environ.get("SSDGEN_FORCE_TRITON") == "1"
    )


def _needs_gradient(*operands: Tensor | None) -> bool:
    if torch.is_grad_enabled():
        for operand in operands:
            if operand is not None and operand.requires_grad:
                return True
    return False


def _launch(problem: Problem, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, **options):
    """Run the emitted kernels on the device of x.  They take dt with any strides, the rest with a last one of 1."""
    from .launchers import forward

    device = x.device
    x, A, B, C = _unit_stride(x), _unit_stride(A), _unit_stride(B), _unit_stride(C)
    for name in _OPTIONAL:
        options[name] = _unit_stride(options[name])
    options["state_dtype"] = options["state_dtype"] or torch.float32
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        # Triton launches on the current device, whatever the tensors are on
        with torch.cuda.device(device):
            return _launch_here(forward, problem, x, dt, A, B, C, options)
    return _launch_here(forward, problem, x, dt, A, B, C, options)


def _launch_here(forward, problem: Problem, x, dt, A, B, C, options):
    """Run on the current device; where the config does not fit, a small one from then on."""
    config = config_for(problem, x.device)
    try:
        return forward.forward(config, x, dt, A, B, C, **options)
    except Exception as error:
        if type(error).__name__ != "OutOfResources" or config is forward.MINIMAL:
            raise
        warnings.warn(f"the config for {problem} does not fit ({error}); a small one runs", SsdWarning, stacklevel=5)
    replace(problem, x.device, forward.MINIMAL)
    return forward.forward(forward.MINIMAL, x, dt, A, B, C, **options)


def _unit_stride(tensor: Tensor | None) -> Tensor | None:
    return tensor if tensor is None or tensor.stride(-1) == 1 else tensor.contiguous()


_warnings: set[str] = set()


def _warn_no_triton() -> None:
    if "triton" not in _warnings:
        _warnings.add("triton")
        warnings.warn(
            "Triton is not installed: the much slower PyTorch path runs; `pip install triton`", SsdWarning, stacklevel=4
        )
