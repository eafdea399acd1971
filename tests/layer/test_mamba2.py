"""The module: names and shapes of mamba_ssm, whole sequences and steps that agree, states, padding, packing, errors."""

from __future__ import annotations

import inspect
from math import inf

import pytest
import torch
from torch import Tensor

from ssdgen.runtime.errors import CacheError, OptionError, ShapeError
from ssdgen.runtime.inference import InferenceParams
from ssdgen.runtime.mamba2 import Mamba2
from tests.layer import plain

SMALL = {"d_model": 16, "d_state": 6, "headdim": 4, "expand": 2, "chunk_size": 8, "dtype": torch.float64}
# what changes the way a layer is computed
KINDS = {
    "base": {},
    "groups": {"ngroups": 4},
    "gated MLP": {"d_ssm": 20},
    "no norm": {"rmsnorm": False},
    "norm before the gate": {"norm_before_gate": True, "ngroups": 2},
    "D for each channel": {"D_has_hdim": True, "d_conv": 3},
    "biases, limits": {"bias": True, "conv_bias": False, "dt_limit": (0.01, 0.06)},
}


def layer(**options) -> Mamba2:
    """With parameters that are no constants."""
    made = Mamba2(**{**SMALL, "layer_idx": 0, **options})
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name in ("D", "norm.weight", "conv1d.bias", "in_proj.bias", "out_proj.bias"):
                parameter.copy_(torch.randn_like(parameter))
    # D is in fp32 whatever the dtype, as in mamba_ssm
    return made.double()


def exact(made: Mamba2, u: Tensor, **options) -> tuple[Tensor, Tensor, Tensor]:
    """out, ssm state and convolution inputs, by the steps in float64."""
    D = made.D.unflatten(0, (made.nheads, made.headdim)) if made.D_has_hdim else made.D
    return plain.split(
        made.in_proj(u), made.conv1d.weight.squeeze(1), made.conv1d.bias, made.dt_bias, -made.A_log.exp(), D,
        headdim=made.headdim, ngroups=made.ngroups, dt_limit=made.dt_limit,
        rmsnorm_weight=made.norm.weight if made.rmsnorm else None, rmsnorm_eps=1e-5,
        outproj_weight=made.out_proj.weight, outproj_bias=made.out_proj.bias,
        norm_before_gate=made.norm_before_gate, **options,
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_whole_sequences_and_steps_are_right(kind: str) -> None:
    """Prefill, a second piece of the prompt, then token by token: each as if it were one sequence."""
    made = layer(**KINDS[kind])
    u = torch.randn(2, 17, 16, dtype=torch.float64)
    wanted, states, inputs = exact(made, u)
    torch.testing.assert_close(made(u), wanted, rtol=1e-6, atol=1e-6)
    params = InferenceParams(max_seqlen=17, max_batch_size=2)
    found = []
    for start, end in [(0, 2), (2, 9), *((t, t + 1) for t in range(9, 17))]:
        found.append(made(u[:, start:end], inference_params=params))
        params.seqlen_offset = end
    torch.testing.assert_close(torch.cat(found, dim=1), wanted, rtol=1e-6, atol=1e-6)
    conv_state, ssm_state = params.key_value_memory_dict[0]
    torch.testing.assert_close(ssm_state, states, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(conv_state[..., 1:], inputs, rtol=1e-6, atol=1e-6)


def test_gradients_reach_every_parameter() -> None:
    made = layer(d_ssm=20, bias=True)
    u = torch.randn(2, 9, 16, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 9, 16, dtype=torch.float64)
    (made(u) * weights).sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in made.named_parameters()} | {"u": u.grad.clone()}
    made.zero_grad()
    u.grad = None
    (exact(made, u)[0] * weights).sum().backward()
    for name, wanted in [*((name, p.grad) for name, p in made.named_parameters()), ("u", u.grad)]:
        torch.testing.assert_close(found[name], wanted, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: name + text)


def test_names_shapes_and_signature_are_mamba_ssms() -> None:
    made = Mamba2(256, d_state=64, headdim=32, ngroups=2, d_ssm=448, bias=True)
    channels, heads = 448 + 2 * 2 * 64, 14
    assert {name: tuple(t.shape) for name, t in made.state_dict().items()} == {
        "dt_bias": (heads,),
        "A_log": (heads,),
        "D": (heads,),
        "in_proj.weight": (2 * 512 + 2 * 2 * 64 + heads, 256),
        "in_proj.bias": (2 * 512 + 2 * 2 * 64 + heads,),
        "conv1d.weight": (channels, 1, 4),
        "conv1d.bias": (channels,),
        "norm.weight": (448,),
        "out_proj.weight": (256, 512),
        "out_proj.bias": (256,),
    }
    assert all(getattr(made, name)._no_weight_decay for name in ("dt_bias", "A_log", "D"))
    low, high = torch.nn.functional.softplus(made.dt_bias.detach()).aminmax()
    assert 0.0009 < low and high < 0.11
    assert made.A_log.exp().min() >= 1 and made.A_log.exp().max() <= 16
    parameters = inspect.signature(Mamba2).parameters
    positional = {name: p.default for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert positional == {
        "d_model": inspect.Parameter.empty, "d_state": 128, "d_conv": 4, "conv_init": None, "expand": 2, "headdim": 64,
        "d_ssm": None, "ngroups": 1, "A_init_range": (1, 16), "D_has_hdim": False, "rmsnorm": True,
        "norm_before_gate": False, "dt_min": 0.001, "dt_max": 0.1, "dt_init_floor": 1e-4, "dt_limit": (0.0, inf),
        "bias": False, "conv_bias": True, "chunk_size": 256, "use_mem_eff_path": True, "layer_idx": None,
        "process_group": None, "sequence_parallel": True, "device": None, "dtype": None,
    }  # fmt: skip
    assert list(inspect.signature(made.forward).parameters)[:5] == [
        "u", "seqlen", "seq_idx", "cu_seqlens", "inference_params",
    ]  # fmt: skip
    assert list(inspect.signature(made.step).parameters) == ["hidden_states", "conv_state", "ssm_state"]
    conv_state, ssm_state = made.allocate_inference_cache(3, 100, dtype=torch.bfloat16)
    assert conv_state.shape == (3, channels, 4) and conv_state.stride(1) == 1
    assert ssm_state.shape == (3, heads, 32, 64) and ssm_state.dtype is torch.bfloat16


def test_rows_in_two_dimensions() -> None:
    made, u = layer(), torch.randn(2, 5, 16, dtype=torch.float64)
    assert torch.equal(made(u.flatten(0, 1), seqlen=5), made(u).flatten(0, 1))
    with pytest.raises(ShapeError, match="batch \\* seqlen"):
        made(u.flatten(0, 1), seqlen=3)


def test_padding_on_the_left_is_as_if_it_were_not_there() -> None:
    """Prefill with a mask and then steps, with a bias in the projection, which makes padding no zeros."""
    made = layer(bias=True)
    u = torch.randn(2, 12, 16, dtype=torch.float64)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, :5] = 0
    params = InferenceParams(max_seqlen=14, max_batch_size=2)
    found = [made(u, inference_params=params, attention_mask=mask)]
    more = torch.randn(2, 2, 16, dtype=torch.float64)
    for step in range(2):
        params.seqlen_offset = 12 + step
        found.append(made(more[:, step : step + 1], inference_params=params))
    out = torch.cat(found, dim=1)
    for row, pads in ((0, 0), (1, 5)):
        alone = torch.cat((u[row : row + 1, pads:], more[row : row + 1]), dim=1)
        torch.testing.assert_close(out[row : row + 1, pads:], exact(made, alone)[0], rtol=1e-6, atol=1e-6)
    short = layer()
    params = InferenceParams(max_seqlen=5, max_batch_size=2)
    short(u[:, :2], inference_params=params, attention_mask=torch.tensor([[1, 1], [0, 1]]))
    assert params.key_value_memory_dict[0][0][1, :, :3].eq(0).all()


def test_packed_sequences_with_states_of_their_own() -> None:
    """A packed prefill, a packed second piece whose lengths are below the convolution's width, then steps."""
    made = layer(ngroups=2)
    lengths, more = [1, 7, 4], [2, 1, 5]
    rows = [torch.randn(1, a + b + 1, 16, dtype=torch.float64) for a, b in zip(lengths, more, strict=True)]
    params = InferenceParams(max_seqlen=32, max_batch_size=3)

    def packed(begin: list[int], counts: list[int]) -> Tensor:
        u = torch.cat([row[:, b : b + n] for row, b, n in zip(rows, begin, counts, strict=True)], dim=1)
        cu_seqlens = torch.tensor([0, *counts]).cumsum(0)
        return made(u, cu_seqlens=cu_seqlens, inference_params=params)

    first = packed([0, 0, 0], lengths)
    params.seqlen_offset = 1
    second = packed(lengths, more)
    last = made(torch.cat([row[:, -1:] for row in rows]), inference_params=params)
    for index, row in enumerate(rows):
        wanted, states, _ = exact(made, row)
        pieces = [
            first[:, sum(lengths[:index]) :][:, : lengths[index]],
            second[:, sum(more[:index]) :][:, : more[index]],
        ]
        torch.testing.assert_close(torch.cat([*pieces, last[index : index + 1]], 1), wanted, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(params.key_value_memory_dict[0][1][index : index + 1], states, rtol=1e-6, atol=1e-6)


def test_part_of_a_batch_uses_part_of_the_cache() -> None:
    made, u = layer(), torch.randn(1, 6, 16, dtype=torch.float64)
    params = InferenceParams(max_seqlen=6, max_batch_size=3, batch_size_offset=1)
    made(u, inference_params=params)
    _, states, _ = exact(made, u)
    conv_state, ssm_state = params.key_value_memory_dict[0]
    torch.testing.assert_close(ssm_state[1:2], states, rtol=1e-6, atol=1e-6)
    assert ssm_state[[0, 2]].eq(0).all() and conv_state[[0, 2]].eq(0).all()
    params.reset(8, 3)
    assert (params.seqlen_offset, params.max_seqlen) == (0, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    made = layer().to(dtype)
    u = torch.randn(2, 12, 16).to(dtype)
    wanted = exact(made.double(), u.double())[0]
    params = InferenceParams(max_seqlen=12, max_batch_size=2)
    made = made.to(dtype)
    found = [made(u[:, :8], inference_params=params)]
    for t in range(8, 12):
        params.seqlen_offset = t
        found.append(made(u[:, t : t + 1], inference_params=params))
    for out in (made(u), torch.cat(found, 1)):
        assert out.dtype is dtype and (out.double() - wanted).norm() < 5e-2 * wanted.norm()


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        ("rows", "rows 0 to 4 were asked for, and the cache is for 3"),
        ("tokens", "9 tokens after 6 are more than max_seqlen 14"),
        ("no states", "layer 0 has no states"),
        ("short convolution", "conv_state has shape \\[3, 44, 2\\]; it must be .* 3 or more"),
        ("other state", "ssm_state has shape \\[3, 8, 4, 7\\]"),
        ("no layer_idx", "no layer_idx"),
    ],
)
def test_a_cache_that_does_not_fit_stays_as_it_is(mistake: str, words: str) -> None:
    made = layer()
    params = InferenceParams(max_seqlen=14, max_batch_size=3, seqlen_offset=6)
    conv_state, ssm_state = (t.normal_() for t in made.allocate_inference_cache(3, 14))
    if mistake == "short convolution":
        conv_state = conv_state[..., :2]
    if mistake == "other state":
        ssm_state = torch.randn(3, 8, 4, 7)
    if mistake != "no states":
        params.key_value_memory_dict[0] = (conv_state, ssm_state)
    if mistake == "no layer_idx":
        made.layer_idx = None
    before = conv_state.clone(), ssm_state.clone()
    rows, tokens = (4 if mistake == "rows" else 3), (9 if mistake == "tokens" else 1)
    with pytest.raises(CacheError, match=words):
        made(torch.randn(rows, tokens, 16, dtype=torch.float64), inference_params=params)
    assert torch.equal(before[0], conv_state) and torch.equal(before[1], ssm_state)
    assert params.seqlen_offset == 6 and (mistake == "no states") == (not params.key_value_memory_dict)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"headdim": 5}, ShapeError, "d_ssm is 32; it must be a multiple of headdim 5"),
        ({"d_ssm": 36}, ShapeError, "at most expand d_model = 32"),
        ({"ngroups": 3}, ShapeError, "nheads 8 is not divisible by ngroups 3"),
        ({"process_group": object()}, OptionError, "process_group"),
    ],
)
def test_sizes_that_do_not_fit(options: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Mamba2(**{**SMALL, **options})


def test_inputs_that_do_not_fit() -> None:
    made = layer()
    with pytest.raises(ShapeError, match="d_model 16"):
        made(torch.randn(2, 3, 15, dtype=torch.float64))
    states = made.allocate_inference_cache(2, 8)
    with pytest.raises(ShapeError, match="a step takes one token"):
        made.step(torch.randn(2, 2, 16, dtype=torch.float64), *states)
