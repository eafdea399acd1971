"""How long compiled kernels would take: a roofline with the costs of walking in steps.  Work, Resources -> microseconds

It ranks candidates for a GPU that is not there, no more.  A multiprocessor holds some CTAs, of one team of warps each
or of several that go their own way.  A trip of one team waits for its loads, barriers and products in turn; beside
others it takes at least its share of what the multiprocessor does in a cycle.  CTAs beyond what all multiprocessors
hold wait for the next wave, and no launch is faster than its bytes.

What a trip costs is counted in cycles, so that it carries over to a GPU with another clock.  The numbers are
`Constants`, fitted to measured candidates by benchmarks/calibrate.py and kept in constants.json beside this file.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from math import ceil
from pathlib import Path

from ..gpus import WITHOUT_MATRIX_UNITS, Gpu
from .compile import Compiled
from .counted import Work
from .resources import ctas_per_sm

FILE = Path(__file__).with_name("constants.json")

# special functions that a multiprocessor begins in a cycle, of every architecture in gpus.KNOWN
EXPS_PER_CYCLE = 16
# of the L2 cache, what states may take that are to be found there again: operands pass through it beside them
KEPT_SHARE = 0.6
# rows of a tile that one warp of a group multiplies
WARP_ROWS = 16
# fp32 operands go through the tensor cores as tf32, at half the rate
RATE_SHARE = {"bfloat16": 1.0, "float16": 1.0, "float32": 0.5, "int8": 1.0}


@dataclass(frozen=True)
class Constants:
    """What is fitted.

    launch_us: from one launch to the next in a CUDA graph.  memory_share: of a copy's bandwidth that a kernel reaches.
    l2_over_memory: bandwidth of the L2 cache over that of memory.
    trip, product, load: cycles that a team waits in a trip: barriers and scalar work; a matrix product that others wait
    for; a load that no pipeline hides.
    entry, entry_apart: operations for an entry of a tile in a pointwise formula: where all warps load, multiply and
    compute, and of consumers that another warp loads for.
    spill: cycles for a word that a thread keeps in memory for want of registers, there and back.
    crossing: how much longer the pointwise work takes where more warps share a tile than its rows give work to.
    overlap: share of what a multiprocessor is busy with that goes on beside the largest part of it.
    """

    launch_us: float
    memory_share: float
    l2_over_memory: float
    trip: float
    product: float
    load: float
    entry: float
    entry_apart: float
    spill: float
    crossing: float
    overlap: float


@cache
def fitted() -> Constants:
    """The constants of today."""
    return Constants(**json.loads(FILE.read_text())["constants"])


def to_json(constants: Constants, **about: object) -> str:
    """The text of constants.json.  about: what they were fitted to."""
    rounded = {name: float(f"{value:.3g}") for name, value in asdict(constants).items()}
    return json.dumps({**about, "constants": rounded}, indent=1) + "\n"


@dataclass(frozen=True)
class Estimate:
    """us: time of the launch.  Its parts, before the longest is taken: walk_us on the multiprocessors, and memory_us,
    l2_us for the bytes.  per_sm: CTAs that a multiprocessor holds."""

    us: float
    walk_us: float
    memory_us: float
    l2_us: float
    per_sm: int


def launch_time(
    work: Work, code: Compiled, gpu: Gpu, dtype: str, num_stages: int, constants: Constants | None = None
) -> Estimate:
    """Predicted time of one launch, alone on the GPU."""
    c, needs = constants or fitted(), code.resources
    per_sm = ctas_per_sm(needs, gpu)
    trips = work.trips
    # what a multiprocessor is busy with for one trip of one team, in cycles
    rate = gpu.bf16_tflops * 1e6 / (gpu.sms * gpu.clock_mhz) * RATE_SHARE[dtype]
    if gpu.arch in WITHOUT_MATRIX_UNITS:
        rate = 2.0 * gpu.fp32_lanes
    warps = needs.num_warps // work.teams
    products = work.flops / trips / rate
    exps = work.exps / trips / EXPS_PER_CYCLE
    entries = work.entries / trips * (c.entry_apart if work.consumers else c.entry) / gpu.fp32_lanes
    if work.chain and warps * WARP_ROWS > work.rows:
        entries *= c.crossing
    parts = (products, exps, entries + c.spill * needs.spilled / 4)
    # a pipeline hides the latency of loads behind the trips between
    load = c.load if num_stages <= 1 else c.load / (2 * num_stages)
    alone = c.trip + c.product * work.chain + load + sum(parts)
    busy = max(parts) + (1.0 - c.overlap) * (sum(parts) - max(parts))

    def step(resident: int) -> float:
        # teams hide each other's waiting until the multiprocessor is busy all the time
        return max(alone, resident * work.teams * busy)

    whole, rest = divmod(work.ctas, gpu.sms * per_sm)
    cycles = work.steps * (whole * step(per_sm) + (step(ceil(rest / gpu.sms)) if rest else 0.0))
    walk_us = cycles / gpu.clock_mhz

    spilled, far = _spilled_bytes(work, code, gpu, min(per_sm, ceil(work.ctas / gpu.sms)))
    # states that fit the cache are written to it and read from it
    near = work.kept_bytes if work.kept_at_once <= KEPT_SHARE * gpu.l2_bytes else 0.0
    memory_us = (work.memory_bytes - near + far) / (c.memory_share * gpu.copy_tbs) / 1e6
    l2_us = (work.loaded_bytes + near + spilled) / (c.l2_over_memory * gpu.copy_tbs) / 1e6
    return Estimate(c.launch_us + _longest(walk_us, memory_us, l2_us), walk_us, memory_us, l2_us, per_sm)


def _longest(*times: float) -> float:
    """The longest of what goes on at the same time, and a little for the others: they do not overlap perfectly."""
    return sum(each**4 for each in times) ** 0.25


def _spilled_bytes(work: Work, code: Compiled, gpu: Gpu, resident: int) -> tuple[float, float]:
    """What goes to the L2 cache and back for want of registers, and what of it does not stay there either.

    The L1 cache has what shared memory leaves of a multiprocessor.  resident: CTAs of a multiprocessor.
    """
    needs = code.resources
    of_cta = needs.spilled * needs.num_warps * gpu.warp_size
    kept = resident * of_cta
    if not kept:
        return 0.0, 0.0
    nearest = max(0, gpu.smem_per_sm - resident * needs.shared)
    traffic = 2.0 * of_cta * work.ctas * work.steps
    return traffic * max(0.0, 1 - nearest / kept), traffic * max(0.0, 1 - gpu.l2_bytes / (kept * gpu.sms))
