"""The training benchmark: its float64 gradients, its verdict, and its step."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from benchmarks import gradient_reference, reference, training, training_report, workload  # noqa: E402

SHAPE = workload.SHAPES[0]
CEILINGS = {"copy_tbs": 4.27, "bf16_tflops": 790.0}


def wide(sizes: tuple[int, ...], seed: int) -> tuple[dict, torch.Tensor]:
    args = workload.inputs(workload.Shape("test", *sizes), "cpu", seed, torch.float64)
    return args, torch.randn(args["x"].shape, dtype=torch.float64)


def differentiated(args: dict, d_y: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients by differentiating the other reference as a whole."""
    leaves = {name: value.double().requires_grad_() for name, value in args.items()}
    y = torch.cat([y for _, y in reference.walk(leaves)], dim=1)
    found = torch.autograd.grad(y, [leaves[name] for name in gradient_reference.OPERANDS], d_y)
    return dict(zip(gradient_reference.OPERANDS, found, strict=True))


@pytest.mark.parametrize("share", [0, 1])
@pytest.mark.parametrize("sizes", [(2, 130, 6, 8, 5, 3), (1, 64, 2, 4, 3, 1), (1, 7, 4, 3, 2, 4)])
def test_gradients_of_the_reference(
    sizes: tuple[int, ...], share: int, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many heads are taken at a time."""
    monkeypatch.setattr(gradient_reference, "STATE_SHARE", share)
    args, d_y = wide(sizes, seed)
    exact = differentiated(args, d_y)
    off = {name: value * 1.01 for name, value in exact.items()}
    spoiled = {name: value.clone(memory_format=torch.contiguous_format) for name, value in exact.items()}
    for value in spoiled.values():
        value.view(-1)[-1] = math.nan
    found = gradient_reference.errors(args, d_y, {"exact": exact, "off": off, "nan": spoiled})
    for name in gradient_reference.OPERANDS:
        assert found["exact"][name]["relative"] < 1e-11, name
        assert found["off"][name]["relative"] == pytest.approx(0.01), name
        assert found["nan"][name] == {"relative": math.inf, "largest": math.inf}, name


def test_slices_cover_all_heads_once_and_stay_in_their_group() -> None:
    for most in (1, 2, 3, 100):
        found = gradient_reference.slices(12, 3, most)
        heads = [head for part, _ in found for head in range(part.start, part.stop)]
        assert heads == list(range(12))
        assert all((part.stop - 1) // 4 == part.start // 4 == group for part, group in found)


def test_the_step_that_is_timed_has_the_right_gradients(seed: int) -> None:
    args, d_y = wide((2, 70, 4, 8, 5, 2), seed)
    leaves = {name: value.double().requires_grad_() for name, value in args.items()}
    with torch.no_grad():  # as the timers call it
        found = training.gradients(training.mamba_chunk_scan_combined, 256, leaves, d_y)
    assert found.pop("y").shape == d_y.shape and tuple(found) == gradient_reference.OPERANDS
    errors = gradient_reference.errors(args, d_y, {"ours": found})["ours"]
    assert max(error["relative"] for error in errors.values()) < 1e-9


def measured(gpu_us: float, error: float, **changed: float) -> dict:
    errors = {name: {"relative": changed.get(name, error), "largest": 0.1} for name in training_report.CHECKED}
    return {
        "gpu_us": gpu_us, "eager_us": gpu_us + 100, "host_us": 50.0, "launches": 7, "extra_mb": 100.0, "errors": errors,
    }  # fmt: skip


def compared(mine: dict) -> dict:
    results = {
        "ssdgen": mine,
        "mamba_ssm Q=128": measured(1000.0, 2e-3),
        "mamba_ssm Q=256": measured(900.0, 2e-3),
        "mamba_ssm Q=64": {"skipped": "the time budget was spent"},
    }
    return training_report.compare(SHAPE, results, CEILINGS)


def test_speedup_is_against_the_best_chunk_size() -> None:
    row = compared(measured(300.0, 1.9e-3))
    assert row["passed"] and row["peer"] == "mamba_ssm Q=256"
    assert row["gpu_speedup"] == pytest.approx(3) and row["eager_speedup"] == pytest.approx(2.5)
    assert row["error_ratios"]["dt"] == pytest.approx(0.95)
    text = training_report.table([row])
    assert "3.00" in text and "d_dt_bias" in text and "within" in text


@pytest.mark.parametrize("name", training_report.CHECKED)
@pytest.mark.parametrize("error", [3.1e-3, 0.5, math.inf, math.nan])
def test_one_gradient_that_is_worse_has_no_speedup(name: str, error: float) -> None:
    row = compared(measured(300.0, 1.9e-3, **{name: error}))
    assert row["wrong"] == [name] and "gpu_speedup" not in row and "eager_speedup" not in row
    assert "3.00" not in training_report.table([row])


def test_tiny_errors_need_not_be_tinier_than_the_peer_s() -> None:
    assert training_report.limit("D", 1e-7) == training_report.ENOUGH
    assert training_report.limit("D", None) == training_report.limit("D", math.inf) == training_report.LIMITS["D"]


@pytest.mark.parametrize("mine", [measured(300.0, 1.9e-3), {"failed": "CUDA out of memory"}])
def test_without_a_peer_or_without_memory_the_table_still_prints(mine: dict) -> None:
    row = training_report.compare(SHAPE, {"ssdgen": mine}, CEILINGS)
    assert row["passed"] == ("gpu_us" in mine) and "gpu_speedup" not in row
    assert ("FAILED" in training_report.table([row])) == ("failed" in mine)


def test_a_call_that_has_no_graph_is_timed_by_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """And then so is every other, for one kind of time must not be compared with another."""

    def timer(step) -> float:
        if step() == "peer":
            raise RuntimeError("operation not permitted when stream is capturing")
        return 1.0

    monkeypatch.setattr(training.profiling, "recover", lambda: None)
    monkeypatch.setattr(training.profiling, "kernels", lambda step: (3, 7.0))
    steps = {"ours": lambda: "ours", "peer": lambda: "peer"}
    assert training.gpu_times(steps, timer) == ({"ours": [7.0, 7.0], "peer": [7.0, 7.0]}, "sum of kernel times")
    assert training.gpu_times({"ours": steps["ours"]}, timer)[1] == "graph, cold L2"


def test_no_gpu_is_said_plainly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert training.main(["--quick"]) == 2
    assert "CUDA GPU" in capsys.readouterr().err


def test_errors_over_draws_are_their_root_mean_square() -> None:
    drawn = [{"A": {"relative": 3.0, "largest": 5.0}}, {"A": {"relative": 4.0, "largest": 2.0}}]
    found = training.over_draws(drawn)["A"]
    assert found["relative"] == pytest.approx(12.5**0.5) and found["largest"] == 5.0 and found["draws"] == [3.0, 4.0]
    wrong = training.over_draws([*drawn, {"A": {"relative": math.inf, "largest": math.inf}}])["A"]
    assert wrong["relative"] == math.inf
