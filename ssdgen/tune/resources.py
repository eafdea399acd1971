"""What compiled code needs of a multiprocessor.  cubin or assembly -> Resources -> model"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass

from triton import knobs

from ..gpus import Gpu

# CTAs and warps that a multiprocessor holds at most, as on every GPU in gpus.KNOWN or more
_MOST_CTAS, _MOST_THREADS = 32, 2048
# registers are handed out to a warp in blocks
_REGISTER_BLOCK = 256


class ResourcesError(RuntimeError):
    """The code cannot be inspected: a tool is missing or says something unknown."""


@dataclass(frozen=True)
class Resources:
    """registers: of a thread; spilled: bytes of a thread that live in memory for want of registers; shared: bytes."""

    registers: int
    spilled: int
    shared: int
    num_warps: int


def of_kernel(asm: Mapping[str, str | bytes], shared: int, num_warps: int, gpu: Gpu) -> Resources:
    """Read the code of a kernel as Triton left it.  asm: {"cubin": bytes} or {"amdgcn": text}.

    Errors: ResourcesError.
    """
    if gpu.backend == "hip":
        registers, spilled = parse_amdgcn(str(asm["amdgcn"]))
    else:
        registers, spilled = parse_cuobjdump(_resource_usage(bytes(asm["cubin"])))  # type: ignore[arg-type]
    return Resources(registers, spilled, shared, num_warps)


def parse_cuobjdump(text: str) -> tuple[int, int]:
    """(registers, bytes on the stack) from `cuobjdump --dump-resource-usage`.  Spills live on the stack."""
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if not found:
        raise ResourcesError(f"cuobjdump says nothing of registers: {text.strip()[:200]!r}; update Triton")
    return int(found[1]), int(found[2])


def parse_amdgcn(text: str) -> tuple[int, int]:
    """(vector registers, bytes of spills) from the metadata at the end of an AMD assembly."""
    found = {name: re.search(rf"\.{name}:\s*(\d+)", text) for name in ("vgpr_count", "agpr_count", "vgpr_spill_count")}
    if not found["vgpr_count"]:
        raise ResourcesError("the assembly has no .vgpr_count; update Triton")
    vector, accumulator, spills = (int(match[1]) if match else 0 for match in found.values())
    # on gfx942 the count of vector registers holds the accumulators already
    return max(vector, accumulator), 4 * spills


def ctas_per_sm(needs: Resources, gpu: Gpu) -> int:
    """How many CTAs a multiprocessor holds at once; 0 if not even one fits."""
    threads = needs.num_warps * gpu.warp_size
    per_warp = -(-needs.registers * gpu.warp_size // _REGISTER_BLOCK) * _REGISTER_BLOCK
    by_registers = gpu.regs_per_sm // max(1, per_warp * needs.num_warps)
    by_shared = gpu.smem_per_sm // needs.shared if needs.shared else _MOST_CTAS
    return min(by_registers, by_shared, _MOST_THREADS // threads, _MOST_CTAS)


def _resource_usage(cubin: bytes) -> str:
    """The report of the disassembler in Triton's own package."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        except (OSError, subprocess.SubprocessError) as error:
            raise ResourcesError(f"{command[0]} failed: {error}; reinstall Triton") from error
