"""The Mamba-2 layer as a module, with mamba_ssm's names and shapes.  -> language_model, models of others

    from mamba2_ops import Mamba2          # instead of: from mamba_ssm import Mamba2

Its parameters are those of mamba_ssm's module of this name: checkpoints load strictly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .conv import causal_conv1d_update, causal_conv1d_varlen_states
from .decode import selective_state_update
from .errors import OptionError, ShapeError
from .inference import InferenceParams, check_states, states_of
from .norm import RMSNorm
from .split import mamba_split_conv1d_scan_combined
from .split_forward import swiglu

if TYPE_CHECKING:
    from torch.distributed import DeviceMesh, ProcessGroup


class Mamba2(nn.Module):
    """in_proj, convolution, scan, gated norm, out_proj.

    d_model: width of input and output.  d_state: dstate.  d_conv: width of the convolution, 2 to 4.
    conv_init: its weights are drawn from +- this; None: as Conv1d does.
    expand: d_inner = expand d_model.  headdim, ngroups: as in the scan.
    d_ssm: channels that go through the scan, a multiple of headdim; the rest of d_inner is a gated MLP.  None: all.
    A_init_range: A is drawn from minus this.  D_has_hdim: an entry of D for each channel, not each head.
    rmsnorm: a gated norm over each group of d_ssm / ngroups behind the scan.  norm_before_gate: see `rmsnorm_fn`.
    norm_eps: added to its mean of squares.
    dt_min, dt_max, dt_init_floor: step sizes at the start.  dt_limit: bounds of the step size, in decoding too.
    bias, conv_bias: of the projections and the convolution.
    chunk_size: see the scan.  use_mem_eff_path: compute two steps again in the backward pass instead of keeping them.
    layer_idx: the key of this layer's states in a cache.
    process_group, sequence_parallel: taken for the sake of mamba_ssm's signature; only None.
    device, dtype: of the parameters.

    Errors: OptionError, ShapeError.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        conv_init: float | None = None,
        expand: int = 2,
        headdim: int = 64,
        d_ssm: int | None = None,
        ngroups: int = 1,
        A_init_range: tuple[float, float] = (1, 16),
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: tuple[float, float] = (0.0, inf),
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
        use_mem_eff_path: bool = True,
        layer_idx: int | None = None,
        process_group: None = None,
        sequence_parallel: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if process_group is not None:
            raise OptionError(
                "process_group was given, which splits heads over ranks in mamba_ssm: use tensor_parallel.SplitHeads; "
                "to cut the sequence, give process_group to forward"
            )
        self.d_model, self.d_state, self.d_conv = d_model, d_state, d_conv
        self.expand = expand
        self.d_inner = int(expand * d_model)
        self.headdim, self.ngroups = headdim, ngroups
        self.d_ssm = self.d_inner if d_ssm is None else d_ssm
        if self.d_ssm % headdim or not 0 < self.d_ssm <= self.d_inner:
            raise ShapeError(
                f"d_ssm is {self.d_ssm}; it must be a multiple of headdim {headdim}, and at most expand d_model = "
                f"{self.d_inner}"
            )
        self.nheads = self.d_ssm // headdim
        if self.nheads % ngroups:
            raise ShapeError(f"nheads {self.nheads} is not divisible by ngroups {ngroups}; choose a divisor")
        self.D_has_hdim, self.rmsnorm, self.norm_before_gate = D_has_hdim, rmsnorm, norm_before_gate
        self.dt_limit = tuple(dt_limit)
        self.activation = "silu"
        self.chunk_size, self.use_mem_eff_path, self.layer_idx = chunk_size, use_mem_eff_path, layer_idx

        made = {"device": device, "dtype": dtype}
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner + 2 * ngroups * d_state + self.nheads, bias=bias, **made)
        channels = self.conv_dim
        self.conv1d = nn.Conv1d(channels, channels, d_conv, groups=channels, padding=d_conv - 1, bias=conv_bias, **made)
        if conv_init is not None:
            nn.init.uniform_(self.conv1d.weight, -conv_init, conv_init)
        self.dt_bias = nn.Parameter(
            _inverse_softplus(self._first_steps(dt_min, dt_max, dt_init_floor, device)).to(dtype=dtype)
        )
        A = torch.empty(self.nheads, dtype=torch.float32, device=device).uniform_(*A_init_range)
        self.A_log = nn.Parameter(A.log().to(dtype=dtype))
        self.D = nn.Parameter(torch.ones(self.d_ssm if D_has_hdim else self.nheads, device=device))
        for parameter in (self.dt_bias, self.A_log, self.D):
            # optimizers of mamba_ssm's users look for this
            parameter._no_weight_decay = True  # type: ignore[attr-defined]
        if rmsnorm:
            self.norm = RMSNorm(
                self.d_ssm, eps=norm_eps, norm_before_gate=norm_before_gate, group_size=self.d_ssm // ngroups, **made
            )
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **made)
        self._fixed_A: Tensor | None = None

    @property
    def conv_dim(self) -> int:
        """Channels of the convolution: x, B and C."""
        return self.d_ssm + 2 * self.ngroups * self.d_state

    def _first_steps(self, low: float, high: float, floor: float, device) -> Tensor:
        drawn = torch.rand(self.nheads, device=device)
        return torch.exp(drawn * (math.log(high) - math.log(low)) + math.log(low)).clamp(min=floor)

    def forward(
        self,
        u: Tensor,
        seqlen: int | None = None,
        seq_idx: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        inference_params: InferenceParams | None = None,
        *,
        attention_mask: Tensor | None = None,
        process_group: ProcessGroup | DeviceMesh | None = None,
    ) -> Tensor:
        """The layer on whole sequences; with inference_params also on what follows them.

        u: [batch, seqlen, d_model], or [batch * seqlen, d_model] with seqlen given.
        seq_idx: [batch, seqlen], int32; cu_seqlens: [number of sequences + 1]: packed sequences, as in the scan.
        inference_params: where the states of this layer (layer_idx) are kept; made there when they are missing.  With
            a seqlen_offset above 0 the call goes on from them, with one token or many.  They are written last.
        attention_mask: [batch, seqlen], 0 for padding to the left of the tokens.
        process_group: the ranks that share the sequence, of which u is this rank's shard (`parallel`).

        Returns: the shape of u.
        Errors: ShapeError, OptionError, CacheError (the states do not fit; they are then untouched).
        """
        flat = seqlen is not None
        if process_group is None:
            u = self._rows(u, seqlen)
        else:
            from .ranks import told

            with told(process_group, u):
                u = self._rows(u, seqlen)
                if inference_params is not None:
                    raise OptionError(
                        "inference_params with a process_group: states are kept by one process; leave one out"
                    )
        conv_state = ssm_state = None
        going_on = False
        if inference_params is not None:
            rows = u.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
            # of packed sequences each has its own length, which only the device knows
            tokens = u.shape[1] if cu_seqlens is None else 1
            conv_state, ssm_state = states_of(inference_params, self, rows, tokens)
            going_on = inference_params.seqlen_offset > 0
        if going_on and u.shape[1] == 1 and cu_seqlens is None:
            return self.step(u, conv_state, ssm_state)[0].flatten(0, 1 if flat else 0)

        zxbcdt = self.in_proj(u)
        found = mamba_split_conv1d_scan_combined(
            zxbcdt,
            self.conv1d.weight.squeeze(1),
            self.conv1d.bias,
            self.dt_bias,
            self._A(),
            self._D(),
            self.chunk_size,
            initial_states=ssm_state if going_on else None,
            seq_idx=seq_idx,
            dt_limit=self.dt_limit,
            return_final_states=ssm_state is not None,
            activation=self.activation,
            rmsnorm_weight=self.norm.weight if self.rmsnorm else None,
            rmsnorm_eps=self.norm.eps if self.rmsnorm else 1e-6,
            outproj_weight=self.out_proj.weight,
            outproj_bias=self.out_proj.bias,
            headdim=self.headdim,
            ngroups=self.ngroups,
            norm_before_gate=self.norm_before_gate,
            initial_conv_states=conv_state[..., 1 - self.d_conv :] if conv_state is not None and going_on else None,
            cu_seqlens=cu_seqlens,
            attention_mask=attention_mask,
            recompute=self.use_mem_eff_path,
            process_group=process_group,
        )
        if conv_state is None or ssm_state is None:
            return found.flatten(0, 1) if flat else found
        out, states = found
        inputs = self._parts(zxbcdt)[3]
        with torch.no_grad():
            ssm_state.copy_(states)
            self._keep(inputs, conv_state, cu_seqlens, attention_mask, going_on)
        return out.flatten(0, 1) if flat else out

    def _rows(self, u: Tensor, seqlen: int | None) -> Tensor:
        """The layer's input as [batch, seqlen, d_model].  Errors: ShapeError."""
        if seqlen is not None:
            if u.dim() != 2 or u.shape[0] % seqlen:
                raise ShapeError(
                    f"u has shape {list(u.shape)}; with seqlen {seqlen} it must be [batch * seqlen, d_model]"
                )
            u = u.unflatten(0, (-1, seqlen))
        if u.dim() != 3 or u.shape[2] != self.d_model:
            raise ShapeError(
                f"u has shape {list(u.shape)}; it must be [batch, seqlen, d_model] with d_model {self.d_model}"
            )
        return u

    def _keep(self, inputs: Tensor, conv_state: Tensor, cu_seqlens, attention_mask, going_on: bool) -> None:
        """The last inputs of the convolution, [batch, seqlen, conv_dim], as the next step will want them."""
        size = conv_state.shape[2]
        if cu_seqlens is not None:
            last = causal_conv1d_varlen_states(inputs.squeeze(0), cu_seqlens, size)
            if going_on:
                # of a sequence with few new tokens the older ones are still there
                lengths = cu_seqlens.diff().clamp(max=size)[:, None]
                columns = torch.arange(size, device=lengths.device) + lengths
                old = conv_state.gather(2, columns.clamp(max=size - 1).unsqueeze(1).expand_as(conv_state))
                last = torch.where((columns < size).unsqueeze(1), old, last)
        else:
            last = inputs[:, -size:].mT
            if attention_mask is not None:
                last = last.masked_fill((attention_mask[:, -size:] == 0).unsqueeze(1), 0)
            missing = size - last.shape[2]
            if missing > 0:
                before = conv_state[..., -missing:] if going_on else last.new_zeros(*last.shape[:2], missing)
                last = torch.cat((before, last), dim=2)
        conv_state.copy_(last)

    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One token for each row; both states are updated in place.

        hidden_states: [batch, 1, d_model].  conv_state: [batch, conv_dim, >= d_conv - 1], the last inputs of the
        convolution.  ssm_state: [batch, nheads, headdim, d_state].

        Returns: out [batch, 1, d_model], and the two states.
        Errors: ShapeError, CacheError, before any state is touched.
        """
        if hidden_states.dim() != 3 or hidden_states.shape[1:] != (1, self.d_model):
            raise ShapeError(
                f"hidden_states has shape {list(hidden_states.shape)}; a step takes one token, [batch, 1, d_model] "
                f"with d_model {self.d_model}; more go through forward with inference_params"
            )
        check_states(self, conv_state, ssm_state, hidden_states.shape[0])
        zxbcdt = self.in_proj(hidden_states.squeeze(1))
        z0, x0, z, xBC, dt = self._parts(zxbcdt)
        xBC = causal_conv1d_update(xBC, conv_state, self.conv1d.weight.squeeze(1), self.conv1d.bias, self.activation)
        d_state = self.ngroups * self.d_state
        x, B, C = xBC.split((self.d_ssm, d_state, d_state), dim=-1)
        heads, groups = (self.nheads, self.headdim), (self.ngroups, self.d_state)
        y = selective_state_update(
            ssm_state,
            x.unflatten(-1, heads),
            dt,
            self._A(),
            B.unflatten(-1, groups),
            C.unflatten(-1, groups),
            self._D(),
            z=None if self.rmsnorm else z.unflatten(-1, heads),
            dt_bias=self.dt_bias,
            dt_softplus=True,
            dt_limit=self.dt_limit,
        ).flatten(-2)
        if self.rmsnorm:
            y = self.norm(y, z)
        if z0.shape[-1]:
            y = torch.cat((swiglu(z0, x0), y), dim=-1)
        return self.out_proj(y).unsqueeze(1), conv_state, ssm_state

    def allocate_inference_cache(
        self,
        batch_size: int,
        max_seqlen: int,
        dtype: torch.dtype | None = None,
        *,
        state_dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Zero states of so many rows: conv_state [batch_size, conv_dim, d_conv], ssm_state [batch_size, nheads,
        headdim, d_state].

        max_seqlen: not needed, since states do not grow.  dtype: of both, default that of the parameters;
        state_dtype: of ssm_state alone.
        """
        device = self.out_proj.weight.device
        conv_state = torch.zeros(
            batch_size, self.d_conv, self.conv_dim, device=device, dtype=dtype or self.conv1d.weight.dtype
        ).mT
        ssm_state = torch.zeros(
            batch_size, self.nheads, self.headdim, self.d_state, device=device,
            dtype=state_dtype or dtype or self.in_proj.weight.dtype,
        )  # fmt: skip
        return conv_state, ssm_state

    def _A(self) -> Tensor:
        if self._fixed_A is not None:
            return self._fixed_A
        # in fp32: exp of a 16-bit A_log may be infinite
        return -torch.exp(self.A_log.float())

    def _D(self) -> Tensor:
        return self.D.unflatten(0, (self.nheads, self.headdim)) if self.D_has_hdim else self.D

    def _parts(self, zxbcdt: Tensor) -> tuple[Tensor, ...]:
        """z0, x0, z, xBC and dt."""
        d_mlp = self.d_inner - self.d_ssm
        return zxbcdt.split((d_mlp, d_mlp, self.d_ssm, self.conv_dim, self.nheads), dim=-1)


@contextmanager
def fixed_parameters(model: nn.Module) -> Iterator[None]:
    """Inside, no parameter changes: what the layers make of them alone is made once, which is three launches a step."""
    layers = [module for module in model.modules() if isinstance(module, Mamba2)]
    try:
        for layer in layers:
            layer._fixed_A = layer._A()
        yield
    finally:
        for layer in layers:
            layer._fixed_A = None


def _inverse_softplus(dt: Tensor) -> Tensor:
    return dt + torch.log(-torch.expm1(-dt))
