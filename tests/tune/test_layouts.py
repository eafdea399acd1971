"""Head layouts other than Mamba-2's are searched, judged and found like any problem."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from ssdgen import gpus
from ssdgen.commands.tune import tune
from ssdgen.mamba2_ops import paths, select
from ssdgen.mamba2_ops.match import Gpu
from ssdgen.pack.records import Direction, Identity
from ssdgen.plan.problem import OTHER_LAYOUTS, Problem
from ssdgen.spec.layouts import LAYOUTS
from ssdgen.tune import gate, inputs, load_path, reference, shapes
from ssdgen.tune.choices import Choices
from ssdgen.tune.passes import PASSES, used_kernels
from ssdgen.tune.recording import record_of
from ssdgen.tune.results import Result

IDENTITY = Identity("sm90", "h200", "NVIDIA H200", "570", "2.9", "3.6", {})
DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")
BOTH = pytest.mark.parametrize("layout", OTHER_LAYOUTS)


def problem(layout: str) -> Problem:
    return Problem(2, 70, 6, 16, 16, 2, "float32", layout)


def naive(x, dt, A, B, C, D) -> tuple[torch.Tensor, torch.Tensor]:
    """y and the final states by the whole matrix of each head, operands repeated for the heads that share them."""
    heads = dt.shape[2]
    x, B, C = (operand.repeat_interleave(heads // operand.shape[2], dim=2).transpose(1, 2) for operand in (x, B, C))
    s = A.transpose(1, 2).cumsum(-1)
    decay = (s[..., :, None] - s[..., None, :]).tril().exp().tril()
    weighted = x * dt.transpose(1, 2)[..., None]
    y = ((C @ B.mT) * decay) @ weighted + D[:, None, None] * x
    last = (s[..., -1:] - s).exp()[..., None]
    return y.transpose(1, 2), (weighted * last).mT @ B


def test_the_layouts_are_those_of_the_description() -> None:
    assert set(shapes.LAYOUTS) == set(LAYOUTS)
    with pytest.raises(ValueError, match="layout is 'multi-head'; it must be one of multi-contract, multi-expand"):
        problem("multi-head")


@BOTH
def test_the_references_are_the_naive_matrix(layout: str) -> None:
    it, p = PASSES["backward"], problem(layout)
    given = it.draw(p, "cpu", 3, True)
    assert given.inputs.dt_bias is None and given.inputs.A.shape == given.inputs.dt.shape and (given.inputs.A < 0).all()
    for operand in ("x", "B", "C"):
        entries = p.nheads if LAYOUTS[layout].per_head(operand) else p.ngroups
        assert getattr(given.inputs, operand).shape[2] == entries
    leaves = {name: value.double().requires_grad_() for name, value in given.inputs.tensors().items()}
    results = naive(**leaves)
    for found, wanted in zip(reference.forward(given.inputs, list(range(p.nheads))), results, strict=True):
        assert gate.relative_error(found, wanted.detach().float()) < 1e-6
    adjoints = (given.d_y.double(), given.d_final.double())
    exact = dict(zip(leaves, torch.autograd.grad(results, list(leaves.values()), adjoints), strict=True))
    found = it.expect(given, p)
    assert set(found) == set(exact)
    for name, gradient in found.items():
        assert gradient.shape == exact[name].shape
        assert gate.relative_error(gradient, exact[name].float()) < 1e-6, name


@pytest.mark.parametrize("gpu", ["h200", "a100"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@BOTH
def test_what_is_legal_can_be_launched(layout: str, direction: Direction, gpu: str) -> None:
    """Every start, the default and configs by chance, down to kernels that are there."""
    it, p = PASSES[direction], Problem(2, 2048, 8, 64, 128, 2, layout=layout)
    target = gpus.find(gpu)
    choices, numbers = Choices(it.space, p, target), random.Random(0)
    configs = [it.space.default(p, target), *it.space.starts(p, target)]
    parameters = choices.parameters(configs[-1])
    assert parameters is not None
    for _ in range(60):
        config = choices.config(choices.near(parameters, numbers))
        if it.space.legal(config, p, target) is None:
            configs.append(config)
            parameters = choices.parameters(config) or parameters
    assert len(configs) > 10
    given, suffix = it.draw(p, "meta", 0, False), layout.replace("-", "_")
    for config in configs:
        names = [launch.kernel.__name__ for launch in it.plan(config, given, False).launches]
        assert any(name.endswith(suffix) for name in names) and not any("consumer" in name for name in names)


@pytest.fixture
def an_h200(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def gpu_of(device: torch.device) -> Gpu:
        return Gpu("NVIDIA H200", "sm90", 132)

    gpu_of.cache_clear = lambda: None  # type: ignore[attr-defined]
    monkeypatch.setattr(select, "gpu_of", gpu_of)
    monkeypatch.setenv("SSDGEN_TUNED", str(tmp_path))


def check(direction: Direction, p: Problem) -> load_path.Checked:
    it = PASSES[direction]
    config = it.space.minimal(it.space.SCHEDULES[0], p)
    kernels = dict.fromkeys(used_kernels(direction, config, p), "ab")
    record = record_of(direction, p, Result(config, 1.0, 0.0, 1e-4, 1e-3), "measured", kernels)
    given = it.draw(p, "cpu", 0, True)
    return load_path.check(record, IDENTITY, kernels, given, it.expect(given, p), torch.device("cpu"))


@pytest.mark.usefixtures("an_h200")
@pytest.mark.parametrize("direction", DIRECTIONS)
@BOTH
def test_the_public_call_finds_the_record(layout: str, direction: Direction) -> None:
    assert 0 < check(direction, problem(layout)).error < 1e-4


@pytest.mark.interpreter
@pytest.mark.usefixtures("an_h200")
@pytest.mark.parametrize("direction", DIRECTIONS)
@BOTH
def test_the_public_call_runs_the_kernels_of_the_record(
    layout: str, direction: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSDGEN_FORCE_TRITON", "1")
    launcher: Any = {"forward": paths.forward_launcher, "backward": paths.backward_launcher}[direction](layout)
    ran, real = [], getattr(launcher, direction)

    def noting(config: Any, *operands: Any, **options: Any) -> Any:
        ran.append(config)
        return real(config, *operands, **options)

    monkeypatch.setattr(launcher, direction, noting)
    assert 0 < check(direction, problem(layout)).error < 1e-3
    it = PASSES[direction]
    assert ran == [it.space.minimal(it.space.SCHEDULES[0], problem(layout))]


def test_a_record_is_of_its_layout_alone() -> None:
    p = problem("multi-contract")
    assert p.to_json()["layout"] == "multi-contract" and "layout" not in replace(p, layout="").to_json()
    assert Problem(**p.to_json()) == p  # type: ignore[arg-type]
    assert inputs.random(replace(p, layout=""), "meta", 0).dt_bias is not None


def test_shapes_in_a_layout_have_names_of_their_own() -> None:
    (name, p), *rest = shapes.parse("2.7b, 1,64,4,16,16,2", layout="multi-expand").items()
    assert (name, p.layout, p.ngroups) == ("2.7b multi-expand", "multi-expand", 1) and shapes.name_of(p) == name
    assert [name for name, _ in rest] == ["1,64,4,16,16,2 multi-expand"]
    ((name, p),) = shapes.parse("2.7b", layout="multi-head").items()
    assert (name, p.layout, p.ngroups) == ("2.7b multi-head", "", 80)
    with pytest.raises(shapes.ShapeNameError, match="layout is 'mixed'; it must be one of multi-input, multi-head"):
        shapes.parse("2.7b", layout="mixed")


def test_other_passes_have_no_layout() -> None:
    done = CliRunner().invoke(tune, ["--gpu", "h200", "--layout", "multi-expand", "--pass", "conv"])
    assert done.exit_code and "--layout multi-expand is of the scan alone" in str(done.exception or done.output)
