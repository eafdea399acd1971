"""Recall by state size on a CPU: a tiny cell learns, a run keeps to its budget, tables and the picture."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from benchmarks import recall_sweep, recall_sweep_report  # noqa: E402
from benchmarks.recall_model import Sizes, Task  # noqa: E402

TINY = ["--device", "cpu", "--words", "4", "--tokens", "256", "--d-model", "16"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors are small: threads that wait for each other on a busy machine take longer than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plan(steps: int, **changed) -> recall_sweep.Plan:
    made = {"steps": steps, "rate": 2e-2, "batch": 32, "device": "cpu", "low": False, "seed": 0}
    return recall_sweep.Plan(**{**made, **changed})


def test_a_tiny_cell_learns_until_it_is_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    """One pair of four words: the value is the only one that was said."""
    monkeypatch.setattr(recall_sweep, "EVALUATE", 5)
    monkeypatch.setattr(recall_sweep, "WARMUP", 5)
    found = recall_sweep.train(Task(1, 4, 4, 4), Sizes(16, 2, 16, 8), plan(200), 1e9, itertools.count().__next__)
    assert found["ended"] == "solved" and found["accuracy"] >= recall_sweep.SOLVED and found["steps"] < 200
    assert found["curve"][0][1] < recall_sweep.SOLVED


def test_a_cell_ends_with_its_time_or_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall_sweep, "EVALUATE", 1)
    task, sizes = Task(2, 8, 4, 4), Sizes(16, 1, 16, 2)
    found = recall_sweep.train(task, sizes, plan(50), 1.5, itertools.count().__next__)
    assert found["ended"] == "out of time" and found["steps"] == 2
    found = recall_sweep.train(task, sizes, plan(2), 1e9, itertools.count().__next__)
    assert found["ended"] == "all steps" and [step for step, _ in found["curve"]] == [1, 2]


def test_the_best_rate_counts_and_one_that_solves_ends_the_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def train(task, sizes, plan, seconds, now):
        asked.append((plan.rate, seconds))
        right = {1e-2: 0.4, 2e-2: 0.7, 3e-2: 0.6, 4e-2: 0.995, 5e-2: 1.0}[plan.rate]
        return {"accuracy": right, "ended": "solved" if right > 0.99 else "all steps"}

    monkeypatch.setattr(recall_sweep, "train", train)

    def best(*rates: float) -> dict:
        asked.clear()
        clock = itertools.count(0, 10)
        return recall_sweep.best_of_rates(Task(), Sizes(), plan(1), list(rates), 90.0, clock.__next__)

    assert best(1e-2, 2e-2, 3e-2)["rate"] == 2e-2
    assert asked == [(1e-2, pytest.approx(80 / 3)), (2e-2, pytest.approx(35.0)), (3e-2, pytest.approx(60.0))]
    found = best(1e-2, 4e-2, 5e-2)
    assert found["rate"] == 4e-2 and found["accuracies"] == {"0.01": 0.4, "0.04": 0.995} and len(asked) == 2


def test_rates_and_tasks_of_the_steps() -> None:
    made = [recall_sweep.rate_at(step, plan(1000)) for step in range(1001)]
    assert max(made) == pytest.approx(2e-2) and made.index(max(made)) in (99, 100)
    assert made[0] == pytest.approx(2e-4) and made[-1] == pytest.approx(2e-3)
    assert [task.pairs for task in recall_sweep.mixture(Task(32, 256))] == [8, 16, 32]
    cells = list(recall_sweep.cells([(256, 32), (512, 64)], [256, 16]))
    assert cells == [(256, 32, 256), (256, 32, 16), (512, 64, 256), (512, 64, 16)]
    with pytest.raises(SystemExit):
        recall_sweep.parse(["--tasks", "64,32"])
    assert recall_sweep.parse(["--tasks", "96,32"]).tasks == [(96, 32)]


def test_a_run_from_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What early cells leave goes to later ones; a spent budget leaves rows that say so."""
    shares = []

    def train(task, sizes, plan, rates, seconds, now):
        shares.append(seconds)
        return {"accuracy": 0.995, "curve": [], "steps": 7, "ended": "solved", "seconds": 1.0, "made": "x"}

    out, picture = tmp_path / "sweep.json", tmp_path / "sweep.png"
    arguments = [*TINY, "--tasks", "8,2", "12,4", "--states", "8", "2", "--out", str(out), "--plot", str(picture)]
    monkeypatch.setattr(recall_sweep, "best_of_rates", train)
    clock = itertools.count(0, 100)
    assert recall_sweep.main([*arguments, "--budget", "400"], clock.__next__) == 0
    assert shares == [pytest.approx(75.0), pytest.approx(200 / 3), pytest.approx(50.0)]
    document = json.loads(out.read_text())
    assert recall_sweep.main([*arguments, "--resume"], itertools.count().__next__) == 0 and len(shares) == 4
    assert json.loads(out.read_text())["rows"][:3] == document["rows"][:3]
    assert ["skipped" in row for row in document["rows"]] == [False, False, False, True]
    assert recall_sweep_report.solved(document["rows"]) == {2: 1, 8: 2}
    text = capsys.readouterr().out
    assert "99.5% (7)" in text and "solved (99% of the answers right): 1 of 2 with N=2, 2 of 2 with N=8" in text
    pytest.importorskip("matplotlib")
    first = picture.read_bytes()
    assert first.startswith(b"\x89PNG")
    picture.unlink()
    assert recall_sweep.main([*arguments, "--plot-only"]) == 0 and picture.read_bytes() == first


def test_a_cell_really_runs(tmp_path: Path) -> None:
    out = tmp_path / "sweep.json"
    arguments = [*TINY, "--tasks", "8,2", "--states", "2", "--steps", "2", "--out", str(out)]
    recall_sweep.main([*arguments, "--plot", str(tmp_path / "sweep.png")])
    (row,) = json.loads(out.read_text())["rows"]
    assert row["steps"] == 2 and row["made"] == "step by step" and 0 <= row["accuracy"] <= 1
