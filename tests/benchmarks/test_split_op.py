"""The layer after its input projection on a CPU: both sides are checked, and only right ones have a ratio."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from benchmarks import split_op  # noqa: E402
from tests.benchmarks.machines import Cpu  # noqa: E402


def run(tmp_path: Path, peer, monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[dict]]:
    monkeypatch.setattr(split_op, "load", lambda: (peer, "of the test"))
    monkeypatch.setattr(split_op, "CHECK", (2, 70))
    # four are asked for of a side
    times = iter([200.0] * 4 + [500.0] * 4 + [200.0] * 8)
    out = tmp_path / "split.json"
    arguments = ["--batch", "1", "--seqlen", "12", "--nheads", "2", "--out", str(out)]
    code = split_op.main(arguments, Cpu(lambda: next(times)))  # type: ignore[arg-type]
    return code, json.loads(out.read_text())["rows"]


def test_a_run_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, rows = run(tmp_path, split_op.mamba_split_conv1d_scan_combined, monkeypatch)
    assert code == 0 and [case["projects"] for case in rows] == [False, True]
    assert rows[0]["ratio"] == 2.5 and rows[1]["ratio"] == 1.0
    for case in rows:
        names = {"out", *split_op.operands(1, 1, 2, case["projects"], "cpu")}
        for row in case["sides"].values():
            assert set(row["errors"]) == names and 0 < max(row["errors"].values()) < split_op.LIMIT
    assert "2.50" in capsys.readouterr().out


def test_a_wrong_side_has_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(zxbcdt, weight, bias, dt_bias, A, D, chunk_size, **named):
        return split_op.mamba_split_conv1d_scan_combined(zxbcdt, weight, bias, dt_bias, 1.2 * A, D, chunk_size, **named)

    code, rows = run(tmp_path, wrong, monkeypatch)
    assert code == 1
    for case in rows:
        row = case["sides"]["mamba_ssm"]
        assert "A" in row["wrong"] and "gpu_us" not in row and "ratio" not in case


@pytest.mark.interpreter
def test_our_convolution_stands_in_for_the_peers() -> None:
    functions = split_op.stand_ins()["causal_conv1d.cpp_functions"]
    x, d_y = torch.randn(2, 12, 16).transpose(1, 2), torch.randn(2, 12, 16).transpose(1, 2)
    weight, bias = torch.randn(16, 4), torch.randn(16)
    leaves = [operand.clone().requires_grad_() for operand in (x, weight, bias)]
    padded = torch.nn.functional.pad(leaves[0], (3, 0))
    wanted = torch.nn.functional.silu(torch.nn.functional.conv1d(padded, leaves[1][:, None], leaves[2], groups=16))
    wanted.backward(d_y)
    torch.testing.assert_close(functions.causal_conv1d_fwd_function(x, weight, bias, None, None, None, True), wanted)
    d_x = torch.empty(2, 12, 16).transpose(1, 2)
    found = functions.causal_conv1d_bwd_function(x, weight, bias, d_y, None, None, None, d_x, False, True)
    assert found[0] is d_x
    for ours, leaf in zip(found, leaves, strict=False):
        torch.testing.assert_close(ours, leaf.grad, rtol=1e-4, atol=1e-4)


def test_building_wants_the_source(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"csrc/causal_conv1d\.cpp"):
        split_op.build(tmp_path)


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert split_op.main([]) == 2 and "sees none here" in capsys.readouterr().err
