"""Every schedule and every value of every axis of the search space computes the same thing, with all options.

Interpreted here, with small chunks so that short sequences have many; the same on a GPU, compiled.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from triton.runtime.errors import OutOfResources

import ssdgen.mamba2_ops as ops
from ssdgen.emit.package import FUNCTIONS
from ssdgen.mamba2_ops import kernels, select
from ssdgen.mamba2_ops.defaults import default_config
from ssdgen.mamba2_ops.errors import SsdWarning
from ssdgen.mamba2_ops.launchers import forward as launcher
from ssdgen.mamba2_ops.problem import Problem as CallProblem
from ssdgen.plan import catalogue, parts, space
from ssdgen.plan.schedules import diagonal
from ssdgen.spec.layer import Layer
from tests.parity import configs, settings
from tests.parity import test_consumers as consumers
from tests.parity.cases import ALONE, DTYPES, PACKED, TOGETHER, Case, arguments, compare, draw
from tests.parity.configs import H200

DEVICES = [
    pytest.param("cpu", marks=pytest.mark.interpreter, id="interpreter"),
    pytest.param("cuda", marks=pytest.mark.gpu, id="gpu"),
]
# heads that programs can share out by 2 and 4
SMALL = Case(batch=1, seqlen=50, nheads=4, options=("D", "z", "initial_states", "seq_idx"))
# two tiles of headdim, of dstate, of both
ODD = [replace(SMALL, nheads=1, headdim=p, dstate=n) for p, n in ((80, 16), (16, 96), (80, 96))]
# states by rows of headdim, with one tile of dstate and with two
ROWS = [replace(SMALL, nheads=1, headdim=64, dstate=n) for n in (16, 96)]
AXES = [
    (schedule, name, SMALL) for schedule in space.SCHEDULES for name in configs.around(schedule, configs.problem(SMALL))
]
KERNELS = [
    (schedule, name, case)
    for schedule in space.SCHEDULES
    for case in (SMALL, *ODD, *ROWS)
    for name in configs.one_of_each(schedule, configs.problem(case))
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("schedule", "name", "case"), AXES, ids=str)
def test_every_axis(schedule: str, name: str, case: Case, device: str) -> None:
    configs.verify(configs.around(schedule, configs.problem(case))[name], case, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("schedule", "name", "case"), KERNELS, ids=str)
def test_every_kernel(schedule: str, name: str, case: Case, device: str) -> None:
    configs.verify(configs.one_of_each(schedule, configs.problem(case))[name], case, device)


def test_every_kernel_is_there() -> None:
    """What `test_every_kernel` runs, with the kernels for Hopper that `test_consumers` runs, is all that ships.

    Beside those that keep states, which `test_kept_states` runs.
    """
    launched = {kernel for _, name, _ in KERNELS for kernel in name.split("-")}
    of_hopper = {name for how, case in consumers.CALLS for name in consumers.launched(how, case)}
    by_consumers = {name for name in of_hopper if "consumer" in name or name == diagonal.NAME}
    shipped = {path.stem for path in Path(kernels.__file__).parent.glob("*.py")} - {"__init__", *FUNCTIONS}
    others = {*catalogue.BACKWARD, *catalogue.SPECIALISED, *catalogue.DECODE, *catalogue.TILED, *parts.kernels()}
    others |= {shape.name for shape in catalogue.keeping()} | catalogue.beside(Layer())
    assert launched | by_consumers == shipped - others
    assert not launched & by_consumers


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("schedule", space.SCHEDULES)
@pytest.mark.parametrize("options", [(), *ALONE, *TOGETHER, *PACKED], ids="-".join)
def test_every_option(schedule: str, options: tuple[str, ...], device: str) -> None:
    packed = "cu_seqlens" in options
    case = Case(batch=1 if packed else 2, nheads=2, options=options)
    configs.verify(configs.fine(schedule, configs.problem(case)), case, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("schedule", space.SCHEDULES)
@pytest.mark.parametrize("seqlen", [1, 7, 16, 17, 31, 64, 129])
def test_every_length(schedule: str, seqlen: int, device: str) -> None:
    """One token, less than a chunk, whole chunks, one token more; whole and broken segments."""
    case = Case(batch=1, seqlen=seqlen, nheads=1, options=("D", "initial_states"))
    configs.verify(configs.fine(schedule, configs.problem(case)), case, device)


MODEL = Case(2, 500, 8, 64, 128, 2, options=("D", "z", "dt_bias", "dt_softplus"))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("schedule", space.SCHEDULES)
def test_sizes_of_a_model(schedule: str, dtype: str) -> None:
    case = replace(MODEL, dtype=dtype)
    configs.verify(space.minimal(schedule, configs.problem(case)), case, "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_where_a_search_starts(dtype: str) -> None:
    case = replace(MODEL, dtype=dtype)
    start = default_config(CallProblem(**configs.problem(case).to_json()), H200.sms)
    configs.verify(start, case, "cuda")


@pytest.mark.interpreter
def test_a_config_that_does_not_fit_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning, the right numbers, and from then on the small config."""
    case = Case(options=("D",))
    settings.enter("interpreter", monkeypatch)
    select.forget()
    small, forward = launcher.MINIMAL, launcher.forward

    def limited(config: configs.Config, *operands: Any, **options: Any) -> Any:
        if config is not small:
            raise OutOfResources(300_000, 232_448, "shared memory")
        return forward(config, *operands, **options)

    monkeypatch.setattr(launcher, "forward", limited)
    with pytest.warns(SsdWarning, match="does not fit"):
        y, final = ops.mamba_chunk_scan_combined(**arguments(case, draw(case)))
    compare(case, y, final, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SsdWarning)
        ops.mamba_chunk_scan_combined(**arguments(case, draw(case)))
    select.forget()
    # what fails for another reason is not hidden
    monkeypatch.setattr(launcher, "forward", lambda *_, **__: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        ops.mamba_chunk_scan_combined(**arguments(case, draw(case)))


@pytest.mark.parametrize("schedule", space.SCHEDULES)
def test_without_final_states_none_are_made(schedule: str) -> None:
    """Asked for y alone, a plan has no final states to write; the shapes are those of the call."""
    case = replace(SMALL, options=())
    config = space.minimal(schedule, configs.problem(case))
    meta = draw(case).on("meta")
    plan = configs.launches(config, meta, final_states=False)
    assert plan.final_states is None and plan.y.shape == (1, 50, 4, 16) and plan.y.is_meta
    plan = configs.launches(config, meta, final_states=True)
    assert plan.final_states.shape == (1, 4, 16, 16)
    assert all(launch.grid and min(launch.grid) > 0 for launch in plan.launches)
