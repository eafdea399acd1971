"""Step sizes and decay rates at the ends of their range, and what is not a number."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssdgen.spec.layer import Layer
from tests.parity import settings, tolerances
from tests.parity.cases import Call, Case, arguments, draw, of_call

EACH = [pytest.param(name, marks=settings.MARKS[name]) for name in settings.NAMES]
STEPS = (0.0, 1e-8, 20.0, 100.0)


def changed(case: Case, **operands: torch.Tensor) -> Call:
    """The case's arguments with some of them replaced."""
    call = draw(case)
    return Call({**call.operands, **operands}, call.options)


def verify(name: str, case: Case, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = settings.enter(name, monkeypatch)
    y, final = setting.call(**arguments(case, call.on(setting.device)))
    exact = of_call(call, Layer(dt_softplus=case.has("dt_softplus")))
    allowed = tolerances.limit(case.dtype, tensor_cores=name == "gpu")
    assert torch.isfinite(y).all() and torch.isfinite(final).all()
    tolerances.check("y", y, exact.y, allowed)
    tolerances.check("final_states", final, exact.final_states, allowed)


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("A", [-1e-4, -100.0])
@pytest.mark.parametrize("step", [*STEPS, "mixed"])
def test_extreme_steps_and_rates(name: str, step: float | str, A: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Running sums of up to a million, differences that cancel, decays that underflow: right and finite."""
    case = Case(batch=1, seqlen=130, nheads=2, options=("D",))
    drawn = draw(case).operands["dt"]
    if step == "mixed":
        dt = torch.tensor(STEPS)[torch.randint(4, drawn.shape, generator=torch.Generator().manual_seed(1))]
    else:
        dt = torch.full_like(drawn, float(step))
    verify(name, case, changed(case, dt=dt, A=torch.full((2,), A)), monkeypatch)


@pytest.mark.parametrize("name", EACH)
def test_softplus_at_both_ends(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """exp(dt) overflows at 89 and is lost beside 1 at -17; the steps are still right."""
    case = Case(batch=1, nheads=2, options=("dt_softplus",))
    ends = torch.tensor([-80.0, -20.0, -17.0, -5.0, 0.0, 5.0, 17.0, 20.0, 88.0, 100.0])
    dt = ends[torch.arange(65) % 10][None, :, None].expand(1, 65, 2)
    verify(name, case, changed(case, dt=dt, A=torch.tensor([-0.01, -1.0])), monkeypatch)


@pytest.mark.parametrize("name", EACH)
def test_small_steps_alone_keep_their_digits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every step about 2e-9 the outputs are of that size, and as exact as any other."""
    case = Case(batch=1, nheads=2, options=("dt_softplus",))
    dt = torch.full((1, 65, 2), -20.0) + torch.arange(65)[None, :, None] / 100
    verify(name, case, changed(case, dt=dt), monkeypatch)


@pytest.mark.parametrize("name", EACH)
def test_a_positive_rate_acts_as_no_decay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the public call documents: exponents are clamped, so the state never grows."""
    setting = settings.enter(name, monkeypatch)
    case = Case()
    rates = torch.tensor([3.0, 100.0, 0.0])
    grown = setting.call(**arguments(case, changed(case, A=rates).on(setting.device)))
    flat = setting.call(**arguments(case, changed(case, A=rates.clamp(max=0)).on(setting.device)))
    exact = of_call(changed(case, A=rates), Layer())
    allowed = tolerances.limit("float32", tensor_cores=name == "gpu")
    for what, got, none, wanted in zip(("y", "final"), grown, flat, (exact.y, exact.final_states), strict=True):
        tolerances.check(what, got, wanted, allowed)
        torch.testing.assert_close(got, none, rtol=0, atol=2e-5 * float(none.abs().max()))


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("operand", ["x", "dt", "B", "C", "z", "D", "A", "initial_states"])
def test_nan_in_nan_out_and_no_further(name: str, operand: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A NaN of one token of one head comes out wherever the recurrence says, and in no chunk, head or row before it.

    Inside its chunk a NaN may also reach earlier rows: zero times NaN is NaN on a matrix unit.
    """
    setting = settings.enter(name, monkeypatch)
    case = Case(seqlen=350, options=("D", "z", "initial_states"))
    call = draw(case)
    tensor = {**call.operands, **call.options}[operand]
    at = {"x": (1, 300, 2, 5), "z": (1, 300, 2, 5), "dt": (1, 300, 2), "B": (1, 300, 0, 3), "C": (1, 300, 0, 3)}
    tensor[at.get(operand, (1,))] = torch.nan
    with np.errstate(invalid="ignore"):
        exact = of_call(call, Layer())
    y, final = setting.call(**arguments(case, call.on(setting.device)))
    lost = np.isnan(exact.y)
    assert lost.any() and torch.isnan(y).cpu().numpy()[lost].all(), "a NaN was swallowed"
    assert torch.isnan(final).cpu().numpy()[np.isnan(exact.final_states)].all()
    if operand in at:
        # 256 is the end of a chunk, however long the chunks of the config that was chosen are
        assert torch.isfinite(y[:, :256]).all() and torch.isfinite(y[0]).all()
        tolerances.check(
            "y before", y[:, :256], exact.y[:, :256], tolerances.limit("float32", tensor_cores=name == "gpu")
        )
    if operand in ("x", "dt", "z"):
        assert torch.isfinite(y[:, :, :2]).all(), "a NaN reached another head"
