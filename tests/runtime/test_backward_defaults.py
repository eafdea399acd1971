"""The rule for backward passes that nobody tuned: tiles by dtype and sizes, segments by how full the GPU is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ssdgen.mamba2_ops.backward_defaults import default_backward
from ssdgen.mamba2_ops.problem import Problem
from ssdgen.plan.problem import Problem as PlanProblem
from ssdgen.tune.passes import PASSES

MODEL = Problem(8, 2048, 80, 64, 128, 1, "bfloat16")


def test_a_full_gpu_walks_whole_sequences() -> None:
    assert "segment" not in default_backward(MODEL, 132)


@pytest.mark.parametrize(("batch", "segment"), [(1, 512), (2, 1024), (4, None)])
def test_segments_fill_the_gpu(batch: int, segment: int | None) -> None:
    assert default_backward(replace(MODEL, batch=batch), 132).get("segment") == segment


def test_a_segment_is_at_least_a_chunk() -> None:
    small = replace(MODEL, batch=1, seqlen=300, nheads=2)
    assert default_backward(small, 132)["segment"] == default_backward(small, 132)["chunk"]
    assert "segment" not in default_backward(replace(small, seqlen=64), 132)


@pytest.mark.parametrize(
    ("problem", "chunk", "states"),
    [
        (MODEL, 64, "bfloat16"),
        (replace(MODEL, dtype="float16"), 64, "bfloat16"),
        (replace(MODEL, dtype="float32"), 32, "float32"),
        (replace(MODEL, dstate=256), 32, "bfloat16"),
        (replace(MODEL, dstate=256, dtype="float32"), 16, "float32"),
    ],
)
def test_tiles_and_states_by_size(problem: Problem, chunk: int, states: str) -> None:
    config = default_backward(problem, 132)
    assert (config["chunk"], config["state_dtype"]) == (chunk, states)


@pytest.mark.parametrize(
    ("batch", "nheads", "parts"),
    [(8, 80, 1), (1, 80, 4), (1, 64, 4), (1, 6, 3), (1, 7, 1), (1, 2, 2)],
)
def test_parts_share_out_the_heads_evenly(batch: int, nheads: int, parts: int) -> None:
    """32 chunks a row, so that 132 multiprocessors have room for four programs for each of one row."""
    config = default_backward(replace(MODEL, batch=batch, nheads=nheads), 132, "sm90")
    assert config["parts"] == parts and nheads % parts == 0


@pytest.mark.parametrize("arch", ["sm80", "sm86", "sm89", "sm120"])
@pytest.mark.parametrize(
    ("problem", "schedule", "chunk"),
    [
        (MODEL, "chunks", 32),
        (replace(MODEL, headdim=128, dstate=256), "walk", 16),
        (replace(MODEL, dtype="float32"), "walk", 16),
    ],
)
def test_small_tiles_where_all_is_in_registers(problem: Problem, schedule: str, chunk: int, arch: str) -> None:
    config = default_backward(problem, 108, arch)
    assert (config["schedule"], config["chunk"]) == (schedule, chunk)


def test_parts_go_by_the_chunk() -> None:
    """64 chunks of 32 in a row of 2048: 132 multiprocessors have room for two programs for each, of 64 for four."""
    one = replace(MODEL, batch=1)
    assert default_backward(one, 132, "sm80")["parts"] == 2 and default_backward(one, 132, "sm90")["parts"] == 4


@pytest.mark.parametrize(("headdim", "dstate"), [(24, 96), (40, 96), (24, 200), (64, 300)])
@pytest.mark.parametrize("schedule", ["walk", "chunks"])
def test_what_was_tuned_for_specialised_warps_gives_way_to_what_fits_anywhere(
    schedule: str, headdim: int, dstate: int
) -> None:
    """A record of another head size names consumers, which these sizes do not have: nor its stages and registers."""
    walks = {"consumers": 1, "num_stages": 3, "maxnreg": 128}
    heads = {"consumers": 2, "num_stages": 3}
    config = {
        "schedule": schedule,
        "chunk": 64,
        "state_dtype": "bfloat16",
        "kernels": {
            **dict.fromkeys(("chunk_states", "chunk_adjoints"), walks),
            **dict.fromkeys(("reverse_walk", "group_gradients", "chunk_gradients"), heads),
        },
    }
    problem = PlanProblem(2, 130, 4, headdim, dstate, 2)
    it = PASSES["backward"]
    for launch in it.plan(config, it.draw(problem, "meta", 0, False), False).launches:
        assert "consumer" not in launch.kernel.__name__
        if not launch.kernel.__name__.startswith("dt_"):
            assert launch.num_stages == 1 and launch.maxnreg in (0, 255), launch.kernel.__name__
