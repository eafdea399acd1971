"""What a GPU kernel is for, by its name.  {kernel: time} -> kernel_classes -> end_to_end"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import ssdgen.mamba2_ops.kernels as generated

# in this order: the first whose pattern is found in a name decides
PATTERNS = (
    ("convolution", r"^conv_|conv1d"),
    ("norm", r"norm"),
    ("decode step", r"^state_step|^replay|selective_scan_update|selective_state_update"),
    ("SSD", r"^_(chunk|bmm_chunk|state_passing)|selective_scan"),
    ("GEMM", r"gemm|gemv|nvjet|cutlass|xmma|cublas|splitK|matmul"),
    ("attention", r"flash|fmha|sdpa"),
    ("optimizer", r"multi_tensor|adam"),
    ("loss and embedding", r"softmax|nll|embedding|cross_entropy|indexing|gather|scatter|sort|arg_?max"),
    ("copies and casts", r"memcpy|memset|copy|cat"),
    ("elementwise", r"elementwise|reduce|distribution|pointwise"),
)
OTHER = "other"
CLASSES = (*(name for name, _ in PATTERNS), OTHER)


@cache
def _ours() -> frozenset[str]:
    """Names of the emitted kernels."""
    (folder,) = generated.__path__
    return frozenset(path.stem for path in Path(folder).glob("*.py"))


@cache
def classify(kernel: str) -> str:
    """One of CLASSES.  An emitted kernel that is of no other part of the layer is the SSD's."""
    for name, pattern in PATTERNS[:4]:
        if re.search(pattern, kernel, re.IGNORECASE):
            return name
    if kernel in _ours():
        return "SSD"
    for name, pattern in PATTERNS[4:]:
        if re.search(pattern, kernel, re.IGNORECASE):
            return name
    return OTHER


def shares(kernels: dict[str, tuple[int, float]]) -> dict[str, dict[str, float]]:
    """{class: {"launches", "us", "share"}} of {kernel: (launches, microseconds)}, the longest first."""
    made: dict[str, dict[str, float]] = {}
    for kernel, (launches, us) in kernels.items():
        part = made.setdefault(classify(kernel), {"launches": 0, "us": 0.0})
        part["launches"] += launches
        part["us"] += us
    whole = sum(part["us"] for part in made.values())
    for part in made.values():
        part["share"] = part["us"] / whole if whole else 0.0
    return dict(sorted(made.items(), key=lambda each: -each[1]["us"]))
