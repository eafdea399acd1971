"""The layer between its projections: convolution, scan, gated norm, output projection.  -> mamba2, compat

What the input projection made is cut into its parts, which are read where they lie.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_compiling

from . import memory, split_gradient
from .checks import NAMES
from .errors import DtypeError, OperandError, OptionError, ShapeError
from .sequences import check_sequences, seq_idx_of
from .split_forward import Operands, Split, compose

if TYPE_CHECKING:
    from torch.distributed import DeviceMesh, ProcessGroup

_ACTIVATIONS = (None, "silu", "swish")


def mamba_split_conv1d_scan_combined(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor | None,
    A: Tensor,
    D: Tensor | None,
    chunk_size: int,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, inf),
    return_final_states: bool = False,
    activation: str | None = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
    state_dtype: torch.dtype | None = None,
    *,
    initial_conv_states: Tensor | None = None,
    return_final_conv_states: bool = False,
    cu_seqlens: Tensor | None = None,
    attention_mask: Tensor | None = None,
    recompute: bool = True,
    process_group: ProcessGroup | DeviceMesh | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """A Mamba-2 layer after its input projection, same signature as mamba_ssm's function of this name.

    zx0, z, xBC, dt = the parts of zxbcdt, in this order; then

        x, B, C = activation(conv1d(xBC));  y = scan(x, softplus(dt + dt_bias), A, B, C, D)
        h = [silu(z0) x0, norm(y, z)]  with z0, x0 the halves of zx0;  out = h outproj_weight^T + outproj_bias

    zxbcdt: [batch, seqlen, 2 d_nonssm + 2 d_ssm + 2 ngroups dstate + nheads] with d_ssm = nheads headdim; d_nonssm may
        be 0.  bf16, fp16 or fp32.
    conv1d_weight: [d_ssm + 2 ngroups dstate, width]; conv1d_bias: [d_ssm + 2 ngroups dstate] or None.
    dt_bias: [nheads] or None.  A: [nheads], normally < 0.  D: [nheads], [nheads, headdim] or None.
    chunk_size, dt_limit, state_dtype: as in `mamba_chunk_scan_combined`.
    initial_states: [batch, nheads, headdim, dstate], the state before position 0; None: zero.
    seq_idx: [batch, seqlen], int32: neither the convolution nor the scan reaches across a change of it.
    activation: "silu", "swish" (the same) or None.
    rmsnorm_weight: [d_ssm]: the norm of y over each group of d_ssm / ngroups; norm_before_gate: norm(y) silu(z),
        otherwise norm(y silu(z)).  None: y silu(z).
    rmsnorm_eps: added to its mean of squares.
    outproj_weight: [d_out, d_nonssm + d_ssm], outproj_bias: [d_out]; None: h is returned.
    headdim: needed unless D is [nheads, headdim].
    ngroups: of B and C, a divisor of nheads; dstate follows from the number of channels.
    initial_conv_states: [batch, d_ssm + 2 ngroups dstate, width - 1], the inputs of the convolution before position 0.
    return_final_conv_states: also return those after the last position, in the same shape.
    cu_seqlens: [number of sequences + 1], packed sequences as in `mamba_chunk_scan_combined`; the states that are
        taken and returned are then those of each sequence.
    attention_mask: [batch, seqlen], 0 for padding to the left of the tokens: it reaches neither convolution nor state.
    recompute: the backward pass computes the outputs of the convolution and of the norm again, so that zxbcdt and y
        are all that is kept; False: they are kept too.  torch.compile decides by itself.
    process_group: the ranks that share the sequence, as in `mamba_chunk_scan_combined`: zxbcdt is this rank's shard,
        and the convolution too goes on from the shard before.  Packed sequences as seq_idx; nothing is computed again.

    Returns: out [batch, seqlen, d_out or d_nonssm + d_ssm], and after it, in a tuple, what was asked for: the final
    states in state_dtype (default fp32), the final inputs of the convolution.

    Gradients reach every floating operand.  Under torch.autocast zxbcdt and the output projection take its dtype.
    Errors: ShapeError, DtypeError, OptionError, OperandError, and those of `mamba_chunk_scan_combined`.
    """
    if isinstance(zxbcdt, Tensor) and not zxbcdt.is_meta and torch.is_autocast_enabled(zxbcdt.device.type):
        device = zxbcdt.device.type
        dtype = torch.get_autocast_dtype(device)
        zxbcdt, outproj_weight, outproj_bias, initial_conv_states = (
            t if t is None or t.dtype is torch.float64 else t.to(dtype)
            for t in (zxbcdt, outproj_weight, outproj_bias, initial_conv_states)
        )
        with torch.autocast(device, enabled=False):
            return mamba_split_conv1d_scan_combined(
                zxbcdt, conv1d_weight, conv1d_bias, dt_bias, A, D, chunk_size, initial_states, seq_idx, dt_limit,
                return_final_states, activation, rmsnorm_weight, rmsnorm_eps, outproj_weight, outproj_bias, headdim,
                ngroups, norm_before_gate, state_dtype, initial_conv_states=initial_conv_states,
                return_final_conv_states=return_final_conv_states, cu_seqlens=cu_seqlens,
                attention_mask=attention_mask, recompute=recompute, process_group=process_group,
            )  # fmt: skip
    operands = Operands(
        zxbcdt, conv1d_weight, conv1d_bias, dt_bias, A, D, initial_states, rmsnorm_weight, outproj_weight,
        outproj_bias, initial_conv_states, seq_idx, cu_seqlens, attention_mask,
    )  # fmt: skip
    if process_group is None:
        sizes = check(operands, headdim, ngroups, activation)
    else:
        # what ranks need is imported where there are some
        from .ranks import told

        with told(process_group, zxbcdt):
            sizes = check(operands, headdim, ngroups, activation)
            if cu_seqlens is not None or attention_mask is not None:
                raise OptionError(
                    "with a process_group give seq_idx: cu_seqlens and attention_mask are those of one process"
                )
    if cu_seqlens is not None:
        operands = _packed(operands, return_final_states, return_final_conv_states)
    call = Split(
        *sizes,
        chunk_size=chunk_size,
        dt_limit=dt_limit,
        activation=activation is not None,
        eps=rmsnorm_eps,
        norm_before_gate=norm_before_gate,
        state_dtype=state_dtype,
        final_states=return_final_states,
        final_conv_states=return_final_conv_states,
        process_group=process_group,
    )
    if process_group is not None:
        operands = _after_shards(call, operands)
        recompute = False
    if recompute and not is_compiling() and _needs_gradient(operands):
        # what is made again for a backward pass ends where its last operands are there: before a product of torch's own
        alone = operands.outproj_weight is not None and memory.is_checkpointed()
        given = operands._replace(outproj_weight=None, outproj_bias=None) if alone else operands
        out, states, conv_states = split_gradient.Recompute.apply(call, *given)
        out = F.linear(out, outproj_weight, outproj_bias) if alone and outproj_weight is not None else out
    else:
        found = compose(call, operands)
        out, states, conv_states = found.out, found.states, found.conv_states
    wanted = [t for t, flag in ((states, return_final_states), (conv_states, return_final_conv_states)) if flag]
    return (out, *wanted) if wanted else out


def _after_shards(call: Split, given: Operands) -> Operands:
    """The call with the convolution's inputs before the shard, from the ranks that have them."""
    from .halo import halo

    initial = given.initial_conv_states
    before = halo(
        call.parts(given.zxbcdt)[2],
        given.conv1d_weight.shape[1],
        call.process_group,
        initial=None if initial is None else initial.mT,
        seq_idx=given.seq_idx,
    )
    return given._replace(initial_conv_states=before.mT)


def check(given: Operands, headdim: int | None, ngroups: int, activation: str | None) -> tuple[int, int, int, int, int]:
    """nheads, headdim, ngroups, dstate and d_nonssm of a call, whose shapes all fit each other.

    What is left to the scan and the convolution: the dtypes and devices of what they read, and the states' shapes.
    Errors: ShapeError, DtypeError, OptionError, OperandError.
    """
    for name, value in given._asdict().items():
        needed = name in ("zxbcdt", "conv1d_weight", "A")
        if not isinstance(value, Tensor) and (needed or value is not None):
            allowed = "a torch.Tensor" if needed else "a torch.Tensor or None"
            raise OperandError(f"{name} is a {type(value).__name__}; it must be {allowed}")
    zxbcdt, weight, A, D = given.zxbcdt, given.conv1d_weight, given.A, given.D
    if activation not in _ACTIVATIONS:
        raise OptionError(f"activation is {activation!r}; allowed are 'silu', 'swish' and None")
    if zxbcdt.dtype not in NAMES:
        raise DtypeError(f"zxbcdt is {zxbcdt.dtype}; allowed are {', '.join(NAMES.values())}: convert it with .to(...)")
    if zxbcdt.dim() != 3:
        _shape("zxbcdt", zxbcdt, "[batch, seqlen, 2 d_nonssm + 2 d_ssm + 2 ngroups dstate + nheads]")
    if A.dim() != 1:
        _shape("A", A, "[nheads]")
    nheads = A.shape[0]
    if D is not None and D.dim() == 2:
        if headdim is not None and headdim != D.shape[1]:
            raise ShapeError(f"headdim is {headdim}, D has {D.shape[1]} entries for each head; leave headdim out")
        headdim = D.shape[1]
    if headdim is None:
        raise OptionError("headdim is None; it must be given unless D is [nheads, headdim]")
    if ngroups < 1 or nheads % ngroups:
        raise ShapeError(f"nheads {nheads} is not divisible by ngroups {ngroups}; choose a divisor")
    d_ssm = nheads * headdim
    if weight.dim() != 2:
        _shape("conv1d_weight", weight, "[d_ssm + 2 ngroups dstate, width]")
    conv_dim = weight.shape[0]
    dstate, rest = divmod(conv_dim - d_ssm, 2 * ngroups)
    if dstate < 1 or rest:
        raise ShapeError(
            f"conv1d_weight has {conv_dim} channels; with nheads {nheads}, headdim {headdim} and ngroups {ngroups} "
            f"they must be {d_ssm} + {2 * ngroups} dstate"
        )
    least = d_ssm + conv_dim + nheads
    d_nonssm, rest = divmod(zxbcdt.shape[2] - least, 2)
    if d_nonssm < 0 or rest:
        raise ShapeError(
            f"zxbcdt has {zxbcdt.shape[2]} columns; they must be 2 d_nonssm + {least}, with d_ssm {d_ssm} for z, "
            f"{conv_dim} for x, B and C and nheads {nheads} for dt"
        )
    batch, seqlen = zxbcdt.shape[:2]
    for name, tensor, shape in (
        ("conv1d_bias", given.conv1d_bias, (conv_dim,)),
        ("rmsnorm_weight", given.rmsnorm_weight, (d_ssm,)),
        ("attention_mask", given.attention_mask, (batch, seqlen)),
    ):
        if tensor is not None and tensor.shape != shape:
            _shape(name, tensor, list(shape))
    outproj = given.outproj_weight
    if outproj is not None and (outproj.dim() != 2 or outproj.shape[1] != d_nonssm + d_ssm):
        _shape("outproj_weight", outproj, f"[d_out, d_nonssm + d_ssm] = [d_out, {d_nonssm + d_ssm}]")
    if given.outproj_bias is not None:
        if outproj is None:
            raise OptionError("outproj_bias was given without outproj_weight; give both or neither")
        if given.outproj_bias.shape != outproj.shape[:1]:
            _shape("outproj_bias", given.outproj_bias, [outproj.shape[0]])
    if given.cu_seqlens is not None and given.attention_mask is not None:
        raise OptionError("attention_mask and cu_seqlens were both given; packed sequences have no padding")
    return nheads, headdim, ngroups, dstate, d_nonssm


def _packed(given: Operands, final_states: bool, final_conv_states: bool) -> Operands:
    """With cu_seqlens alone, or seq_idx in its place where no sequence has states of its own."""
    cu_seqlens, seqlen = given.cu_seqlens, given.zxbcdt.shape[1]
    if given.zxbcdt.shape[0] != 1 or cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
        raise ShapeError(
            f"cu_seqlens has shape {list(cu_seqlens.shape)} and zxbcdt has batch {given.zxbcdt.shape[0]}; packed "
            "sequences are one row, and cu_seqlens is [number of sequences + 1]"
        )
    if not is_compiling():
        check_sequences(cu_seqlens, seqlen)
    each = (given.initial_states, given.initial_conv_states)
    if final_states or final_conv_states or any(t is not None and t.shape[0] > 1 for t in each):
        return given._replace(seq_idx=None)
    return given._replace(seq_idx=seq_idx_of(cu_seqlens, seqlen), cu_seqlens=None)


def _shape(name: str, tensor: Tensor, wanted: object) -> NoReturn:
    raise ShapeError(f"{name} has shape {list(tensor.shape)}; it must be {wanted}")


def _needs_gradient(operands: Operands) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in operands)
