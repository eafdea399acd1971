"""The bench that predicts: what it leaves out, though it compiles."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from ssdgen.plan.problem import Problem
from ssdgen.tune.errors import RejectedError
from ssdgen.tune.jobs import Task
from ssdgen.tune.predict import PredictingBench, Report


def test_what_is_less_accurate_is_no_prediction() -> None:
    """It is faster by any model of time, and nothing measures how far off it is."""
    bench = PredictingBench(Task("small", "forward", Problem(1, 64, 2, 64, 64)), None)  # type: ignore[arg-type]
    compiled: Future[Any] = Future()
    compiled.set_result(Report(()))
    config = {"schedule": "single_pass", "chunk": 64, "kernels": {"single_pass": {"consumers": 1}}}
    assert bench.run(config, compiled, None).time_us == 0
    config["kernels"]["single_pass"]["terms"] = 1
    with pytest.raises(RejectedError, match="less accurate"):
        bench.run(config, compiled, None)
