"""What only a GPU can show: sizes past 32-bit offsets, graphs, other devices, the host's time, configs too large."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from statistics import median
from typing import Any

import pytest
import torch

import ssdgen.mamba2_ops as ops
from ssdgen.mamba2_ops import select
from ssdgen.mamba2_ops.errors import SsdWarning
from ssdgen.mamba2_ops.problem import Problem as RuntimeProblem
from ssdgen.plan import space
from ssdgen.plan.problem import Problem
from ssdgen.spec.layer import Layer
from tests.parity import configs, tolerances
from tests.parity.cases import Call, Case, arguments, compare, draw, of_call

pytestmark = pytest.mark.gpu

# host time of one launch that is enqueued, everything in front of it included
HOST_US = 60
MODEL = Case(2, 512, 8, 64, 128, 1, "bfloat16", ("D", "dt_bias", "dt_softplus"))


def on_gpu(case: Case) -> dict[str, Any]:
    return arguments(case, draw(case).on("cuda"))


def chosen(case: Case) -> configs.Config:
    """The config that the public call takes."""
    sizes = RuntimeProblem(**configs.problem(case).to_json())
    return select.config_for(sizes, torch.device("cuda", torch.cuda.current_device()))


def window(call: Call, start: int, stop: int) -> Call:
    """Some tokens of a call, on the CPU."""
    operands = {k: (t if k == "A" else t[:, start:stop]).cpu() for k, t in call.operands.items()}
    return Call(operands, {k: t.cpu() if torch.is_tensor(t) else t for k, t in call.options.items()})


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize("schedule", [None, *space.SCHEDULES])
def test_past_two_to_the_31_elements(schedule: str | None) -> None:
    """The last tokens of 2.15e9 elements: exact, because a sequence starts 100 tokens before the end."""
    seqlen, nheads, headdim, dstate, last = 524_800, 64, 64, 128, 100
    assert seqlen * nheads * headdim > 2**31
    torch.cuda.empty_cache()
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, device="cuda", dtype=torch.bfloat16, generator=generator)

    operands = {
        "x": normal(1, seqlen, nheads, headdim),
        "dt": normal(1, seqlen, nheads),
        "A": -torch.rand(nheads, device="cuda", generator=generator) - 0.1,
        "B": normal(1, seqlen, 1, dstate),
        "C": normal(1, seqlen, 1, dstate),
    }
    seq_idx = torch.zeros(1, seqlen, dtype=torch.int32, device="cuda")
    seq_idx[:, -last:] = 1
    call = Call(operands, {"D": torch.ones(nheads, device="cuda"), "dt_softplus": True})
    whole = Call(operands, {**call.options, "seq_idx": seq_idx})
    if schedule is None:
        y, final = ops.mamba_chunk_scan_combined(**operands, **whole.options, chunk_size=256, return_final_states=True)
    else:
        sizes = Problem(1, seqlen, nheads, headdim, dstate, 1)
        y, final = configs.run(space.minimal(schedule, sizes), whole)
    assert final is not None
    exact = of_call(window(call, seqlen - last, seqlen), Layer(dt_softplus=True))
    allowed = tolerances.limit("bfloat16")
    tolerances.check("y", y[:, -last:], exact.y, allowed)
    tolerances.check("final_states", final, exact.final_states, allowed)
    # the first tokens must not have been overwritten by the last ones
    first = of_call(window(call, 0, last), Layer(dt_softplus=True))
    tolerances.check("first y", y[:, :last], first.y, allowed)


@pytest.mark.alone
@pytest.mark.slow
def test_a_batch_past_two_to_the_31_elements() -> None:
    """The same with many rows: the last row's offsets are past 32 bits however short it is."""
    case = Case(8200, 64, 64, 64, 16, 1, "bfloat16")
    assert case.batch * case.seqlen * case.nheads * case.headdim > 2**31
    torch.cuda.empty_cache()
    one = draw(Case(1, 64, 64, 64, 16, 1, "bfloat16"))
    # rows are copies of one: all must come out alike, and the last one right
    operands = {
        k: t.cuda() if k == "A" else t.cuda().expand(case.batch, *t.shape[1:]).contiguous()
        for k, t in one.operands.items()
    }
    y = ops.mamba_chunk_scan_combined(**operands, chunk_size=64)
    exact = of_call(one, Layer())
    tolerances.check("last row", y[-1:], exact.y, tolerances.limit("bfloat16"))
    assert torch.equal(y[-1], y[0]) and torch.equal(y[case.batch // 2], y[0])


@pytest.mark.parametrize("schedule", [None, *space.SCHEDULES])
def test_same_bits_every_time(schedule: str | None) -> None:
    call = draw(MODEL).on("cuda")

    def once() -> tuple[torch.Tensor, torch.Tensor]:
        if schedule is None:
            return ops.mamba_chunk_scan_combined(**arguments(MODEL, call))  # type: ignore[return-value]
        y, final = configs.run(space.minimal(schedule, configs.problem(MODEL)), call)
        assert final is not None
        return y, final

    y, final = once()
    for _ in range(20):
        again, end = once()
        assert torch.equal(again, y) and torch.equal(end, final)


@pytest.mark.parametrize("schedule", [None, *space.SCHEDULES])
def test_a_graph_captures_the_call(schedule: str | None) -> None:
    """Replayed with other contents in the same tensors, it computes those."""
    given = draw(MODEL).on("cuda")
    config = None if schedule is None else space.minimal(schedule, configs.problem(MODEL))

    def call() -> Any:
        if config is None:
            return ops.mamba_chunk_scan_combined(**arguments(MODEL, given))
        operands, options = configs.prepared(given)
        return configs.launcher.forward(config, *operands, **options)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, final = call()
    for tensor in (y, final):
        tensor.fill_(torch.nan)
    kept = given.operands["x"].clone()
    given.operands["x"].neg_()
    graph.replay()
    negative = y.clone()
    assert torch.equal(negative, call()[0])
    given.operands["x"].copy_(kept)
    graph.replay()
    compare(MODEL, y, final, None, tensor_cores=True)
    assert not torch.equal(y, negative)


def test_a_graph_captures_packed_sequences() -> None:
    case = Case(1, 300, 4, 64, 128, 1, "bfloat16", ("cu_seqlens", "D"))
    wanted = on_gpu(case)
    ops.mamba_chunk_scan_combined(**wanted)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, final, varlen = ops.mamba_chunk_scan_combined(**wanted)
    for tensor in (y, final, varlen):
        tensor.fill_(torch.nan)
    graph.replay()
    compare(case, y, varlen[-1:], varlen, tensor_cores=True)


@pytest.mark.alone
@pytest.mark.parametrize("schedule", [None, "described", *space.SCHEDULES])
def test_the_host_is_quick(schedule: str | None) -> None:
    """Enqueueing costs at most 60 us a kernel, all that Python does before included."""
    case = Case(1, 64, 4, 64, 64, 1, "bfloat16", ("D", "dt_bias", "dt_softplus"))
    sizes = configs.problem(case)
    given = draw(case).on("cuda")
    wanted = arguments(case, given)
    operands, options = configs.prepared(given)
    if schedule == "described":
        if torch.cuda.get_device_capability()[0] < 9:
            pytest.skip("tensor descriptors came with sm_90")
        config = configs.changed(space.minimal("single_pass", sizes), "single_pass.descriptors", True)
    else:
        config = chosen(case) if schedule is None else space.minimal(schedule, sizes)
    count = len(configs.launches(config, given).launches)

    def call() -> None:
        if schedule is None:
            ops.mamba_chunk_scan_combined(**wanted)
        else:
            configs.launcher.forward(config, *operands, **options)

    for _ in range(20):
        call()
    times = []
    for _ in range(200):
        # an empty queue: a full one would make the host wait for the device
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e6 / count)
    print(f"{median(times):.1f} us a launch, {count} launches")
    assert median(times) <= HOST_US


def test_a_config_that_does_not_fit_is_replaced_with_a_warning() -> None:
    """Tiles too large for the GPU: one warning that says so, and the right numbers from a smaller config."""
    case = Case(1, 512, 4, 128, 256, 1, "float32", ("D",))
    sizes = configs.problem(case)
    # of those that are too large, one that is soon compiled
    huge = configs.changed(space.minimal("single_pass", sizes), "chunk", 64)
    for name, value in (("block_p", 64), ("num_stages", 5), ("num_warps", 8)):
        huge = configs.changed(huge, f"single_pass.{name}", value)
    where = torch.device("cuda", torch.cuda.current_device())
    select.replace(RuntimeProblem(**sizes.to_json()), where, huge)
    with pytest.warns(SsdWarning, match="does not fit"):
        y, final = ops.mamba_chunk_scan_combined(**on_gpu(case))
    compare(case, y, final, None, tensor_cores=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, _ = ops.mamba_chunk_scan_combined(**on_gpu(case))
    assert torch.equal(again, y)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second GPU")
def test_another_device_than_the_current_one() -> None:
    assert torch.cuda.current_device() == 0
    y, final = ops.mamba_chunk_scan_combined(**arguments(MODEL, draw(MODEL).on("cuda:1")))
    assert y.device.index == 1 and torch.cuda.current_device() == 0
    compare(MODEL, y, final, None, tensor_cores=True)


def test_another_stream_than_the_default_one() -> None:
    """Work waits for the stream that is current, and for nothing else."""
    wanted = on_gpu(MODEL)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    kept, wanted["x"] = wanted["x"], torch.zeros_like(wanted["x"])
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        wanted["x"].copy_(kept)
        y, final = ops.mamba_chunk_scan_combined(**wanted)
    stream.synchronize()
    compare(MODEL, y, final, None, tensor_cores=True)


def test_nothing_waits_for_the_device() -> None:
    """Not once the contents of cu_seqlens are known, nor where rows are not packed."""
    packed = on_gpu(Case(1, 300, 4, 64, 128, 1, "bfloat16", ("cu_seqlens", "D", "one_state")))
    rows = on_gpu(Case(1, 300, 4, 64, 128, 1, "bfloat16", ("seq_idx", "D_headdim", "initial_states")))
    for wanted in (packed, rows):
        ops.mamba_chunk_scan_combined(**wanted)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for wanted in (packed, rows):
            ops.mamba_chunk_scan_combined(**wanted)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(autouse=True)
def look_up_afresh() -> Iterator[None]:
    select.forget()
    yield
    select.forget()
