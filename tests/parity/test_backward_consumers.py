"""Kernels of the backward pass that are specialised by warps, which Hopper alone runs: right, finite, the same bits.

As `test_consumers` has it for the forward pass.  Launched by config, in memory that was full of NaN.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

import ssdgen.mamba2_ops as ops
from ssdgen.mamba2_ops import select
from ssdgen.mamba2_ops.backward_defaults import default_backward
from ssdgen.mamba2_ops.launchers import backward as launcher
from ssdgen.mamba2_ops.problem import Problem
from ssdgen.plan import catalogue
from ssdgen.tune.gate import poisoned_memory
from tests.parity import gradients, tolerances
from tests.parity.cases import Call, Case, draw
from tests.parity.test_backward import EVERYTHING, OPTIONS, TIMES, arguments, run, verify
from tests.parity.test_training import replays_a_step

on_hopper = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
    ),
]
each_number = pytest.mark.parametrize("consumers", [1, 2])

# four whole chunks and one of a single token
BASE = Case(2, 257, 4, 64, 128, 1, "bfloat16", ("D", "dt_bias", "dt_softplus", "initial_states"))
WALKS = ("segment_state", "segment_adjoint", "chunk_states", "chunk_adjoints")
BACK = ("reverse_walk", "group_gradients")
NAMES = ("x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_states")


def config(
    consumers: int = 1,
    stages: int = 2,
    segment: int = 0,
    parts: int = 1,
    maxnreg: int = 0,
    roles: int = 2,
) -> dict[str, Any]:
    """consumers, stages: of the walks; roles: of what makes a chunk's gradients, which has as many stages."""
    numbers = {"consumers": consumers, "num_stages": stages, "maxnreg": maxnreg}
    found = {
        "schedule": "chunks",
        "chunk": 64,
        "parts": parts,
        "state_dtype": "bfloat16",
        "kernels": {**dict.fromkeys(WALKS, numbers), "chunk_gradients": {"consumers": roles, "num_stages": stages}},
    }
    return found | ({"segment": segment} if segment else {})


def walked(stages: int = 2, segment: int = 0, left: int = 0) -> dict[str, Any]:
    """The schedule "walk" with all kernels specialised.  stages: of the walk back and of what adds up heads.

    left: of the walk back; with it heads are added up in three roles.
    """
    found = config(2, segment=segment)
    del found["parts"], found["kernels"]["chunk_gradients"]
    back, heads = ({"consumers": count, "num_stages": stages} for count in (2, 2 + left))
    numbers = {"reverse_walk": {**back, "left": left}, "group_gradients": heads}
    return {**found, "schedule": "walk", "kernels": {**found["kernels"], **numbers}}


# segments of two chunks, and of one: then nothing walks, the chunks' states are the segments'
WAYS = {
    "whole": config(maxnreg=128),
    "two consumers": config(2),
    "segments": config(segment=128),
    "segments of two consumers": config(2, segment=128, parts=2),
    "split": config(2, segment=64),
    "three roles": config(1, maxnreg=128, roles=3),
    "three roles of parts": config(2, parts=2, roles=3),
    "beside": {**config(maxnreg=128), "beside": True},
    "segments beside": {**config(2, segment=128), "beside": True},
}
each_side = pytest.mark.parametrize("left", [0, 1], ids=["right", "left"])


def launched(how: dict[str, Any], case: Case) -> list[str]:
    """The kernels that a config launches for all gradients, in order."""
    return [launch.kernel.__name__ for launch in launches(how, case)]


def launches(how: dict[str, Any], case: Case, states: torch.Tensor | None = None) -> list[Any]:
    """Not yet made.  states: those that the forward pass has kept."""
    meta = draw(case).on("meta")
    d_y = torch.empty_like(meta.operands["x"], memory_format=torch.contiguous_format)
    d_final = torch.empty(case.batch, case.nheads, case.headdim, case.dstate, device="meta")
    given = arguments(meta, d_y, d_final)
    needs = frozenset(name for name in NAMES if given.get(name) is not None)
    return launcher.launches(how, **given, needs=needs, states=states).launches


def specialised(how: dict[str, Any], case: Case) -> set[str]:
    """Those of them that are specialised by warps, by the kernel that they take the place of."""
    names = (name for name in launched(how, case) if "consumer" in name)
    return {re.sub(r"(_\dn|_\dp)?(_blocks)?(_left)?_\dconsumers?$", "", name) for name in names}


def check(how: dict[str, Any], case: Case, **options: Any) -> None:
    """Right, and by the kernels that were meant: none of them in its plain form."""
    plain = {*WALKS, "chunk_gradients"} & set(launched(how, case))
    assert not plain, f"{plain} were to be specialised"
    verify(how, case, "cuda", **options)


# ---- which kernels run: no GPU needed


# headdim, dstate: dstate in one tile and in two; two of headdim go to two walks
SIZES = [(64, 16), (64, 96), (64, 128), (64, 200), (128, 128), (128, 256)]


def test_every_specialised_kernel_is_launched() -> None:
    """The calls of this file reach all that ship."""
    found = {
        name
        for headdim, dstate in SIZES
        for how in (*WAYS.values(), config(segment=64), walked(), walked(left=1))
        for ngroups in (1, BASE.nheads)
        for name in launched(how, replace(BASE, headdim=headdim, dstate=dstate, ngroups=ngroups))
    }
    assert set(catalogue.SPECIALISED) <= found


@pytest.mark.parametrize(("headdim", "dstate"), SIZES)
def test_where_a_chunk_is_too_large_the_plain_form_has_it(headdim: int, dstate: int) -> None:
    names = launched(config(2), replace(BASE, headdim=headdim, dstate=dstate))
    assert [name for name in names if name.startswith("chunk_states")][0].endswith("_2consumers")
    (last,) = (name for name in names if name.startswith("chunk_gradients"))
    assert (last == "chunk_gradients_2consumers") == (headdim == 64 and dstate <= 128)


@pytest.mark.parametrize(("headdim", "dstate"), SIZES)
def test_the_walk_back_and_what_adds_up_heads(headdim: int, dstate: int) -> None:
    case = replace(BASE, headdim=headdim, dstate=dstate)
    assert specialised(walked(), case) == specialised(walked(left=1), case) == {"chunk_states", *BACK}
    names = launched(walked(left=1), case)
    assert [name for name in names if "_left_" in name]
    assert [name for name in names if name.startswith("group_gradients")][0].endswith("_3consumers")
    # what is plain is cut so that registers hold more of it
    gated = launched(walked(), replace(case, options=("z",)))
    assert [name for name in gated if name.startswith("reverse_walk") and "consumer" not in name]
    assert [name for name in gated if name.startswith("group_gradients")][0].endswith("_2consumers")
    # an odd number of walks, and segments of one chunk, whose adjoints nobody keeps
    assert specialised(walked(), replace(case, nheads=3)) >= {"group_gradients"}
    assert "reverse_walk" not in specialised(walked(segment=64), case)
    assert ("reverse_walk" in specialised(walked(), replace(case, nheads=3))) == (headdim == 128)


@pytest.mark.parametrize("how", [config(2), walked()], ids=["chunks", "walk"])
@pytest.mark.parametrize(
    "case", [replace(BASE, dtype="float32"), replace(BASE, headdim=32), replace(BASE, dtype="float16")], ids=str
)
def test_other_operands_take_plain_kernels(case: Case, how: dict[str, Any]) -> None:
    """Of fp16 only what passes between segments, which is not moved through shared memory, could be specialised."""
    names = launched(how, case)
    assert not [name for name in names if "consumer" in name]


def test_the_default_of_this_architecture() -> None:
    """It takes them at a model's sizes, and only where they run."""
    sizes = Problem(2, 4096, 32, 64, 128, 1, "bfloat16")
    how = default_backward(sizes, 132, "sm90")
    names = launched(how, Case(2, 4096, 32, 64, 128, 1, "bfloat16", ("D",)))
    assert [name for name in names if "consumer" not in name] == ["dt_cumsum", "dt_gradients", "sum_heads"]
    assert names[-3] == "chunk_gradients_2consumers" and len(names) == 6
    for other in (
        default_backward(sizes, 132, "sm100"),
        default_backward(replace(sizes, dtype="float16"), 132, "sm90"),
        default_backward(replace(sizes, headdim=128), 132, "sm90"),
        default_backward(replace(sizes, dstate=256), 132, "sm90"),
    ):
        assert other["schedule"] == "walk"
    for headdim, dstate in ((128, 256), (128, 128), (64, 256)):
        wide = replace(sizes, headdim=headdim, dstate=dstate)
        how, case = default_backward(wide, 132, "sm90"), Case(2, 4096, 32, headdim, dstate, 1, "bfloat16", ("D",))
        assert specialised(how, case) >= {"chunk_states", *BACK}
        assert "group_gradients" not in specialised(default_backward(wide, 132, "sm100"), case)


# ---- on the GPU


class TestOnHopper:
    pytestmark = on_hopper

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("seqlen", [1, 63, 64, 65, 257, 1000])
    def test_every_length(self, seqlen: int, way: str) -> None:
        case = replace(BASE, batch=1, seqlen=seqlen, options=("D", "initial_states"))
        check(WAYS[way], case)

    @each_number
    @pytest.mark.parametrize("parts", [1, 2, 5])
    @pytest.mark.parametrize(("nheads", "ngroups"), [(1, 1), (10, 1), (10, 2), (24, 8)])
    def test_heads_of_a_group(self, nheads: int, ngroups: int, parts: int, consumers: int) -> None:
        """Odd numbers of heads for two consumers, and heads that programs do not share out evenly."""
        check(config(consumers, parts=parts), replace(BASE, batch=1, seqlen=200, nheads=nheads, ngroups=ngroups))

    @each_number
    @pytest.mark.parametrize("segment", [0, 128, 64])
    @pytest.mark.parametrize("dstate", [16, 64, 96, 128])
    def test_every_dstate(self, dstate: int, segment: int, consumers: int) -> None:
        check(config(consumers, segment=segment, parts=2), replace(BASE, dstate=dstate))

    @each_number
    @pytest.mark.parametrize("segment", [0, 128])
    @pytest.mark.parametrize(("headdim", "dstate"), [(128, 128), (64, 200), (80, 96)])
    def test_walks_alone(self, headdim: int, dstate: int, segment: int, consumers: int) -> None:
        """Two walks for one head, and two tiles of dstate; what a chunk gets is made by the plain kernel."""
        how, case = config(consumers, 1, segment=segment), replace(BASE, batch=1, headdim=headdim, dstate=dstate)
        assert {"chunk_states", "chunk_adjoints"} <= specialised(how, case)
        verify(how, case, "cuda")

    @pytest.mark.parametrize("stages", [2, 3])
    @pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
    def test_every_option(self, options: tuple[str, ...], stages: int) -> None:
        # of 8 heads every row of a wider projection is aligned, as descriptors want it
        case = replace(BASE, nheads=8 if "strided" in options else 5, dstate=64, options=options)
        for roles in (2, 3):
            check(config(1, stages, roles=roles), case)

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("final", [True, False])
    def test_all_options_at_a_models_sizes(self, final: bool, way: str) -> None:
        case = replace(BASE, seqlen=500, nheads=24, ngroups=8, options=EVERYTHING)
        check(WAYS[way], case, final=final)

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("seqlen", [1, 65, 1000])
    @pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
    def test_every_head_a_group(self, options: tuple[str, ...], seqlen: int, way: str) -> None:
        """Then a program has chunks of a head: fewer than a run, and more."""
        if seqlen == 1 and "initial_states" not in options:
            pytest.skip("A's gradient is zero, and what is found nothing but rounding")
        case = replace(BASE, seqlen=seqlen, nheads=8, ngroups=8, options=options)
        assert "chunk_gradients_by_head_2consumers" in launched(WAYS[way], case)
        check(WAYS[way], case)

    @pytest.mark.parametrize("stages", [2, 3])
    @pytest.mark.parametrize("way", ["whole", "segments of two consumers", "three roles"])
    def test_stages_wrap_around(self, way: str, stages: int) -> None:
        """Many heads for one program and many chunks for one walk, without z: three stages fit."""
        how = WAYS[way]
        how = {**how, "kernels": {name: {**how["kernels"][name], "num_stages": stages} for name in how["kernels"]}}
        check({**how, "parts": 1}, replace(BASE, batch=1, seqlen=1000, nheads=10))

    @pytest.mark.parametrize("options", [(), EVERYTHING], ids=["plain", "everything"])
    @pytest.mark.parametrize(
        "needs", [{"x"}, {"B"}, {"C"}, {"B", "C"}, {"dt"}, {"A", "dt_bias"}, {"D", "z"}, {"z"}, {"initial_states"}]
    )
    def test_only_what_is_asked_for(self, needs: set[str], options: tuple[str, ...]) -> None:
        case = replace(BASE, nheads=8, ngroups=2, options=options)
        there = {"x", "dt", "A", "B", "C"} | {"D" if name == "D_headdim" else name for name in options}
        if not needs <= there:
            pytest.skip("not among the options")
        for roles in (2, 3):
            check(config(2, parts=2, roles=roles), case, needs=frozenset(needs))

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("ngroups", [2, 32])
    @pytest.mark.parametrize("options", [("D", "dt_softplus"), EVERYTHING[:-1]], ids=["few", "many"])
    def test_runs_repeat_bit_by_bit(self, options: tuple[str, ...], ngroups: int, way: str) -> None:
        """Many programs, many times: a missing barrier shows as a difference now and then.

        From the second call on the launches are those that are remembered.
        """
        how, case = WAYS[way], Case(2, 1024, 32, 64, 128, ngroups, "bfloat16", options)
        given, first = run(how, case, "cuda")
        before = {name: value.clone() for name, value in given.items() if isinstance(value, torch.Tensor)}
        for _ in range(50):
            with poisoned_memory():
                again = launcher.backward(how, **given, needs=frozenset(first))
            assert all(torch.equal(again[name], first[name]) for name in first)
        assert all(torch.equal(given[name], value) for name, value in before.items()), "an operand was written"

    @each_side
    @pytest.mark.parametrize("stages", [1, 2, 3])
    @pytest.mark.parametrize("segment", [0, 128])
    @pytest.mark.parametrize(("headdim", "dstate"), [*SIZES, (80, 72)])
    def test_the_walk_back(self, headdim: int, dstate: int, segment: int, stages: int, left: int) -> None:
        """Tiles that overhang; more stages than fit are as many as do."""
        case = replace(BASE, headdim=headdim, dstate=dstate)
        verify(walked(stages, segment, left), case, "cuda")

    @each_side
    @pytest.mark.parametrize("seqlen", [1, 63, 64, 65, 1000])
    def test_the_walk_back_at_every_length(self, seqlen: int, left: int) -> None:
        verify(walked(left=left), replace(BASE, batch=1, seqlen=seqlen, headdim=128, dstate=256), "cuda")

    @each_side
    @pytest.mark.parametrize(("nheads", "ngroups"), [(2, 1), (3, 1), (10, 2), (24, 8)])
    @pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
    def test_the_walk_back_with_every_option(
        self, options: tuple[str, ...], nheads: int, ngroups: int, left: int
    ) -> None:
        """Odd numbers of walks, and the gate, take plain kernels in part."""
        nheads, ngroups = (8, 2) if "strided" in options else (nheads, ngroups)
        case = replace(BASE, batch=1, nheads=nheads, ngroups=ngroups, headdim=64, dstate=200, options=options)
        verify(walked(left=left), case, "cuda")

    @each_side
    @pytest.mark.parametrize("needs", [{"x"}, {"B"}, {"C"}, {"dt"}, {"A", "dt_bias"}, {"D"}, {"initial_states"}])
    def test_the_walk_back_makes_only_what_is_asked_for(self, needs: set[str], left: int) -> None:
        verify(walked(left=left), replace(BASE, batch=1, headdim=128, dstate=256), "cuda", needs=frozenset(needs))

    @each_side
    @pytest.mark.parametrize("segment", [0, 256])
    def test_the_walk_back_repeats_bit_by_bit(self, segment: int, left: int) -> None:
        how, case = walked(segment=segment, left=left), Case(2, 1024, 32, 128, 256, 2, "bfloat16", ("D", "dt_softplus"))
        given, first = run(how, case, "cuda")
        for _ in range(50):
            with poisoned_memory():
                again = launcher.backward(how, **given, needs=frozenset(first))
            assert all(torch.equal(again[name], first[name]) for name in first)

    @pytest.mark.parametrize("way", ["whole", "segments of two consumers", "split"])
    @pytest.mark.parametrize("A", [-1e-4, -100.0, 3.0])
    @pytest.mark.parametrize("size", [0.0, 1e-8, 20.0, 100.0, "mixed"])
    def test_extreme_steps_and_rates(self, size: float | str, A: float, way: str) -> None:
        """Decays that underflow, differences that cancel, rates that would make a state grow: all finite."""
        case = Case(1, 257, 4, 64, 128, 1, "bfloat16", ("D", "z", "initial_states"))
        call = draw(case)
        dt = call.operands["dt"]
        if size == "mixed":
            sizes = torch.tensor([0.0, 1e-8, 20.0, 100.0])
            dt = sizes[torch.randint(4, dt.shape, generator=torch.Generator().manual_seed(1))]
        else:
            dt = torch.full_like(dt, float(size))
        call = Call({**call.operands, "dt": dt, "A": torch.full((4,), A)}, call.options)
        adjoints = gradients.draw_adjoints(call)
        d_y, d_final = (t.to("cuda") for t in (adjoints.d_y, adjoints.d_final) if t is not None)
        needs = frozenset(name for name in NAMES if name in call.operands or name in call.options)
        with poisoned_memory():
            found = launcher.backward(WAYS[way], **arguments(call.on("cuda"), d_y, d_final), needs=needs)
        exact = gradients.exact(call, adjoints)
        row = tolerances.limit(case.dtype)
        for name, gradient in found.items():
            assert torch.isfinite(gradient).all(), f"d_{name}"
            if name in ("x", "B", "C", "D", "z", "initial_states"):
                allowed = tolerances.Limit(TIMES[name] * row.relative, TIMES[name] * row.largest)
                tolerances.check(f"d_{name}", gradient, exact[name], allowed)

    @pytest.mark.parametrize("options", [("D", "dt_bias", "dt_softplus"), EVERYTHING], ids=["few", "many"])
    def test_a_graph_captures_a_step_with_them(self, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
        """By the public function, which takes them by itself."""
        case = Case(2, 1030, 8, 64, 128, 1, "bfloat16", options)
        used = spied(monkeypatch)
        replays_a_step(case)
        assert used and all("chunk_gradients_2consumers" in launched(how, case) for how in used)

    def test_training_by_the_public_function(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One chunk for many programs, each with a few of the heads."""
        case = Case(1, 100, 24, 64, 128, 2, "bfloat16", ("D", "z", "dt_bias", "dt_softplus"))
        used = spied(monkeypatch)
        call = draw(case)
        adjoints = gradients.draw_adjoints(call)
        with poisoned_memory():
            _, found = gradients.run(ops.mamba_chunk_scan_combined, call.on("cuda"), adjoints)
        gradients.check(call, found, gradients.exact(call, adjoints), case.dtype, adjoints=adjoints)
        assert [how["parts"] for how in used] == [12]
        assert "chunk_gradients_2consumers" in launched(used[0], case)


def spied(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The configs that backward passes run with from now on: those of the built-in rule, whatever was tuned."""
    monkeypatch.setenv("SSDGEN_NO_TUNE", "1")
    select.forget()
    used: list[dict[str, Any]] = []
    backward = launcher.backward

    def remembering(how: dict[str, Any], *operands: Any, **options: Any) -> Any:
        used.append(how)
        return backward(how, *operands, **options)

    monkeypatch.setattr(launcher, "backward", remembering)
    monkeypatch.setattr(launcher, "again", lambda *given, **options: None)
    return used
