"""The public functions as modules without state, as the `kernels` package puts them into models.  -> public functions

Their forward methods take what transformers' functions of the same task take, parameter for parameter: `kernels`
compares the two.  What a model hands on beyond that is left out, save what says where packed sequences begin.
"""

from __future__ import annotations

from math import inf

from torch import Tensor, nn

from . import conv, decode, interface, norm, split


class causal_conv1d_fn(nn.Module):
    can_torch_compile = True

    def forward(
        self, hidden_states: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, **kwargs
    ):
        return conv.causal_conv1d_fn(hidden_states, weight, bias, activation=activation, **_packing(kwargs))


class causal_conv1d_update(nn.Module):
    can_torch_compile = True
    has_backward = False

    def forward(
        self,
        hidden_states: Tensor,
        conv_state: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: str | None = None,
    ):
        return conv.causal_conv1d_update(hidden_states, conv_state, weight, bias, activation)


class selective_state_update(nn.Module):
    can_torch_compile = True
    has_backward = False

    def forward(
        self,
        state: Tensor,
        hidden_states: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None = None,
        dt_bias: Tensor | None = None,
        dt_softplus: bool = False,
        z: Tensor | None = None,
        **kwargs,
    ):
        return decode.selective_state_update(state, hidden_states, dt, A, B, C, D, z, dt_bias, dt_softplus)


class mamba_chunk_scan_combined(nn.Module):
    can_torch_compile = True

    def forward(
        self,
        hidden_states: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        chunk_size: int,
        D: Tensor | None = None,
        dt_bias: Tensor | None = None,
        initial_states: Tensor | None = None,
        dt_softplus: bool = False,
        dt_limit: tuple[float, float] = (0.0, inf),
        return_final_states: bool = False,
        **kwargs,
    ):
        return interface.mamba_chunk_scan_combined(
            hidden_states,
            dt,
            A,
            B,
            C,
            chunk_size,
            D,
            kwargs.get("z"),
            dt_bias,
            initial_states,
            dt_softplus=dt_softplus,
            dt_limit=dt_limit,
            return_final_states=return_final_states,
            **_packing(kwargs),
        )


class mamba_split_conv1d_scan_combined(nn.Module):
    can_torch_compile = True

    def forward(
        self,
        zxbcdt: Tensor,
        conv1d_weight: Tensor,
        conv1d_bias: Tensor | None,
        dt_bias: Tensor,
        A: Tensor,
        D: Tensor,
        chunk_size: int,
        initial_states: Tensor | None = None,
        dt_limit: tuple[float, float] = (0.0, inf),
        return_final_states: bool = False,
        activation: str = "silu",
        rmsnorm_weight: Tensor | None = None,
        rmsnorm_eps: float = 1e-6,
        outproj_weight: Tensor | None = None,
        outproj_bias: Tensor | None = None,
        headdim: int | None = None,
        ngroups: int = 1,
        norm_before_gate: bool = True,
        **kwargs,
    ):
        return split.mamba_split_conv1d_scan_combined(
            zxbcdt,
            conv1d_weight,
            conv1d_bias,
            dt_bias,
            A,
            D,
            chunk_size,
            initial_states,
            dt_limit=dt_limit,
            return_final_states=return_final_states,
            activation=activation,
            rmsnorm_weight=rmsnorm_weight,
            rmsnorm_eps=rmsnorm_eps,
            outproj_weight=outproj_weight,
            outproj_bias=outproj_bias,
            headdim=headdim,
            ngroups=ngroups,
            norm_before_gate=norm_before_gate,
            **_packing(kwargs),
        )


class RMSNorm(nn.Module):
    """For modules with `weight` and `variance_epsilon`."""

    can_torch_compile = True

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        return norm.rmsnorm_fn(hidden_states, self.weight, None, eps=self.variance_epsilon)


def _packing(kwargs: dict) -> dict:
    return {"seq_idx": kwargs.get("seq_idx"), "cu_seqlens": kwargs.get("cu_seqlens")}
