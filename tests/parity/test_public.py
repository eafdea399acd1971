"""The public call equals the float64 oracle: every size, option and dtype, in PyTorch, interpreted and on a GPU."""

from __future__ import annotations

import pytest
import torch

from tests.parity import settings
from tests.parity.cases import ALL, BASE, Case, arguments, compare, draw


@pytest.mark.parametrize(("name", "case"), settings.parameters(ALL))
def test_equals_float64(name: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = settings.enter(name, monkeypatch)
    y, final, *varlen = setting.call(**arguments(case, draw(case).on(setting.device)))
    compare(case, y, final, varlen[0] if varlen else None, tensor_cores=name == "gpu")


@pytest.mark.parametrize("name", [pytest.param(name, marks=settings.MARKS[name]) for name in settings.NAMES])
def test_what_is_returned(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One tensor, or a tuple with what was asked for, in the order of mamba_ssm; the same numbers each time."""
    setting = settings.enter(name, monkeypatch)
    call = draw(BASE).on(setting.device)
    alone = setting.call(**call.operands, chunk_size=64)
    assert isinstance(alone, torch.Tensor)
    y, final = setting.call(**call.operands, chunk_size=64, return_final_states=True)
    assert torch.equal(y, alone) and final.dtype == torch.float32
    packed = Case(batch=1, options=("cu_seqlens",))
    call = draw(packed).on(setting.device)
    y, final, varlen = setting.call(**arguments(packed, call))
    assert torch.equal(final, varlen[-1:])
    only = setting.call(**call.operands, **call.options, chunk_size=64, return_varlen_states=True)
    assert len(only) == 2 and torch.equal(only[1], varlen) and torch.equal(only[0], y)
    pair = setting.call(**call.operands, **call.options, chunk_size=64, return_final_states=True)
    assert len(pair) == 2 and torch.equal(pair[1], final)


@pytest.mark.parametrize("name", [pytest.param(name, marks=settings.MARKS[name]) for name in settings.NAMES])
def test_arguments_are_left_as_they_were(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = settings.enter(name, monkeypatch)
    case = Case(options=("D", "z", "dt_bias", "dt_softplus", "initial_states", "seq_idx", "strided"))
    call = draw(case).on(setting.device)
    before = {k: t.clone() for k, t in {**call.operands, **call.options}.items() if torch.is_tensor(t)}
    setting.call(**arguments(case, call))
    for k, was in before.items():
        assert torch.equal({**call.operands, **call.options}[k], was), k


@pytest.mark.parametrize("name", [pytest.param(name, marks=settings.MARKS[name]) for name in settings.NAMES])
def test_any_strides(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turned around in memory, so that no last stride is 1; expanded, so that strides are 0."""
    setting = settings.enter(name, monkeypatch)
    case = Case(options=("D_headdim", "z", "initial_states", "dt_bias", "seq_idx"))
    call = draw(case).on(setting.device)
    turned = arguments(case, call)
    for k, tensor in turned.items():
        if torch.is_tensor(tensor) and tensor.dim() > 1:
            turned[k] = tensor.transpose(-1, 0).contiguous().transpose(-1, 0)
            assert turned[k].stride(-1) != 1
    y, final = setting.call(**turned)
    compare(case, y, final, None, tensor_cores=name == "gpu")

    # one row of B for all tokens, one step size for all heads, every second bias
    shared = Case(options=("dt_bias",))
    call = draw(shared).on(setting.device)
    one = {
        **arguments(shared, call),
        "B": call.operands["B"][:, :1].expand_as(call.operands["B"]),
        "dt": call.operands["dt"][:, :, :1].expand_as(call.operands["dt"]),
        "dt_bias": call.options["dt_bias"].repeat_interleave(2)[::2],
    }
    copied = {k: t.contiguous() if torch.is_tensor(t) else t for k, t in one.items()}
    for found, expected in zip(setting.call(**one), setting.call(**copied), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [pytest.param(name, marks=settings.MARKS[name]) for name in settings.NAMES])
def test_two_halves_are_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state that leaves the first half, given to the second one, goes on where it stopped."""
    setting = settings.enter(name, monkeypatch)
    case = Case(options=("D", "dt_bias", "dt_softplus"))
    call = draw(case).on(setting.device)
    ys, state = [], None
    for part in (slice(0, 33), slice(33, None)):
        tokens = {k: t if k == "A" else t[:, part] for k, t in call.operands.items()}
        y, state = setting.call(**tokens, **call.options, chunk_size=64, initial_states=state, return_final_states=True)
        ys.append(y)
    compare(case, torch.cat(ys, dim=1), state, None, tensor_cores=name == "gpu")


@pytest.mark.parametrize("name", ["fallback", pytest.param("gpu", marks=pytest.mark.gpu)])
def test_no_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of 0 launches nothing, anywhere."""
    setting = settings.enter(name, monkeypatch)
    call = draw(BASE).on(setting.device)
    empty = {k: t if k == "A" else t[:0] for k, t in call.operands.items()}
    import ssdgen.mamba2_ops as ops

    y, final = ops.mamba_chunk_scan_combined(**empty, chunk_size=64, return_final_states=True)
    assert y.shape == (0, 65, 3, 16) and final.shape == (0, 3, 16, 16) and not setting.launched
