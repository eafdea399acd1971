"""The recall example: its task, its model, and when curves agree.  On a CPU with a few steps, by the PyTorch path."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from benchmarks import recall  # noqa: E402
from benchmarks.recall_model import IGNORED, Model, Sizes, Task  # noqa: E402
from ssdgen.mamba2_ops import mamba_chunk_scan_combined  # noqa: E402

TASK, SIZES = Task(pairs=4, seqlen=24, keys=8, values=8), Sizes(d_model=32, headdim=16, dstate=16)
RUN = {"device": "cpu", "steps": 3, "seed": 1, "task": TASK, "sizes": SIZES, "batch": 4, "low": False}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors are small: threads that wait for each other on a busy machine take longer than the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_task_asks_for_the_value_of_a_key() -> None:
    tokens, targets = TASK.batch(16, seed=3)
    assert tokens.shape == targets.shape == (16, 24) and tokens.max() < TASK.vocabulary
    for row, wanted in zip(tokens.tolist(), targets.tolist(), strict=True):
        pairs = dict(zip(row[:8:2], row[1:8:2], strict=True))
        assert len(pairs) == 4
        asked = {row[at]: value for at, value in enumerate(wanted) if value != IGNORED}
        assert asked == pairs and all(value == IGNORED for value in wanted[:8])
    again, _ = TASK.batch(16, seed=3)
    other, _ = TASK.batch(16, seed=4)
    assert torch.equal(tokens, again) and not torch.equal(tokens, other)


def test_every_parameter_has_a_gradient_and_the_past_alone_is_seen() -> None:
    model = Model(TASK.vocabulary, SIZES, mamba_chunk_scan_combined)
    tokens, _ = TASK.batch(2, seed=0)
    logits = model(tokens)
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    changed = tokens.clone()
    changed[:, 12:] = 0
    torch.testing.assert_close(model(changed)[:, :12], logits[:, :12])


def test_the_public_call_trains_like_the_pytorch_path() -> None:
    ours, _ = recall.train(mamba_chunk_scan_combined, rounded=False, **RUN)
    exact, _ = recall.train(recall.in_pytorch, rounded=False, **RUN)
    assert ours == pytest.approx(exact, rel=1e-5)
    rounded, _ = recall.train(recall.in_pytorch, rounded=True, **RUN)
    assert rounded != exact and rounded == pytest.approx(exact, rel=2e-2)


def test_it_learns() -> None:
    losses, _ = recall.train(recall.in_pytorch, rounded=False, **{**RUN, "steps": 30, "batch": 16})
    assert recall.smooth(losses)[-1] < recall.smooth(losses)[0] - 0.05


@pytest.mark.parametrize(("offset", "agrees"), [(0.0, True), (0.05, True), (0.5, False), (math.nan, False)])
def test_curves_agree_within_measured_noise(offset: float, agrees: bool) -> None:
    exact = [3.0 - step / 100 for step in range(100)]
    curves = {recall.EXACT: exact, recall.ROUNDED: [loss + 0.01 for loss in exact]}
    curves[recall.OURS] = [loss + (offset if step >= 50 else 0) for step, loss in enumerate(exact)]
    found = recall.verdict(curves)
    assert found["noise"] == pytest.approx(0.01) and found["agree"] == agrees
    # what training in bf16 itself costs, the peer shows
    curves[recall.PEER] = [loss + 0.4 for loss in exact]
    assert recall.verdict(curves)["agree"] == (offset == offset)
    curves[recall.PEER] = [math.nan for _ in exact]
    assert recall.verdict(curves)["agree"] == agrees


def test_a_run_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, picture = tmp_path / "recall.json", tmp_path / "recall.png"
    arguments = ["--small", "--steps", "3", "--batch", "2", "--device", "cpu", "--no-peer"]
    assert recall.main([*arguments, "--out", str(out), "--plot", str(picture)]) == 0
    document = json.loads(out.read_text())
    assert set(document["runs"]) == {recall.OURS, recall.EXACT, recall.ROUNDED} and document["verdict"]["agree"]
    assert "the curves agree" in capsys.readouterr().out
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        assert not picture.exists()
    else:
        assert picture.read_bytes().startswith(b"\x89PNG")
