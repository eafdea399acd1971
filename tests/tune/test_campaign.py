"""Several shapes after each other: records as they are found, warm starts, and what a person reads."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ssdgen.pack import store
from ssdgen.pack.records import Identity, Record, RecordError
from ssdgen.pack.store import StoreError
from ssdgen.tune import campaign, jobs, passes, storage
from ssdgen.tune.budget import Budget
from ssdgen.tune.campaign import Row, Setting
from ssdgen.tune.errors import ProblemError, TuneError
from ssdgen.tune.jobs import Job, Task
from ssdgen.tune.presence import Presence
from ssdgen.tune.progress import BarProgress, PlainProgress, eta, table
from ssdgen.tune.results import Event, Outcome, Result
from tests.tune.fakes import H200, PROBLEM, FakeBench, FakePass, time_of

SPACE = FakePass.space
BEST = SPACE.make("walk", 128, 8, 1)
PROBLEMS = {"small": PROBLEM, "large": replace(PROBLEM, batch=64), "wide": replace(PROBLEM, nheads=64)}
KERNELS = {"walk": "aa", "cut": "bb", "dt": "cc"}


class Silent:
    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.begun: list[tuple[str, float | None]] = []

    def begin(self, name: str, index: int, count: int, trials: int | None, seconds: float | None) -> None:
        self.begun.append((name, seconds))

    def event(self, event: Event) -> None: ...

    def close(self) -> None: ...

    def end(self, row: Row) -> None:
        self.rows.append(row)


@pytest.fixture(autouse=True)
def small_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both passes are one whose space is small, and the model has no say."""
    for direction in ("forward", "backward"):
        monkeypatch.setitem(passes.PASSES, direction, FakePass())
    monkeypatch.setattr(campaign.prior, "ranked", lambda *_: [])


def job(**changes: Any) -> Job:
    direction = changes.pop("direction", "forward")
    tasks = tuple(Task(name, direction, problem) for name, problem in PROBLEMS.items())
    made = Job("sm90_h200", False, tasks, 26, 60.0, 0, "graph", "cold", "kernels", {})
    return replace(made, **changes)


def run(root: Path, bench: FakeBench | None = None, listener: Any = None, **changes: Any) -> list[Row]:
    """A campaign of its own; changes: of the job, or of the provenance, the budget and the benches."""
    made, kept = bench or FakeBench(ahead=2), storage.memory()
    provenance, budget = changes.pop("provenance", "measured"), changes.pop("budget", 60.0)
    bench_of = changes.pop("bench_of", lambda task: made)
    stored = jobs.create(kept, job(**changes))
    with Presence(kept, stored.study_id, {}) as presence:
        identity = Identity("sm90", "h200", "NVIDIA H200", "570", "2.9", "3.6", {})
        setting = Setting(H200, identity, provenance, KERNELS, root, kept, stored, presence)
        return campaign.run(setting, bench_of, Budget(budget), listener or Silent())


def test_every_shape_gets_a_record(tmp_path: Path) -> None:
    listener = Silent()
    rows = run(tmp_path, listener=listener)
    assert [row.name for row in rows] == list(PROBLEMS) and listener.rows == rows and all(row.stored for row in rows)
    assert [name for name, _ in listener.begun] == list(PROBLEMS) and 19 < (listener.begun[0][1] or 0) <= 20
    (first, *_), stored = store.read(tmp_path / "sm90_h200"), store.read(tmp_path / "sm90_h200")
    assert {record.problem for record in stored} == set(PROBLEMS.values())
    assert first == Record(
        PROBLEM,
        BEST,
        "measured",
        time_of(BEST) + 0.5,
        0.1,
        time_of(SPACE.default(PROBLEM, H200)) + 0.5,
        2e-3,
        5e-3,
        {"walk": "aa", "dt": "cc"},
        "5face",
    )
    assert rows[0].speedup == pytest.approx(first.default_us / first.time_us)  # type: ignore[operator]
    # not better than what is there
    assert not any(row.stored for row in run(tmp_path))


def test_a_prediction_has_no_error(tmp_path: Path) -> None:
    class Predicting(FakeBench):
        def run(self, config, prepared, best_us):
            return Result(config, super().run(config, prepared, best_us).time_us)

        def finals(self, results):
            return results

    run(tmp_path, Predicting(), provenance="predicted")
    record = store.read(tmp_path / "sm90_h200")[0]
    assert record.provenance == "predicted" and record.error is record.error_limit is record.spread_us is None


def test_later_shapes_begin_with_what_earlier_ones_found(tmp_path: Path) -> None:
    bench = FakeBench()
    run(tmp_path, bench, trials=8)
    minimal = [SPACE.minimal(schedule, PROBLEM) for schedule in SPACE.SCHEDULES]
    assert bench.runs[:3] == [SPACE.default(PROBLEM, H200), *minimal]
    # the second shape: the default, then the best of the first, as it was before the finalists were judged
    assert bench.runs[8:10] == [SPACE.default(PROBLEM, H200), min(bench.runs[:8], key=time_of)]


def test_ctrl_c_keeps_the_record_and_ends_the_campaign(tmp_path: Path) -> None:
    rows = run(tmp_path, FakeBench(interrupt=8))
    assert [row.name for row in rows] == ["small"] and rows[0].outcome.stopped and rows[0].stored
    (record,) = store.read(tmp_path / "sm90_h200")
    assert record.problem == PROBLEM and record.error == 1e-3


def test_ctrl_c_before_anything_was_found(tmp_path: Path) -> None:
    rows = run(tmp_path, FakeBench(interrupt=1))
    assert rows[0].outcome == Outcome(None, None, 1, 0, stopped=True, reason="")
    assert not (tmp_path / "sm90_h200" / "ssd_forward.json").exists()

    def no_bench(task: Task) -> FakeBench:
        raise KeyboardInterrupt

    rows = run(tmp_path, bench_of=no_bench)
    assert len(rows) == 1 and rows[0].outcome.stopped


@pytest.mark.parametrize("name", ["gpu.json", "ssd_forward.json"])
def test_a_corrupt_file_is_told_before_the_search(tmp_path: Path, name: str) -> None:
    run(tmp_path, trials=3)
    (tmp_path / "sm90_h200" / name).write_text("{")
    bench = FakeBench()
    with pytest.raises(RecordError, match=name):
        run(tmp_path, bench)
    assert not bench.runs and (tmp_path / "sm90_h200" / name).read_text() == "{"


def test_a_folder_that_cannot_be_written_is_told_before_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("ssdgen.pack.store.tempfile.mkstemp", fail)
    bench = FakeBench()
    with pytest.raises(StoreError, match="Permission denied"):
        run(tmp_path, bench)
    assert not bench.runs


def test_which_configs_a_search_begins_with() -> None:
    def record(chunk: int, direction: Any = "forward", **changes: Any) -> Record:
        config = SPACE.make("walk", chunk, 4)
        problem = replace(PROBLEM, **changes)
        return Record(problem, config, "measured", 1.0, 0.0, None, 0.0, 1.0, {}, "x", direction)

    own, related, foreign = Path("sm90_h200"), Path("shipped/sm90_h100"), Path("sm80_a100")
    known = {
        own: [record(1, batch=256), record(2, dstate=512), record(3), record(4, batch=16), record(5, "backward")],
        related: [record(6)],
        foreign: [record(7)],
    }
    begun = campaign.warm_start(Task("small", "forward", PROBLEM), known, own)
    assert [config["chunk"] for config in begun] == [3, 6, 4, 7]


def test_records_of_other_gpus_are_what_a_search_begins_with(tmp_path: Path) -> None:
    identity = Identity("sm80", "a100", "NVIDIA A100", "570", "2.9", "3.6", {})
    record = Record(PROBLEM, SPACE.make("cut", 128, 8), "measured", 1.0, 0.0, None, 0.0, 1.0, {}, "x")
    store.save(tmp_path, identity, [record], KERNELS)
    bench = FakeBench()
    run(tmp_path, bench, trials=2)
    assert bench.runs[1] == record.config


def test_lines_for_a_log(tmp_path: Path) -> None:
    lines: list[str] = []
    now = [0.0]

    def clock() -> float:
        now[0] += 6.0
        return now[0]

    run(tmp_path, FakeBench(fails={32: "does not fit"}), PlainProgress(lines.append, clock))
    text = "\n".join(lines)
    assert lines[0] == "small: shape 1 of 3, 20 s for it"
    assert "small: trial 1: 156.0 us (1.00x)  walk chunk=64" in text
    assert "(1.54x)" in text and " left" in text
    assert "times the default's speed" in text and "error 2.0e-03" in text
    # and a sign of life between
    assert any(": walk" in line and ", best " in line for line in lines)


def test_a_bar_on_a_terminal(tmp_path: Path) -> None:
    out = io.StringIO()
    bar = BarProgress(Console(file=out, force_terminal=True, width=140))
    try:
        rows = run(tmp_path, FakeBench(), bar)
    finally:
        bar.close()
    text = out.getvalue()
    assert "small (1/3)" in text and "small: 101.5 us, 1.54 times the default's speed" in text
    shown = io.StringIO()
    Console(file=shown, width=100).print(table(rows, predicted=False))
    assert "measured" in shown.getvalue() and "101.5" in shown.getvalue() and "1.54" in shown.getvalue()


def test_nothing_found_is_said_with_the_reason(tmp_path: Path) -> None:
    lines: list[str] = []
    rows = run(tmp_path, FakeBench(fails=dict.fromkeys((32, 64, 128), "no driver")), PlainProgress(lines.append))
    assert not any(row.outcome.best for row in rows)
    assert any(line.startswith("small: nothing found") and line.endswith("no driver") for line in lines)
    Console(file=io.StringIO()).print(table(rows, predicted=True))


def test_durations_are_readable() -> None:
    assert eta(45.4) == "45 s" and eta(425) == "7 min 05 s"


def test_a_shape_that_does_not_fit_leaves_the_others_alone(tmp_path: Path) -> None:
    class Small(FakeBench):
        def run(self, config, prepared, best_us):
            raise ProblemError("the inputs do not fit")

    rows = run(tmp_path, bench_of=lambda task: Small() if task.problem.batch == 64 else FakeBench())
    assert [row.stored for row in rows] == [True, False, True] and rows[1].outcome.reason == "the inputs do not fit"


def test_what_was_found_is_stored_when_the_search_cannot_go_on(tmp_path: Path) -> None:
    """The database is gone, say, or the driver."""

    class Breaking(FakeBench):
        def run(self, config, prepared, best_us):
            if len(self.runs) == 3:
                raise TuneError("no driver")
            return super().run(config, prepared, best_us)

    bench = Breaking()
    with pytest.raises(TuneError, match="no driver"):
        run(tmp_path, bench)
    (record,) = store.read(tmp_path / "sm90_h200")
    assert record.config == min(bench.runs, key=time_of)


def test_the_records_of_a_pass_know_only_their_own(tmp_path: Path) -> None:
    run(tmp_path, trials=3)
    before = (tmp_path / "sm90_h200" / "ssd_forward.json").read_bytes()
    bench = FakeBench()
    run(tmp_path, bench, trials=4, direction="backward")
    folder = tmp_path / "sm90_h200"
    assert (folder / "ssd_forward.json").read_bytes() == before
    stored = store.read(folder, "backward")
    assert {record.problem for record in stored} == set(PROBLEMS.values())
    assert all(record.direction == "backward" and record.error_limit == 5e-3 for record in stored)
    # the forward records are not what the search begins with
    minimal = [SPACE.minimal(schedule, PROBLEM) for schedule in SPACE.SCHEDULES]
    assert bench.runs[:3] == [SPACE.default(PROBLEM, H200), *minimal]


def test_a_corrupt_file_of_the_other_pass_is_told_before_the_search(tmp_path: Path) -> None:
    run(tmp_path, trials=3)
    (tmp_path / "sm90_h200" / "ssd_backward.json").write_text("{")
    bench = FakeBench()
    with pytest.raises(RecordError, match=r"ssd_backward\.json"):
        run(tmp_path, bench)
    assert not bench.runs


def test_the_next_search_is_compiled_while_finalists_are_judged(tmp_path: Path) -> None:
    compiled: list[int] = []
    benches: list[FakeBench] = []

    class Finals(FakeBench):
        def finals(self, results):
            compiled.append(len(benches[-1].prepared) if benches[-1] is not self else -1)
            return super().finals(results)

    def bench_of(task: Task) -> FakeBench:
        benches.append(Finals(ahead=4))
        return benches[-1]

    run(tmp_path, bench_of=bench_of, trials=6)
    # the last has none after it
    assert compiled == [4, 4, -1]


def test_a_default_that_the_space_calls_illegal_is_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what users have without a record."""
    default = SPACE.make("walk", 256, 4)
    monkeypatch.setattr(SPACE, "default", lambda problem, gpu: default)
    bench = FakeBench()
    rows = run(tmp_path, bench, trials=4)
    assert bench.runs[0] == default and rows[0].outcome.default
    assert not any(config["chunk"] == 256 for config in bench.runs[1:4])
