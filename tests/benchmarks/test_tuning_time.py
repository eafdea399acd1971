"""A short search beside a long one: what is started where, and what is made of their records."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from benchmarks import tuning_time
from ssdgen.mamba2_ops.problem import Problem
from ssdgen.mamba2_ops.records import read_root
from ssdgen.pack import store
from ssdgen.pack.records import Identity, Record
from ssdgen.plan.problem import Problem as Sizes

# says that a search has begun, and where
CHILD = """
import os, sys
out = sys.argv[sys.argv.index("--storage") + 1]
print("shape 1 of 2 on GPU", os.environ["CUDA_VISIBLE_DEVICES"], "--worker" in sys.argv, flush=True)
open(out, "a").close()
"""


def test_the_shape_has_no_bundled_record() -> None:
    sizes = tuple(map(int, tuning_time.SHAPE.split(",")))
    bundled = read_root(tuning_time.ROOT / "tuned")
    assert bundled and all(
        record.problem.bucket() != Problem(*sizes, "bfloat16").bucket() for g in bundled for record in g.records
    )


def test_a_study_is_begun_by_one_and_shared_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "child.py"
    child.write_text(CHILD)
    whole = tuning_time.command("1,2,3,4,5,6", tmp_path, 3, "--worker")
    assert Path(whole[1]).is_file() and whole[2] == "tune" and whole[-3:] == ["--jobs", "3", "--worker"]
    monkeypatch.setattr(tuning_time, "command", lambda shape, out, jobs, *more: _child(child, out, more))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,7")
    found = tuning_time.search("1,2,3,4,5,6", 30, [1, 2], tmp_path / "long", 3)
    found.wait()
    logs = sorted(path.read_text() for path in (tmp_path / "long").glob("*.log"))
    assert logs == ["shape 1 of 2 on GPU 5 False\n", "shape 1 of 2 on GPU 7 True\n"]


def test_a_search_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning_time, "command", lambda *given: [sys.executable, "-c", "raise SystemExit(3)"])
    found = tuning_time.search("1,2,3,4,5,6", 30, [0], tmp_path / "short", 1)
    with pytest.raises(RuntimeError, match="ended with 3"):
        found.wait()


def test_records_are_read_and_compared(tmp_path: Path) -> None:
    problem = Sizes(2, 4096, 128, 64, 128, 1)
    identity = Identity("sm90", "h200", "NVIDIA H200", "1", "2", "3", {})
    for direction in tuning_time.PASSES:
        config = {"schedule": "single_pass", "chunk": 64, "kernels": {}}
        record = Record(
            problem, config, "measured", 10.0, 1.0, None, 1e-3, 5e-3, {"single_pass": "ab"}, "cd", direction
        )
        store.save(tmp_path / "tuned", identity, [record], {})
    assert sorted(tuning_time.found(tmp_path)) == sorted(tuning_time.PASSES)
    slow, fast = tuning_time.rows({"forward": [103.0, 100.0], "backward": [90.0, 100.0]})
    assert slow["ratio"] == pytest.approx(1.03) and fast["ratio"] == 1
    document = {"gpu": "a GPU", "shape": "1,2", "short_s": 5, "long_s": 30, "rows": [slow, fast]}
    assert "1.030" in tuning_time.table(document)


def _child(child: Path, out: Path, more: tuple[str, ...]) -> list[str]:
    return [sys.executable, str(child), "--storage", str(out / "trials.journal"), *more]
