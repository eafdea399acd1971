"""The GPUs that ssdgen knows by name: limits and rates as data.  -> roofline, space, tune, commands

Limits per multiprocessor are those of the CUDA C++ Programming Guide, table "Technical Specifications per Compute
Capability"; sizes, rates and boost clocks are the vendors' datasheets and architecture whitepapers, named beside each
GPU.  Only the H200's rates were measured; where nothing was, the same shares of the datasheet are taken as were reached
on the H200.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

# what the H200 reached of its datasheet: a copy 4.27 of 4.8 TB/s, a dense bf16 product 790 of 989 TFLOP/s
COPY_SHARE, MATRIX_SHARE = 0.89, 0.80

# where Triton multiplies number by number, in fp32: it has matrix products from sm80 on
WITHOUT_MATRIX_UNITS = ("sm75",)

KB = 1024
MB = 1024 * KB


class UnknownGpuError(ValueError):
    """A GPU name that is not in `KNOWN`."""


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    arch: as it stands in folder names, "sm90" or "gfx942"; capability: as a compiler's target has it, 90 or "gfx942".
    smem_per_cta: the most shared memory that one CTA can ask for, bytes; smem_per_sm: of a multiprocessor, bytes.
    regs_per_sm: 32-bit registers of a multiprocessor.  l2_bytes: the last cache before memory.
    copy_tbs: bandwidth of a copy in TB/s (1e12 bytes, read plus written); bf16_tflops: dense bf16 products with fp32
    sums, TFLOP/s.  clock_mhz: of the multiprocessors at the datasheet's rates.  fp32_lanes: operations in fp32 that a
    multiprocessor begins in a cycle.  device_names: names under which drivers report it; more words may follow, see
    `of_device`.
    """

    name: str
    aliases: tuple[str, ...]
    arch: str
    backend: str
    capability: int | str
    warp_size: int
    sms: int
    smem_per_cta: int
    smem_per_sm: int
    regs_per_sm: int
    l2_bytes: int
    copy_tbs: float
    bf16_tflops: float
    clock_mhz: int
    fp32_lanes: int
    device_names: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Name of its folder of records."""
        return f"{self.arch}_{self.name}"


def _nvidia(
    name: str,
    capability: int,
    sms: int,
    l2_mb: int,
    copy_tbs: float,
    bf16_tflops: float,
    clock_mhz: int,
    device_names: tuple[str, ...],
    aliases: tuple[str, ...] = (),
) -> Gpu:
    # shared memory of a multiprocessor by compute capability; 1 KB is the system's, a CTA may ask for the rest
    per_sm = {75: 64, 80: 164, 86: 100, 89: 100, 90: 228, 100: 228, 120: 100}[capability] * KB
    per_cta = per_sm if capability == 75 else per_sm - KB
    return Gpu(
        name=name,
        aliases=aliases,
        arch=f"sm{capability}",
        backend="cuda",
        capability=capability,
        warp_size=32,
        sms=sms,
        smem_per_cta=per_cta,
        smem_per_sm=per_sm,
        regs_per_sm=65536,
        l2_bytes=l2_mb * MB,
        copy_tbs=copy_tbs,
        bf16_tflops=bf16_tflops,
        clock_mhz=clock_mhz,
        # of the same guide, table "Throughput of Native Arithmetic Instructions"
        fp32_lanes=64 if capability in (75, 80) else 128,
        device_names=device_names,
    )


KNOWN: tuple[Gpu, ...] = (
    # NVIDIA H200 datasheet: 4.8 TB/s, 989 TFLOP/s; both rates as measured.  Its driver reports 60 MB of L2
    _nvidia("h200", 90, 132, 60, 4.27, 790, 1830, ("NVIDIA H200",), ("h200-sxm", "h200-141gb")),
    # NVIDIA H100 datasheet, SXM: 3.35 TB/s, 989 TFLOP/s; Hopper whitepaper: 132 SMs, 50 MB
    _nvidia(
        "h100", 90, 132, 50, 3.35 * COPY_SHARE, 989 * MATRIX_SHARE, 1830, ("NVIDIA H100 80GB HBM3",), ("h100-sxm",)
    ),
    # NVIDIA A100 80GB datasheet, SXM: 2.039 TB/s, 312 TFLOP/s; Ampere whitepaper: 108 SMs, 40 MB
    _nvidia(
        "a100",
        80,
        108,
        40,
        2.039 * COPY_SHARE,
        312 * MATRIX_SHARE,
        1410,
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM-80GB"),
        ("a100-80gb", "a100-sxm"),
    ),
    # NVIDIA L40S datasheet: 864 GB/s, 362 TFLOP/s; Ada whitepaper: 142 SMs, 96 MB
    _nvidia("l40s", 89, 142, 96, 0.864 * COPY_SHARE, 362 * MATRIX_SHARE, 2520, ("NVIDIA L40S",)),
    # GA102 whitepaper, RTX 3090: 82 SMs, 6 MB, 936 GB/s, 71 TFLOP/s in bf16 with fp32 sums
    _nvidia(
        "rtx3090",
        86,
        82,
        6,
        0.936 * COPY_SHARE,
        71 * MATRIX_SHARE,
        1695,
        ("NVIDIA GeForce RTX 3090",),
        ("3090", "rtx-3090"),
    ),
    # Ada whitepaper, RTX 4090: 128 SMs, 72 MB, 1008 GB/s, 165.2 TFLOP/s in bf16 with fp32 sums
    _nvidia(
        "rtx4090",
        89,
        128,
        72,
        1.008 * COPY_SHARE,
        165.2 * MATRIX_SHARE,
        2520,
        ("NVIDIA GeForce RTX 4090",),
        ("4090", "rtx-4090"),
    ),
    # RTX Blackwell whitepaper, RTX 5090: 170 SMs, 96 MB, 1792 GB/s, 209.5 TFLOP/s in bf16 with fp32 sums
    _nvidia(
        "rtx5090",
        120,
        170,
        96,
        1.792 * COPY_SHARE,
        209.5 * MATRIX_SHARE,
        2407,
        ("NVIDIA GeForce RTX 5090",),
        ("5090", "rtx-5090"),
    ),
    # NVIDIA T4 datasheet: 320 GB/s, 65 TFLOP/s in fp16 (it has no bf16 products); Turing whitepaper: 40 SMs, 4 MB
    _nvidia("t4", 75, 40, 4, 0.320 * COPY_SHARE, 65 * MATRIX_SHARE, 1590, ("Tesla T4", "NVIDIA T4")),
    # NVIDIA DGX B200 datasheet, per GPU: 8 TB/s, 2250 TFLOP/s; the driver reports 148 SMs and 126 MB
    _nvidia("b200", 100, 148, 126, 8.0 * COPY_SHARE, 2250 * MATRIX_SHARE, 1850, ("NVIDIA B200",)),
    # AMD Instinct MI300X datasheet: 304 compute units, 5.3 TB/s, 1307 TFLOP/s, 256 MB of Infinity Cache;
    # CDNA 3 ISA: 64 KB of LDS and 4 x 512 registers of 64 lanes a unit
    Gpu(
        name="mi300x",
        aliases=("mi300",),
        arch="gfx942",
        backend="hip",
        capability="gfx942",
        warp_size=64,
        sms=304,
        smem_per_cta=64 * KB,
        smem_per_sm=64 * KB,
        regs_per_sm=4 * 512 * 64,
        l2_bytes=256 * MB,
        copy_tbs=5.3 * COPY_SHARE,
        bf16_tflops=1307 * MATRIX_SHARE,
        clock_mhz=2100,
        fp32_lanes=128,
        device_names=("AMD Instinct MI300X",),
    ),
)

# words after a device name that make it another chip: "RTX 4090 D", "RTX 4090 Laptop GPU", "H200 NVL", "RTX 3090 Ti"
_ANOTHER = re.compile(r"\s+(D|Ti|SUPER|NVL|PCIe|Laptop|Max-Q|Mobile)\b", re.IGNORECASE)


def find(name: str) -> Gpu:
    """The GPU of this name or alias, whatever its case.  Errors: UnknownGpuError, which lists what is known."""
    for gpu in KNOWN:
        if name.lower() in (gpu.name, *gpu.aliases):
            return gpu
    known = ", ".join(gpu.name + (f" ({', '.join(gpu.aliases)})" if gpu.aliases else "") for gpu in KNOWN)
    raise UnknownGpuError(f"unknown GPU {name!r}; known, with their other names: {known}")


def of_device(device_name: str) -> Gpu | None:
    """The known GPU behind a name that a driver reports ("NVIDIA H200"), or None: an unknown one or another build."""
    for gpu in KNOWN:
        for name in gpu.device_names:
            at = device_name.find(name)
            rest = device_name[at + len(name) :]
            if at >= 0 and not rest[:1].isalnum() and not _ANOTHER.match(rest):
                return gpu
    return None
