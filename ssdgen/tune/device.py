"""The GPU that is here.  driver -> Gpu, Identity -> campaign, commands"""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from typing import Any

import torch
import triton

from .. import gpus
from ..gpus import Gpu
from ..pack.records import Identity
from .errors import TuneError


def name_here() -> str | None:
    """The name of the current GPU as its driver has it, or None if torch sees no GPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def gpu_here() -> Gpu:
    """The current GPU, from `gpus.KNOWN` or, if it is not there, from what the driver says.  Errors: TuneError."""
    name = name_here()
    if name is None:
        raise TuneError("torch sees no GPU here; name one to predict for with --gpu")
    return gpus.of_device(name) or unknown(name, torch.cuda.get_device_properties(torch.cuda.current_device()))


def unknown(name: str, properties: Any) -> Gpu:
    """A GPU that is not in `gpus.KNOWN`: its own limits, and for rates a known one's, by the number of multiprocessors.

    properties: as torch.cuda.get_device_properties gives them.  The rates only serve the model and the roofline.
    Errors: TuneError for an architecture that no known GPU has anything in common with.
    """
    hip = bool(getattr(properties, "gcnArchName", "")) and torch.version.hip is not None
    arch = properties.gcnArchName.split(":")[0] if hip else f"sm{properties.major}{properties.minor}"
    # the same architecture, else the next older one of the same vendor
    alike = [gpu for gpu in gpus.KNOWN if gpu.arch == arch]
    if not alike and not hip:
        capability = 10 * properties.major + properties.minor
        older = [gpu for gpu in gpus.KNOWN if gpu.backend == "cuda" and int(gpu.capability) < capability]
        alike = sorted(older, key=lambda gpu: int(gpu.capability))[-1:]
    if not alike:
        raise TuneError(f"{name} ({arch}) is of an architecture that ssdgen does not know; add it to ssdgen/gpus.py")
    sms = properties.multi_processor_count
    nearest = min(alike, key=lambda gpu: abs(gpu.sms - sms))
    share = sms / nearest.sms
    return replace(
        nearest,
        name=slug(name),
        aliases=(),
        arch=arch,
        capability=arch if hip else 10 * properties.major + properties.minor,
        sms=sms,
        smem_per_cta=getattr(properties, "shared_memory_per_block_optin", nearest.smem_per_cta),
        smem_per_sm=getattr(properties, "shared_memory_per_multiprocessor", nearest.smem_per_sm),
        l2_bytes=properties.L2_cache_size or nearest.l2_bytes,
        copy_tbs=nearest.copy_tbs * share,
        bf16_tflops=nearest.bf16_tflops * share,
        device_names=(name,),
    )


def slug(device_name: str) -> str:
    """A device's name as a folder may have it: "NVIDIA RTX A6000" is "rtx_a6000"."""
    words = re.findall(r"[a-z0-9]+", device_name.lower())
    return "_".join(word for word in words if word not in ("nvidia", "geforce", "amd", "graphics", "gpu"))


def identity(gpu: Gpu) -> Identity:
    """What a folder of records measured on the current GPU says of it."""
    smi = _smi("driver_version", "clocks.max.sm", "clocks.max.memory")
    clocks = {name: float(mhz) for name, mhz in zip(("max_sm", "max_memory"), smi[1:], strict=False) if mhz.isdigit()}
    return Identity(
        arch=gpu.arch,
        gpu=gpu.name,
        name=torch.cuda.get_device_name(),
        driver=smi[0] if smi else None,
        torch=torch.__version__,
        triton=triton.__version__,
        clocks_mhz=clocks,
    )


def predicted_identity(gpu: Gpu) -> Identity:
    """What a folder of predictions says: nothing ran there, and only the compiler's version matters."""
    return Identity(
        arch=gpu.arch,
        gpu=gpu.name,
        name=gpu.device_names[0],
        driver=None,
        torch=None,
        triton=triton.__version__,
        clocks_mhz={},
    )


def _smi(*fields: str) -> list[str]:
    """What nvidia-smi says of the current GPU; empty without it, as on AMD's."""
    uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
    command = ["nvidia-smi", f"--id=GPU-{uuid}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [value.strip() for value in answer.strip().split(",")]
