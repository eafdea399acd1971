"""Constants from measured candidates: they are found again, nothing that is held out is seen, ranks are ranks."""

from __future__ import annotations

import random
from dataclasses import asdict, replace

import pytest

from ssdgen import gpus
from ssdgen.tune import calibration, model
from ssdgen.tune.calibration import BEGIN, Sample, Timed
from ssdgen.tune.compile import Compiled
from ssdgen.tune.counted import Work
from ssdgen.tune.model import Constants
from ssdgen.tune.resources import Resources

H200 = gpus.find("h200")
TRUE = replace(BEGIN, launch_us=3.5, memory_share=0.8, trip=400.0, product=220.0, load=1800.0, entry=5.5, spill=30.0)


def synthetic(true: Constants, count: int, runs: int = 1) -> list[Sample]:
    """Candidates of all kinds that take exactly as long as the model says with these constants."""
    numbers = random.Random(7)
    found = []
    for index in range(count):
        ctas, steps, consumers = (
            numbers.choice((40, 640, 5000)),
            numbers.choice((1, 8, 32)),
            numbers.choice((0, 0, 1, 2)),
        )
        trips, warps = ctas * steps * max(1, consumers), numbers.choice((4, 8))
        work = Work(
            ctas,
            steps,
            chain=numbers.choice((0, 1, 4)),
            memory_bytes=numbers.choice((1e6, 1e8, 3e9)),
            loaded_bytes=trips * numbers.choice((1e3, 1e5)),
            flops=trips * numbers.choice((0.0, 5e5, 4e6)),
            exps=trips * 4e3,
            entries=trips * numbers.choice((0.0, 1e4, 6e4)),
            rows=64,
            consumers=consumers,
        )
        needs = Resources(
            numbers.choice((64, 128, 255)), numbers.choice((0, 0, 40, 400)), numbers.choice((0, 9**5)), warps
        )
        launch = Timed(work, Compiled("walk", "", needs), "bfloat16", numbers.choice((1, 2, 3)))
        sample = Sample(H200, "forward", f"shape {index % 3}", f"run {index % runs}", (launch,), 0.0)
        found.append(replace(sample, us=calibration.predicted(sample, true)))
    return found


def test_finds_the_constants_again() -> None:
    samples = synthetic(TRUE, 150)
    assert calibration.loss(samples, TRUE) == pytest.approx(0.0, abs=1e-12)
    found = calibration.fit(samples)
    assert calibration.loss(samples, found) < 0.02 * calibration.loss(samples, BEGIN)
    for name in ("launch_us", "memory_share", "entry", "spill", "product"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=0.2), name


def test_nothing_to_fit_to() -> None:
    with pytest.raises(ValueError, match=r"benchmarks/candidates\.py"):
        calibration.fit([])


def test_a_shape_that_is_held_out_is_not_seen() -> None:
    samples = synthetic(TRUE, 12)
    seen: list[set[str]] = []

    def fit(kept: object) -> Constants:
        seen.append({sample.shape for sample in kept})  # type: ignore[attr-defined]
        return BEGIN

    predicted = calibration.held_out(samples, fit)
    assert predicted == [calibration.predicted(sample, BEGIN) for sample in samples]
    every = {sample.shape for sample in samples}
    assert sorted(map(sorted, seen)) == sorted(sorted(every - {shape}) for shape in every)


def test_launches_count_where_they_were_timed() -> None:
    (sample,) = synthetic(TRUE, 1)
    launch = sample.launches[0]
    twice = replace(sample, launches=(replace(launch, us=sample.us), replace(launch, us=sample.us)), us=2 * sample.us)
    assert calibration.loss([twice], TRUE) == pytest.approx(0.0, abs=1e-12)
    # by which of the two is off
    wrong = replace(twice, launches=(launch, replace(launch, us=3 * sample.us)))
    assert calibration.loss([wrong], TRUE) > 0.1


def test_a_freak_does_not_bend_everything() -> None:
    (sample,) = synthetic(TRUE, 1)
    twice, far = (calibration.loss([replace(sample, us=times * sample.us)], TRUE) for times in (2, 1000))
    assert twice < far < 20 * twice


def test_ranks() -> None:
    assert calibration.spearman([1, 2, 3, 4], [10, 20, 30, 40]) == 1.0
    assert calibration.spearman([1, 2, 3, 4], [8, 6, 4, 2]) == -1.0
    # by hand: d = 1, 1, 0, 0 of four
    assert calibration.spearman([1, 2, 3, 4], [2, 1, 3, 4]) == pytest.approx(1 - 6 * 2 / (4 * 15))
    # equal values share a rank
    assert calibration.spearman([1, 1, 2], [5, 5, 9]) == pytest.approx(1.0)
    assert calibration.spearman([1, 1, 1], [1, 2, 3]) == 0.0


def test_quality_of_a_ranking() -> None:
    found = calibration.quality([(10.0, 22.0), (11.0, 20.0), (30.0, 60.0)])
    assert (found.count, found.ratio, found.scale) == (3, pytest.approx(1.1), pytest.approx(0.5, rel=0.1))
    assert found.rho == pytest.approx(0.5)


def test_constants_are_written_and_read_alike() -> None:
    import json

    text = json.loads(model.to_json(TRUE, candidates=3))
    assert Constants(**text["constants"]) == TRUE and text["candidates"] == 3
    assert set(json.loads(model.FILE.read_text())["constants"]) == set(asdict(model.fitted()))
