"""Mamba-2's layer beside Mamba-1's on a CPU: both are checked, and only right ones have a ratio."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from benchmarks import layer_training, mamba1_layer, selective_scan  # noqa: E402
from benchmarks.layer_training import MAMBA1, MAMBA2  # noqa: E402
from tests.benchmarks.extension import Cuda  # noqa: E402
from tests.benchmarks.machines import Cpu  # noqa: E402


def run(tmp_path: Path, extension, monkeypatch: pytest.MonkeyPatch) -> tuple[int, dict]:
    monkeypatch.setattr(selective_scan, "load", lambda: (extension, "of the test"))
    monkeypatch.setattr(layer_training, "CHECK", (2, 20))
    out = tmp_path / "layers.json"
    arguments = ["--d-model", "64", "--batch", "1", "--seqlen", "12", "--out", str(out)]
    code = layer_training.main(arguments, Cpu())  # type: ignore[arg-type]
    return code, json.loads(out.read_text())


def test_a_run_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, document = run(tmp_path, Cuda, monkeypatch)
    assert code == 0 and document["verdict"] == {"ratio": 1.0, "wanted": 1.5, "reached": False, "states": 8.0}
    for row in document["rows"].values():
        assert 0 < max(row["errors"].values()) < layer_training.LIMIT and row["tokens_s"] == pytest.approx(12e4)
    assert "8 times the state at 1.00 times the tokens" in capsys.readouterr().out


def test_a_wrong_scan_has_no_ratio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(Cuda):
        @classmethod
        def bwd(cls, *args):
            return [None if d is None else 1.05 * d for d in super().bwd(*args)]

    code, document = run(tmp_path, Wrong, monkeypatch)
    assert code == 1 and not document["verdict"] and "tokens_s" not in document["rows"][MAMBA1]
    code, document = run(tmp_path, None, monkeypatch)
    assert code == 0 and "not here" in document["rows"][MAMBA1]["missing"] and "tokens_s" in document["rows"][MAMBA2]


def test_the_mamba_1_layer_sees_the_past_alone_and_has_every_gradient() -> None:
    torch.manual_seed(0)
    layer = mamba1_layer.Mamba1(32, mamba1_layer.cuda_scan(Cuda), d_state=4)
    inputs = torch.randn(2, 10, 32)
    out = layer(inputs)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in layer.parameters())
    changed = inputs.clone()
    changed[:, 6:] += 1
    torch.testing.assert_close(layer(changed)[:, :6], out[:, :6])
    assert not torch.allclose(layer(changed)[:, 6:], out[:, 6:])


def test_every_type_is_built_or_refused() -> None:
    """selective_scan.cpp asks for three types of operands with two of weights, in both directions."""
    text = selective_scan.others()
    refused = {line for line in text.splitlines() if line.startswith("template void")}
    assert len(refused) == 4 + 5 and not [line for line in refused if "fwd_cuda<at::BFloat16" in line]
    assert (
        "template void selective_scan_bwd_cuda<at::BFloat16, c10::complex<float>>(SSMParamsBwd &, cudaStream_t);"
        in text
    )
    assert "bwd_cuda<at::BFloat16, float>" not in text


def test_building_wants_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="csrc/selective_scan"):
        selective_scan.sources(tmp_path)
    folder = tmp_path / "csrc" / "selective_scan"
    folder.mkdir(parents=True)
    for name in (*selective_scan.FILES, "selective_scan_fwd_fp32.cu"):
        (folder / name).touch()
    assert [path.name for path in selective_scan.sources(tmp_path)] == list(selective_scan.FILES)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv(selective_scan.SOURCE, raising=False)
    assert selective_scan.SOURCE in selective_scan.load()[1]
    monkeypatch.setenv(selective_scan.SOURCE, str(tmp_path))
    assert selective_scan.load() == (None, "no GPU to build it for")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)

    def build(folder: Path):
        raise RuntimeError("Error building extension\nmore")

    monkeypatch.setattr(selective_scan, "build", build)
    assert selective_scan.load() == (None, "it could not be built: Error building extension")


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert layer_training.main([]) == 2 and "sees none here" in capsys.readouterr().err
    assert selective_scan.main(["--source", "nowhere"]) == 2
