"""The model of compiled code: it must order what is known to be better and worse."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ssdgen import gpus
from ssdgen.plan.problem import Problem
from ssdgen.tune import model, work
from ssdgen.tune.compile import Compiled
from ssdgen.tune.counted import Work
from ssdgen.tune.resources import Resources

H200 = gpus.find("h200")
PROBLEM = Problem(8, 2048, 80, 64, 128, 1)
# one CTA per head of the 2.7B shape, 32 chunks of 64
WALK = Work(640, 32, 4, 3.5e8, 1e9, 640 * 32 * 3.67e6, 640 * 32 * 4224.0, 640 * 32 * 24576.0, 64)


@dataclass(frozen=True)
class Launch:
    kernel: Any
    grid: tuple[int, ...]
    args: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    maxnreg: int = 0


def launch(name: str, *grid: int, **args: Any) -> Launch:
    return Launch(SimpleNamespace(__name__=name), grid, args)


def code(registers: int = 200, spilled: int = 0, shared: int = 60_000, num_warps: int = 4) -> Compiled:
    return Compiled("single_pass", "", Resources(registers, spilled, shared, num_warps))


def us(counted: Work = WALK, made: Compiled | None = None, dtype: str = "bfloat16", stages: int = 3) -> float:
    return model.launch_time(counted, made or code(), H200, dtype, stages).us


def test_near_what_was_measured_on_an_h200() -> None:
    assert 230 < us(made=code(255, 8, 133_688)) < 400  # measured: 301
    chunks = 640 * 16
    wide = replace(WALK, steps=16, flops=chunks * 10.5e6, exps=chunks * 16640.0, entries=chunks * 65536.0, rows=128)
    assert 330 < us(wide, code(255, 232, 182_820, 8), stages=2) < 560  # measured: 435


def test_never_below_the_floor() -> None:
    c, estimate = model.fitted(), model.launch_time(WALK, code(), H200, "bfloat16", 3)
    assert estimate.memory_us == pytest.approx(3.5e8 / c.memory_share / H200.copy_tbs / 1e6)
    assert estimate.us > max(estimate.memory_us, WALK.flops / (H200.bf16_tflops * 1e6))
    bound = 1e10 / c.memory_share / H200.copy_tbs / 1e6
    assert us(replace(WALK, memory_bytes=1e10)) == pytest.approx(c.launch_us + bound, rel=1e-3)


def test_what_is_worse_takes_longer() -> None:
    assert us(made=code(spilled=2000)) > 2 * us()
    assert us(made=code(registers=255, shared=150_000)) > us()
    assert us(stages=1) > us()
    assert us(dtype="float32") > us()
    # warps beyond those that a tile has rows for
    assert us(made=code(num_warps=8)) > us()
    assert us(replace(WALK, ctas=20, flops=WALK.flops / 32, exps=WALK.exps / 32)) > us() / 8


@pytest.mark.parametrize("what", ["flops", "exps", "entries", "memory_bytes", "loaded_bytes", "chain", "steps"])
def test_more_work_is_never_quicker(what: str) -> None:
    more = [us(replace(WALK, **{what: getattr(WALK, what) * times})) for times in (1, 4, 32)]
    assert more == sorted(more) and more[-1] > more[0]


@pytest.mark.parametrize("what", ["copy_tbs", "bf16_tflops", "clock_mhz", "sms", "smem_per_sm", "l2_bytes"])
def test_a_better_gpu_is_never_slower(what: str) -> None:
    better = replace(H200, **{what: 2 * getattr(H200, what)})
    # the same share of the tensor cores for each multiprocessor and cycle
    if what in ("clock_mhz", "sms"):
        better = replace(better, bf16_tflops=2 * H200.bf16_tflops)
    for made in (code(), code(spilled=400), code(shared=120_000)):
        assert model.launch_time(WALK, made, better, "bfloat16", 3).us <= us(made=made) * (1 + 1e-9)


def test_spills_beyond_the_caches_are_moved() -> None:
    small = replace(H200, l2_bytes=2**20)
    some, many = (model.launch_time(WALK, code(spilled=n), small, "bfloat16", 3) for n in (8, 2000))
    # what stays in the L1 cache costs the walk alone
    assert some.memory_us == pytest.approx(us_of_memory()) and some.l2_us < many.l2_us
    assert many.memory_us > 10 * some.memory_us


def us_of_memory() -> float:
    return WALK.memory_bytes / model.fitted().memory_share / H200.copy_tbs / 1e6


def test_consumers_share_a_multiprocessor() -> None:
    """Two of one program do as much as two programs of one, and what they compute costs less."""
    two = replace(WALK, ctas=320, consumers=2)
    apart = replace(WALK, consumers=1)
    both = us(two, code(168, shared=120_000, num_warps=12)), us(apart, code(128, shared=100_000, num_warps=8))
    assert both[0] == pytest.approx(both[1], rel=0.1) and max(both) < us(made=code(255, shared=100_000))


def test_work_of_a_single_pass() -> None:
    x = torch.empty(8, 2048, 80, 64, dtype=torch.bfloat16, device="meta")
    B = torch.empty(8, 2048, 1, 128, dtype=torch.bfloat16, device="meta")
    config = {"schedule": "single_pass", "chunk": 64, "kernels": {"single_pass": {"heads": 2, "block_p": 64}}}
    descriptor = SimpleNamespace(base=x)
    counted = work.of_launch(
        launch("single_pass_2heads_tma", 40, 1, 8, x_desc=descriptor, B_ptr=B, seqlen=2048, D_ptr=None), config, PROBLEM
    )
    assert (counted.ctas, counted.steps, counted.rows) == (320, 32, 64)
    assert counted.memory_bytes == 2 * (x.numel() + B.numel())
    # C B^T once for both heads, and three more products each
    assert counted.flops == 320 * 32 * (2 * 64 * 64 * 128 + 2 * (2 * 64 * 64 * 64 + 2 * 2 * 64 * 128 * 64))
    one = work.of_launch(launch("single_pass", 80, 1, 8), {**config, "kernels": {"single_pass": {}}}, PROBLEM)
    assert one.flops > counted.flops
    # states by rows of headdim stay in registers
    rows = {**config, "kernels": {"single_pass": {"state_major": "p"}}}
    assert work.of_launch(launch("single_pass_pmajor", 80, 1, 8), rows, PROBLEM).entries < one.entries


@pytest.mark.parametrize("kernel", ["single_pass", "segment_state"])
def test_two_consumers_walk_for_two_heads(kernel: str) -> None:
    config = {"schedule": "segments", "chunk": 64, "segment": 512}
    one, two = (
        work.of_launch(launch(kernel, 80 // n, 4, 8), {**config, "kernels": {kernel: {"consumers": n}}}, PROBLEM)
        for n in (1, 2)
    )
    assert (two.ctas, two.teams, two.steps) == (one.ctas // 2, 2, one.steps)
    assert (one.trips, one.flops, one.exps, one.entries) == (two.trips, two.flops, two.exps, two.entries)
    # B and C come once for both
    assert two.loaded_bytes < one.loaded_bytes


def test_work_of_a_chunk_scan() -> None:
    """Rows of a tile go through the columns up to the diagonal: five eighths of the scores of a chunk in four tiles."""
    numbers = {"block_m": 64, "block_k": 64, "block_p": 64}
    config = {"schedule": "split", "chunk": 256, "kernels": {"chunk_scan": numbers}}
    counted = work.of_launch(launch("chunk_scan", 4 * 80, 8, 8), config, PROBLEM)
    assert counted.steps == round(2.5) and counted.rows == 64
    scores = 320 * 64 * 2 * 64 * 64 * 2 * (128 + 64)
    assert counted.flops == scores + 320 * 64 * 2 * 64 * 128 * 64


def test_work_of_segments_and_small_kernels() -> None:
    config = {"schedule": "segments", "chunk": 64, "segment": 512, "kernels": {"segment_state": {}, "single_pass": {}}}
    assert work.of_launch(launch("segment_state", 80, 4, 8), config, PROBLEM).steps == 8
    assert work.of_launch(launch("state_passing", 80, 4, 8), config, PROBLEM).steps == 4
    assert work.of_launch(launch("dt_cumsum", 80, 4, 8), config, PROBLEM).flops == 0
    split = {"schedule": "split", "chunk": 256, "kernels": {"segment_state": {"heads": 2}}}
    assert work.of_launch(launch("segment_state", 40, 8, 8), split, PROBLEM).steps == 1
    assert work.of_launch(launch("state_passing", 80, 4, 8), split, PROBLEM).steps == 8
    with pytest.raises(ValueError, match="known: dt_cumsum"):
        work.of_launch(launch("attention", 1), config, PROBLEM)


def test_work_of_the_backward_pass() -> None:
    config = {"schedule": "chunks", "chunk": 64, "parts": 4, "state_dtype": "bfloat16", "kernels": {}}
    whole = work.of_launch(launch("chunk_gradients_2consumers", 1, 32, 8), {**config, "parts": 1}, PROBLEM)
    shared = work.of_launch(launch("chunk_gradients_2consumers", 4, 32, 8), config, PROBLEM)
    assert (whole.steps, shared.steps) == (80, 20) and whole.flops == shared.flops
    # of each head of each chunk: four products with a state and two of scores
    assert whole.flops == 8 * 32 * 80 * 2 * (4 * 64 * 128 * 64 + 2 * 64 * 64 * 64)
    consumers = {**config, "kernels": {"chunk_states": {"consumers": 2}}}
    one = work.of_launch(launch("chunk_states", 80, 1, 8), config, PROBLEM)
    two = work.of_launch(launch("chunk_states_2consumers", 40, 1, 8), consumers, PROBLEM)
    assert one.steps == two.steps == 32 and one.flops == two.flops
    segments = {**config, "segment": 512}
    assert work.of_launch(launch("chunk_adjoints", 80, 4, 8), segments, PROBLEM).steps == 8
    for passing in ("state_passing", "adjoint_passing", "both_passing"):
        assert work.of_launch(launch(passing, 16, 80, 8), segments, PROBLEM).steps == 4
    walk = {**config, "schedule": "walk"}
    assert work.of_launch(launch("reverse_walk_2n", 80, 1, 8), walk, PROBLEM).steps == 32
    assert work.of_launch(launch("group_gradients", 1, 32, 8), walk, PROBLEM).steps == 80
    assert work.of_launch(launch("dt_gradients", 10, 32, 8), walk, PROBLEM).flops == 0
    states = torch.empty(8, 32, 80, 64, 128, dtype=torch.bfloat16, device="meta")
    moved = work.of_launch(launch("chunk_states", 80, 1, 8, states_ptr=states), walk, PROBLEM).memory_bytes
    assert moved == 2 * states.numel()


def test_work_of_a_slice_is_what_its_launch_has() -> None:
    """Its heads and parts, and segments that are not the config's."""
    config = {"schedule": "chunks", "chunk": 64, "parts": 1, "segment": 1024, "state_dtype": "bfloat16", "kernels": {}}
    # one of four slices of a group's heads, in two parts each
    shared = launch("chunk_gradients_2consumers", 2, 32, 8, parts=8, ngroups=1)
    assert work.of_launch(shared, config, PROBLEM).steps == 10
    walk = {**config, "schedule": "walk"}
    assert work.of_launch(launch("group_gradients", 1, 32, 8, ngroups=4), walk, PROBLEM).steps == 20
    assert work.of_launch(launch("chunk_states", 20, 8, 8, segment_len=256), config, PROBLEM).steps == 4
    assert work.of_launch(launch("both_passing", 16, 80, 8, nsegments=8), config, PROBLEM).steps == 8


def test_segment_states_are_counted_in_both_passes() -> None:
    of_forward = {"schedule": "segments", "chunk": 64, "segment": 512, "kernels": {"segment_state": {"block_p": 64}}}
    of_backward = {"schedule": "walk", "chunk": 64, "segment": 512, "kernels": {"segment_state": {"block_p": 64}}}
    made = launch("segment_state", 80, 4, 8)
    assert work.of_launch(made, of_forward, PROBLEM) == work.of_launch(made, of_backward, PROBLEM)
