"""States that the forward pass keeps: the same results and gradients, and no walk makes them again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import ssdgen.mamba2_ops as ops
from ssdgen.mamba2_ops import memory, select
from ssdgen.mamba2_ops.errors import SettingError
from ssdgen.mamba2_ops.launchers import backward as backward_launcher
from ssdgen.mamba2_ops.launchers import forward as forward_launcher
from ssdgen.plan import catalogue
from ssdgen.plan.schedules.walk import Walk
from tests.parity import configs
from tests.parity.cases import Case, draw

DEVICES = [pytest.param("cpu", marks=pytest.mark.interpreter), pytest.param("cuda", marks=pytest.mark.gpu)]
# batch, seqlen, nheads, headdim, dstate, ngroups: odd, and with two tiles of both
SIZES = [(2, 37, 4, 16, 16, 2), (1, 70, 2, 24, 96, 1)]
FORWARD = {
    "single_pass": {"schedule": "single_pass", "chunk": 16, "kernels": {}},
    # step sizes in the walk, where none are kept
    "inline": {"schedule": "single_pass", "chunk": 16, "prepared": False, "kernels": {}},
    "segments": {"schedule": "segments", "chunk": 16, "segment": 32, "state_dtype": "float32", "kernels": {}},
}
BACKWARD = {
    "chunks": {"schedule": "chunks", "chunk": 16, "state_dtype": "float32", "kernels": {}},
    "walk": {"schedule": "walk", "chunk": 16, "state_dtype": "float32", "kernels": {}},
    "chunks in segments": {
        "schedule": "chunks", "chunk": 16, "segment": 32, "state_dtype": "float32", "kernels": {},
    },
}  # fmt: skip
MAKING = "chunk_states"
CASES = [(SIZES[0], forward, backward) for forward in FORWARD for backward in BACKWARD]
CASES += [(SIZES[1], "single_pass", "walk"), (SIZES[1], "segments", "chunks")]


@pytest.fixture(autouse=True)
def by_kernels(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("SSDGEN_FORCE_TRITON", "1")
    monkeypatch.setenv("SSDGEN_NO_TUNE", "1")
    select.forget()
    yield
    select.forget()


def drawn(sizes: tuple[int, ...], device: str, dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    batch, seqlen, nheads, headdim, dstate, ngroups = sizes
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    given = {"x": normal(batch, seqlen, nheads, headdim), "z": normal(batch, seqlen, nheads, headdim)}
    given |= {name: normal(batch, seqlen, ngroups, dstate) / dstate**0.5 for name in "BC"}
    given = {name: value.to(dtype) for name, value in given.items()}
    given |= {"dt": normal(batch, seqlen, nheads), "A": -torch.rand(nheads, generator=generator) - 0.1}
    given |= {"D": normal(nheads), "dt_bias": normal(nheads), "initial_states": normal(batch, nheads, headdim, dstate)}
    return {name: value.to(device).requires_grad_() for name, value in given.items()}


def step(given: dict[str, Tensor], **options: Any) -> list[Tensor]:
    """y, the final states and all gradients."""
    others = {name: given[name] for name in ("D", "z", "dt_bias", "initial_states")}
    outputs = ops.mamba_chunk_scan_combined(
        *(given[name] for name in ("x", "dt", "A", "B", "C")), 64, **others, dt_softplus=True,
        return_final_states=True, **options,
    )  # fmt: skip
    adjoints = [torch.linspace(-1, 1, out.numel(), device=out.device).view(out.shape).to(out.dtype) for out in outputs]
    return [*(out.detach() for out in outputs), *torch.autograd.grad(outputs, list(given.values()), adjoints)]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Names of the kernels of the plans that were made since it was asked last."""
    names: list[str] = []
    for launcher in (forward_launcher, backward_launcher):
        monkeypatch.setattr(launcher, "_recipes", type(launcher._recipes)())

        def plan(*args: Any, made: Any = launcher._plan, **options: Any) -> Any:
            found = made(*args, **options)
            names.extend(launch.kernel.__name__ for launch in found.launches)
            return found

        monkeypatch.setattr(launcher, "_plan", plan)

    def since() -> list[str]:
        found = names.copy()
        names.clear()
        return found

    return since


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("sizes", "forward", "backward"), CASES)
def test_they_are_those_that_the_backward_pass_makes(
    sizes: tuple[int, ...],
    forward: str,
    backward: str,
    device: str,
    launched: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    monkeypatch.setattr(select, "default_config", lambda *_: FORWARD[forward])
    monkeypatch.setattr("ssdgen.mamba2_ops.backward_defaults.default_backward", lambda *_: BACKWARD[backward])
    given = drawn(sizes, device, torch.float32, seed)
    seq_idx = torch.repeat_interleave(torch.tensor([3, 1]), torch.tensor([21, sizes[1] - 21])).to(device)
    for options in ({}, {"seq_idx": seq_idx.expand(sizes[0], -1).contiguous()}):
        monkeypatch.delenv("SSDGEN_KEEP_STATES", raising=False)
        wanted, before = step(given, **options), launched()
        assert any(name.startswith(MAKING) for name in before)
        monkeypatch.setenv("SSDGEN_KEEP_STATES", "1")
        # the second time by what was found the first time
        for again in (False, True):
            found, names = step(given, **options), launched()
            for made, right in zip(found, wanted, strict=True):
                torch.testing.assert_close(made, right, rtol=2e-4, atol=2e-5)
            if again and device == "cuda":
                # an interpreter leaves no code by which a call could be made again
                assert names == []
                continue
            assert any(name.endswith("_keeping") for name in names)
            assert not any(name.startswith((MAKING, "state_passing")) for name in names[len(names) // 2 :])


@pytest.mark.parametrize("device", DEVICES)
def test_without_gradients_none_are_kept(
    device: str, launched: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setenv("SSDGEN_KEEP_STATES", "1")
    given = drawn(SIZES[0], device, torch.float32, seed)
    with torch.no_grad():
        ops.mamba_chunk_scan_combined(*(given[name] for name in ("x", "dt", "A", "B", "C")), 64, dt_softplus=True)
    assert launched() and not any(name.endswith("_keeping") for name in launched())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("change", [{"chunk": 32}, {"state_dtype": "bfloat16"}, {"slices": 2}])
def test_others_than_the_backward_pass_makes_are_made_again(
    change: dict[str, Any],
    device: str,
    launched: Callable[[], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    monkeypatch.setattr(select, "default_config", lambda *_: FORWARD["single_pass"])
    config = BACKWARD["chunks"] | change
    monkeypatch.setattr("ssdgen.mamba2_ops.backward_defaults.default_backward", lambda *_: config)
    monkeypatch.setenv("SSDGEN_KEEP_STATES", "1")
    found = step(drawn(SIZES[0], device, torch.float32, seed))
    assert any(name.startswith(MAKING) for name in launched())
    monkeypatch.delenv("SSDGEN_KEEP_STATES")
    for made, right in zip(found, step(drawn(SIZES[0], device, torch.float32, seed)), strict=True):
        torch.testing.assert_close(made, right, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("norm", [False, True], ids=["gate", "norm"])
def test_the_split_layer_hands_them_over(
    norm: bool, device: str, launched: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Its convolution and its norm are made again all the same."""
    batch, seqlen, nheads, headdim, dstate, ngroups = SIZES[0]
    generator = torch.Generator().manual_seed(seed)
    channels = nheads * headdim + 2 * ngroups * dstate

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device).requires_grad_()

    given = [normal(batch, seqlen, nheads * headdim + channels + nheads), normal(channels, 4), normal(channels)]
    given += [normal(nheads) for _ in range(3)]
    scale = [normal(nheads * headdim)] if norm else []

    def made() -> list[Tensor]:
        zxbcdt, weight, bias, dt_bias, A, D = given
        y = ops.mamba_split_conv1d_scan_combined(
            zxbcdt, weight, bias, dt_bias, -A.exp(), D, 64, headdim=headdim, ngroups=ngroups,
            rmsnorm_weight=scale[0] if norm else None,
        )  # fmt: skip
        return [y.detach(), *torch.autograd.grad(y.square().sum(), [*given, *scale])]

    wanted, before = made(), launched()
    assert any(name.startswith(MAKING) for name in before)
    monkeypatch.setenv("SSDGEN_KEEP_STATES", "1")
    for _ in range(2):
        for found, right in zip(made(), wanted, strict=True):
            torch.testing.assert_close(found, right, rtol=2e-4, atol=2e-4)
        names = launched()
        assert not any(name.startswith(MAKING) for name in names), names


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [(2, 300, 8, 64, 128, 2), (1, 257, 4, 128, 256, 2), (2, 130, 4, 64, 64, 1)])
def test_kernels_that_are_specialised_by_warps(
    sizes: tuple[int, ...], launched: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """In bf16, with the records that ship: gradients as near as those of states that are made again."""
    monkeypatch.delenv("SSDGEN_NO_TUNE")
    select.forget()
    given = drawn(sizes, "cuda", torch.bfloat16, seed)
    wanted, before = step(given), launched()
    assert any(name.startswith(MAKING) for name in before)
    monkeypatch.setenv("SSDGEN_KEEP_STATES", "1")
    found, names = step(given), launched()
    # of two tiles of dstate they are made again, by the backward pass that is remembered
    kept = sizes[4] <= 128
    assert any("consumer" in name and name.endswith("_keeping") for name in names) == kept
    assert not any(name.startswith(MAKING) for name in names), names
    for made, right in zip(found, wanted, strict=True):
        error = (made.float() - right.float()).norm() / right.float().norm()
        assert error < 1e-2


@pytest.mark.parametrize("consumers", [1, 2])
def test_two_tiles_of_dstate_are_kept_by_no_kernel_that_is_specialised_by_warps(consumers: int) -> None:
    """Nor by a plain one instead: to make the states again is faster than either."""
    numbers = {"consumers": consumers, "num_stages": 2, "terms": 2}
    config = {"schedule": "single_pass", "chunk": 64, "prepared": True, "kernels": {"single_pass": numbers}}
    for dstate, kept in ((128, True), (200, False)):
        call = draw(Case(1, 1024, 8, 64, dstate, 1, "bfloat16", ("D", "dt_softplus"))).on("meta")
        plan = configs.launches(config, call, keeps=True)
        assert any(launch.kernel.__name__.endswith("_keeping") for launch in plan.launches) is kept
        assert ("states" in plan.tensors) is kept
        assert any("consumer" in launch.kernel.__name__ for launch in plan.launches)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [shape for shape in catalogue.keeping() if shape.consumers], ids=lambda s: s.name)
def test_every_kernel_that_is_specialised_by_warps(
    shape: Walk, launched: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    numbers = {"consumers": shape.consumers, "num_stages": 2, "ahead": shape.ahead}
    numbers |= {"terms": "apart" if shape.apart else 2} | ({"maxnreg": 128} if shape.consumers == 1 else {})
    config = {"schedule": "single_pass", "chunk": 64, "aside": not shape.prepared}
    monkeypatch.setattr(select, "default_config", lambda *_: {**config, "kernels": {"single_pass": numbers}})
    given = drawn((2, 300, 8, 64, 128 * shape.n_tiles, 2), "cuda", torch.bfloat16, seed)
    wanted, _ = step(given), launched()
    monkeypatch.setenv("SSDGEN_KEEP_STATES", "1")
    found, names = step(given), launched()
    assert shape.name in names and not any(name.startswith(MAKING) for name in names)
    for made, right in zip(found, wanted, strict=True):
        assert (made.float() - right.float()).norm() / right.float().norm() < 1e-2


def test_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSDGEN_KEEP_STATES", raising=False)
    assert not memory.keeps_states()
    for text, kept in (("0", False), ("1", True)):
        monkeypatch.setenv("SSDGEN_KEEP_STATES", text)
        assert memory.keeps_states() is kept
    monkeypatch.setenv("SSDGEN_KEEP_STATES", "yes")
    with pytest.raises(SettingError, match="SSDGEN_KEEP_STATES is 'yes'; give 1 to keep"):
        memory.keeps_states()
