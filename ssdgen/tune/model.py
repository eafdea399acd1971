"""How long compiled kernels would take: a roofline with the costs of walking in steps.  Work, Resources -> microseconds

It ranks candidates for a GPU that is not there, no more.  Its constants are those with which it agrees with a prototype
of the single pass on an H200 (2.7b shape): with tensor descriptors and chunk 64 in 4 warps it took 287 us and is
predicted to take 277, with pointers 348 and 332, with chunk 128 in 8 warps 380 and 401.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from ..gpus import Gpu
from .compile import Compiled
from .counted import Work
from .resources import ctas_per_sm

# from one launch to the next in a CUDA graph
LAUNCH_US = 2.5
# a trip through a loop: barriers and scalar work; a matrix product that waits for another; a load that is waited for
STEP_US, PRODUCT_US, LOAD_US = 0.4, 0.35, 0.8
# per multiprocessor and microsecond at 1.7 GHz: 16 exponentials a cycle, 128 other operations of which each takes 8
EXPS_PER_US = 16 * 1700.0
WEIGHTS_PER_US = 128 * 1700.0 / 8
# bandwidth of the L2 cache over that of memory
L2_OVER_MEMORY = 2.0
# of the rate of large tiles, when a tile has fewer rows than the tensor cores of a Hopper work on together
SMALL_TILE_SHARE, LARGE_TILE_ROWS = 0.5, 64
# fp32 operands go through the tensor cores as tf32, at half the rate
RATE_SHARE = {"bfloat16": 1.0, "float16": 1.0, "float32": 0.5, "int8": 1.0}


@dataclass(frozen=True)
class Estimate:
    """us: time of the launch.  Its parts, before the longest is taken: walk_us on the multiprocessors, and memory_us,
    l2_us for the bytes.  per_sm: CTAs that a multiprocessor holds."""

    us: float
    walk_us: float
    memory_us: float
    l2_us: float
    per_sm: int


def launch_time(work: Work, code: Compiled, gpu: Gpu, dtype: str, num_stages: int) -> Estimate:
    """Predicted time of one launch, alone on the GPU."""
    needs = code.resources
    per_sm = ctas_per_sm(needs, gpu)
    # what a step costs one CTA if it has the multiprocessor for itself
    trips = work.ctas * work.steps
    rate = gpu.bf16_tflops / gpu.sms * 1e6 * RATE_SHARE[dtype] * _tile_share(work.rows, needs.num_warps, gpu)
    products_us = work.flops / trips / rate
    exps_us = work.exps / trips / EXPS_PER_US
    weights_us = work.exps / trips / WEIGHTS_PER_US
    # a pipeline hides the latency of loads behind the steps between
    load_us = LOAD_US if num_stages <= 1 else LOAD_US / (2 * num_stages)
    waiting_us = STEP_US + PRODUCT_US * work.chain + load_us
    alone_us = waiting_us + products_us + exps_us + weights_us

    def step_us(resident: int) -> float:
        # several CTAs hide each other's waiting until one unit of the multiprocessor is busy all the time
        return max(alone_us, resident * max(products_us, exps_us, weights_us))

    whole, rest = divmod(work.ctas, gpu.sms * per_sm)
    walk_us = work.steps * (whole * step_us(per_sm) + (step_us(ceil(rest / gpu.sms)) if rest else 0.0))

    memory_us = work.memory_bytes / gpu.copy_tbs / 1e6
    # what does not fit into registers goes to the cache and back at every step
    spilled = 2.0 * needs.spilled * needs.num_warps * gpu.warp_size * trips
    l2_us = (work.loaded_bytes + spilled) / (L2_OVER_MEMORY * gpu.copy_tbs) / 1e6
    return Estimate(LAUNCH_US + max(walk_us, memory_us, l2_us), walk_us, memory_us, l2_us, per_sm)


def _tile_share(rows: int, num_warps: int, gpu: Gpu) -> float:
    """Share of the tensor cores' rate that a tile can reach: Hopper's wide products want 64 rows and four warps."""
    wide = gpu.arch in ("sm90", "sm100")
    return SMALL_TILE_SHARE if wide and (rows < LARGE_TILE_ROWS or num_warps < 4) else 1.0
