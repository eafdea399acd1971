"""What surrounds the measurements: the floor, the versions, the table.  timing -> report -> forward"""

from __future__ import annotations

import platform
import re

import torch

from benchmarks.workload import Shape
from ssdgen.plan.problem import Problem
from ssdgen.spec import roofline
from ssdgen.spec.layer import Layer

# tokens per chunk for the least FLOPs: they grow with it, and a smaller one leaves the tensor cores idle
CHUNK = 64

COLUMNS = ("b,L,H,P,N,G", "floor", "ssdgen", "share", "mamba_ssm", "GPU x", "eager", "host", "peer", "eager x", "error")


def environment() -> dict[str, str]:
    """Versions and the GPU's name; nothing about the machine that another run could not repeat."""
    import triton

    import ssdgen

    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
        "ssdgen": ssdgen.__version__,
    }


def slug(gpu: str) -> str:
    """File name for a GPU: "NVIDIA H200" gives "nvidia_h200"."""
    return re.sub(r"[^a-z0-9]+", "_", gpu.lower()).strip("_")


def floor(shape: Shape, ceilings: dict[str, float], backward: bool = False) -> dict[str, float | str]:
    """The least time of the call that is measured, y alone, from the description: floor_us, and what it is bound by.

    ceilings: copy_tbs and bf16_tflops, as timing measures them.  backward: of the backward pass instead.
    """
    layer = Layer(skip="head", dt_bias=True, dt_softplus=True)
    least = roofline.floor(
        layer, *shape.sizes, Problem(*shape.sizes).element_bytes, CHUNK, **ceilings, backward=backward
    )
    return {"floor_us": least.us, "bound_by": least.binds}


def _row(row: dict) -> tuple[str, ...]:
    mine = row["results"]["ssdgen"]
    peer = row["results"].get(row.get("peer"), {})
    chunk = row.get("peer", "").partition("=")[2]
    error = f"{mine['relative']:.2e}" + (f" / {peer['relative']:.2e}" if peer else "")
    eager = [result["eager_us"] for name, result in row["results"].items() if name != "ssdgen" and "eager_us" in result]
    return (
        ",".join(str(size) for size in row["sizes"]),
        f"{row['floor_us']:.0f}",
        f"{mine['gpu_us']:.0f}",
        f"{row['roofline_share']:.0%}",
        f"{peer['gpu_us']:.0f} (Q={chunk})" if peer else "-",
        f"{row['gpu_speedup']:.2f}" if "gpu_speedup" in row else "-",
        f"{mine['eager_us']:.0f}",
        f"{mine['host_us']:.0f}",
        f"{min(eager):.0f}" if eager else "-",
        f"{row['eager_speedup']:.2f}" if "eager_speedup" in row else "-",
        error if row["passed"] else f"WRONG {error}, limit {row['error_limit']:.2e}",
    )


def aligned(lines: list[tuple[str, ...]]) -> list[str]:
    """Lines of cells with columns of one width: it must print where neither rich nor a terminal is."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]


def table(rows: list[dict]) -> str:
    """A plain table, times in microseconds."""
    text = aligned([COLUMNS, *(_row(row) for row in rows)])
    notes = (
        "times in us, GPU times with a cold L2; eager, host, peer: wall time per call; error: |y - float64| / |float64|"
    )
    return "\n".join([*text, notes])
