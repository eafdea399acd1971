"""Time against length and state size: the float64 ends, the candidates' layouts, what the rows say, the pictures."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from benchmarks import (  # noqa: E402
    gradient_reference,
    growth,
    growth_plot,
    growth_report,
    machine,
    reference,
    rivals,
    tail_reference,
    workload,
)
from ssdgen.mamba2_ops import fallback, mamba_chunk_scan_combined  # noqa: E402
from tests.benchmarks.extension import Cuda  # noqa: E402
from tests.benchmarks.machines import Cpu  # noqa: E402

SHAPE = workload.Shape("test", 2, 70, 4, 8, 5, 1)


def wide(shape: workload.Shape, seed: int) -> tuple[dict, torch.Tensor]:
    args = workload.inputs(shape, "cpu", seed, torch.float64)
    return args, torch.randn(args["x"].shape, dtype=torch.float64)


def gradients(args: dict, d_y: torch.Tensor) -> dict[str, torch.Tensor]:
    leaves = {name: value.detach().clone().requires_grad_() for name, value in args.items()}
    y = torch.cat([y for _, y in reference.walk(leaves)], dim=1)
    found = torch.autograd.grad(y, [leaves[name] for name in gradient_reference.OPERANDS], d_y)
    return {"y": y.detach(), **dict(zip(gradient_reference.OPERANDS, found, strict=True))}


@pytest.mark.parametrize(("tokens", "slice_bytes"), [(40, 1), (64, 1 << 30), (1000, 1 << 30)])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_end_is_that_of_the_whole_sequence(
    tokens: int, slice_bytes: int, groups: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the way there is cut."""
    monkeypatch.setattr(tail_reference, "SLICE_BYTES", slice_bytes)
    monkeypatch.setattr(tail_reference, "STRIDE", 32)
    args, d_y = wide(workload.Shape("test", 2, 150, 4, 8, 5, groups), seed)
    whole = gradients(args, d_y)
    found = tail_reference.errors(whole, args, d_y, tokens)
    assert set(found) == set(tail_reference.CHECKED) and max(found.values()) < 1e-11
    for name in tail_reference.CHECKED:
        off = {**whole, name: whole[name] * 1.01}
        assert tail_reference.errors(off, args, d_y, tokens)[name] == pytest.approx(0.01)
    spoiled = {"y": torch.full_like(whole["y"], math.nan)}
    assert tail_reference.errors(spoiled, args, None, tokens) == {"y": math.inf}


def gla(q, k, v, g, scale):
    """What FLA's function of this name computes, by a walk."""
    state, ys = q.new_zeros(*q.shape[::2], q.shape[3], v.shape[3]), []
    for at in range(q.shape[1]):
        state = g[:, at].exp()[..., None, None] * state + k[:, at, :, :, None] * v[:, at, :, None]
        ys.append(scale * (q[:, at, :, :, None] * state).sum(2))
    return torch.stack(ys, dim=1), None


def candidates() -> list[rivals.Candidate]:
    from torch.nn.attention import SDPBackend

    return [
        rivals.ours(),
        rivals.mamba_ssm(mamba_chunk_scan_combined, 64),
        rivals.simple_gla(gla),
        rivals.mamba1(Cuda, None),
        rivals.mamba1(Cuda, 3),
        rivals.attention(rivals.FLASH, SDPBackend.MATH),
    ]


@pytest.mark.parametrize("passes", [growth.FORWARD, growth.BOTH])
def test_every_candidate_computes_what_it_is_checked_against(
    passes: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its own layout; in float64, so that a wrong index is no rounding."""
    monkeypatch.setattr(rivals, "step_sizes", lambda args: torch.nn.functional.softplus(args["dt"] + args["dt_bias"]))
    monkeypatch.setattr(rivals, "ATTENTION_HEADDIM", 16)
    for candidate in candidates():
        shape = rivals.shape_for(candidate, SHAPE)
        args, d_y = wide(shape, seed)
        args = {name: value.double() for name, value in args.items()}
        found = growth.errors(growth.Cell(candidate, shape, passes), args, d_y)
        wanted = {"y", "q"} if candidate.quadratic else set(tail_reference.CHECKED)
        assert set(found) == (wanted if passes == growth.BOTH else {"y"}), candidate.name
        assert max(found.values()) < 1e-9, candidate.name


def test_a_wrong_candidate_is_not_timed() -> None:
    good = rivals.ours()
    wrong = rivals.Candidate("wrong", good.prepare, lambda args: good.run(args) * 1.02, good.finish)
    cpu = Cpu()
    for candidate, times in ((good, True), (wrong, False)):
        for passes in (growth.FORWARD, growth.BOTH):
            row = growth.measure(growth.Cell(candidate, SHAPE, passes), cpu)  # type: ignore[arg-type]
            assert row["passed"] == times == ("gpu_us" in row), row
    assert not growth.passed({"y": math.nan}) and growth.passed({"q": 1e-3})


def test_what_is_left_out_says_why() -> None:
    """A budget, a call that would take long, memory, a peer that breaks, a GPU that is lost: each is a row."""
    good, cpu = rivals.ours(), Cpu()

    def breaks(error: Exception, args: dict):
        raise error

    def run(todo: list, slowest: float = 1e9, budget: float = 1e9) -> list[dict]:
        kept: list[list] = []
        rows = growth.run_sweep(todo, cpu, growth.Clock(budget), slowest, lambda rows: kept.append(list(rows)))  # type: ignore[arg-type]
        assert [len(each) for each in kept] == list(range(1, len(todo) + 1)) and kept[-1] == rows
        return rows

    def cell(error: Exception | None, length: int = 20) -> growth.Cell:
        broken = good if error is None else rivals.Candidate("other", good.prepare, partial(breaks, error), good.finish)
        return growth.Cell(broken, workload.Shape("s", 1, length, 2, 4, 4, 1), growth.FORWARD)

    rows = run([cell(torch.OutOfMemoryError("x")), cell(KeyError("shape")), cell(None)])
    assert [row.get("failed") for row in rows] == ["out of memory", "KeyError: 'shape'", None] and "gpu_us" in rows[2]
    rows = run([cell(RuntimeError("CUDA error: an illegal memory access was encountered")), cell(None)])
    assert "the GPU was lost" in rows[0]["failed"] and "the GPU was lost" in rows[1]["skipped"]
    rows = run([cell(None), cell(None, 80)], slowest=300.0)
    assert "gpu_us" in rows[0] and "would take about" in rows[1]["skipped"]
    assert "budget" in run([cell(None)], budget=-1.0)[0]["skipped"]


def test_ours_is_measured_before_a_peer_may_break_the_gpu() -> None:
    todo = growth.cells("length", candidates(), growth.shapes("length"))
    assert len({(cell.candidate.name, cell.shape.seqlen, cell.passes) for cell in todo}) == len(todo) == 5 * 12 * 2
    far = [cell.candidate.name == rivals.OURS for cell in todo if cell.shape.seqlen > growth.SAFE]
    assert far == sorted(far, reverse=True) and sum(far) == 2 * 3
    assert {cell.candidate.name for cell in growth.cells("growth", candidates(), growth.shapes("growth"))} == {"ssdgen"}
    states = growth.cells("state", candidates(), growth.shapes("state"))
    assert {cell.shape.dstate for cell in states if cell.candidate.name == rivals.SCAN} == set(growth.STATES)


def rows_of(times: dict[str, dict[int, float]], passes: str = "both") -> list[dict]:
    return [
        {
            "candidate": name, "sizes": [1, length, 4, 8, 16, 1], "passes": passes, "gpu_us": us, "passed": True,
            "extra_mb": length / 100,
        }
        for name, found in times.items()
        for length, us in found.items()
    ]  # fmt: skip


def test_crossover_and_ratio() -> None:
    """Attention quadratic, ours linear: they meet where the one factor is the other."""
    lengths = [1024, 2048, 4096, 16384]
    times = {
        rivals.OURS: {length: 3000.0 * length for length in lengths},
        "mamba_ssm Q=128": {length: 9e3 * length for length in lengths},
        "mamba_ssm Q=256": {length: 8e3 * length for length in lengths},
        rivals.CUDNN: {length: float(length**2) for length in lengths},
    }
    found = growth_report.findings("length", rows_of(times))["both"]
    assert found["crossover"] == {"side": "between", "length": 3000}
    assert found["peer crossover"] == {"side": "between", "length": 8000}
    assert found["ratio at 16384"] == pytest.approx(16384 / 3000)
    assert found["peer ratio at 16384"] == pytest.approx(16384 / 8000)
    assert growth_report.crossover({1: 1.0}, {1: 2.0}) == {"side": "below", "length": 1}
    assert growth_report.crossover({1: 3.0}, {1: 2.0}) == {"side": "none", "length": 1}
    assert growth_report.crossover({}, {1: 2.0}) == {"side": "unknown"}


def test_time_and_memory_per_token() -> None:
    times = {rivals.OURS: {16384: 16384.0, 16385: 2 * 16385.0, 1048576: 1.2 * 1048576, 999: 5.0}}
    found = growth_report.findings("growth", rows_of(times))["both"]
    assert found["spread"] == pytest.approx(0.2) and found["cliffs"] == {16385: pytest.approx(2.0)}
    assert list(found["bytes per token"].values()) == pytest.approx([1e4] * 4)


def run(tmp_path: Path, *arguments: str) -> dict:
    out = tmp_path / "growth.json"
    assert growth.main([*arguments, "--out", str(out), "--no-peer", "--heads", "2"], Cpu()) == 0  # type: ignore[arg-type]
    return json.loads(out.read_text())


def test_from_the_command_to_the_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sweep that is run again leaves the others in the file."""
    run(tmp_path, "--sweep", "length", "growth", "--lengths", "64", "100")
    text = capsys.readouterr().out
    assert "bytes per token" in text and "both: " in text and "written:" in text
    document = run(tmp_path, "--sweep", "state", "--states", "4", "8", "--budget", "-1")
    assert set(document["sweeps"]) == {"length", "growth", "state"}
    assert len([row for row in document["sweeps"]["length"]["rows"] if "gpu_us" in row]) == 4
    pytest.importorskip("matplotlib")
    assert growth_plot.main([str(tmp_path / "growth.json"), "--into", str(tmp_path)]) == 0
    first = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert set(first) == {"time_by_length.png", "time_by_state.png", "per_token.png"}


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert growth.main([]) == 2 and "sees none here" in capsys.readouterr().err


def test_a_run_that_was_cut_goes_on(tmp_path: Path) -> None:
    """What was measured stays, by the same GPU and versions; what was left out is measured now."""
    arguments = ["--sweep", "length", "--lengths", "32", "40"]
    first = run(tmp_path, *arguments)["sweeps"]["length"]["rows"]
    for kept in (0, 2):
        document = json.loads((tmp_path / "growth.json").read_text())
        for row in document["sweeps"]["length"]["rows"][kept:]:
            row["skipped"] = "the time budget was spent"
        (tmp_path / "growth.json").write_text(json.dumps(document))
        cpu = Cpu()
        out = ["--out", str(tmp_path / "growth.json"), "--no-peer", "--heads", "2", "--resume"]
        assert growth.main([*arguments, *out], cpu) == 0  # type: ignore[arg-type]
        assert cpu.calls == 2 * (4 - kept)
        rows = json.loads((tmp_path / "growth.json").read_text())["sweeps"]["length"]["rows"]
        assert [row["sizes"] for row in rows] == [row["sizes"] for row in first] and all(
            "gpu_us" in row for row in rows
        )
    here = {**Cpu().environment(), "torch": "another"}
    assert machine.earlier(tmp_path / "growth.json", here, lambda file: file["sweeps"]["length"]) == []


def test_the_file_is_whole_at_every_moment(tmp_path: Path) -> None:
    document = machine.Document(tmp_path / "deep" / "x.json", {"rows": [1]})
    document.write()
    document.content["rows"] = [object()]
    with pytest.raises(TypeError):
        document.write()
    assert json.loads(document.path.read_text()) == {"rows": [1]}


def test_the_pytorch_path_is_the_layer() -> None:
    args, d_y = wide(SHAPE, 3)
    y = rivals.ssd(lambda x, dt, A, B, C, chunk, **options: fallback.forward(x, dt, A, B, C, **options)[0], 64, args)
    assert tail_reference.errors({"y": y}, args, None)["y"] < 1e-6
