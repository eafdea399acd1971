"""How far a result may be from float64, by dtype of the operands.  One table, with its reasons.

relative: |found - exact| / |exact| over all elements.  largest: the worst error of an
element over the largest exact element.

exact     fp32 products, as in PyTorch on a CPU and in Triton's interpreter: sums of a few hundred terms, and
          running sums of the log-decay up to about 100, whose rounding error (6e-8 * 100) is the decay's relative error
float32   products of fp32 operands may go through tf32 on tensor cores: 11 bits, 3e-4 to 6e-4 over a whole result
bfloat16  8 bits: rounding y once costs 1.7e-3, rounding scores, decayed x and the state for the matrix unit as
          much each
float16   three more bits than bfloat16: an eighth of its errors
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Limit:
    relative: float
    largest: float


LIMITS = {
    "exact": Limit(relative=1e-5, largest=3e-5),
    "float32": Limit(relative=2e-3, largest=4e-3),
    "bfloat16": Limit(relative=8e-3, largest=2e-2),
    "float16": Limit(relative=1e-3, largest=2.5e-3),
}


# the largest relative error of rounding a number once, by row of LIMITS
ROUNDING = {"exact": 2.0**-24, "float32": 2.0**-11, "bfloat16": 2.0**-8, "float16": 2.0**-11}


def widest(*dtypes: str, tensor_cores: bool = False) -> str:
    """The row of LIMITS of what a result passed through.  tensor_cores: fp32 products may be tf32."""
    rows = ["exact" if dtype == "float32" and not tensor_cores else dtype for dtype in dtypes]
    return max(rows, key=lambda row: LIMITS[row].largest)


def limit(*dtypes: str, tensor_cores: bool = False) -> Limit:
    """The widest limit of what a result passed through.  tensor_cores: fp32 products may be tf32."""
    return LIMITS[widest(*dtypes, tensor_cores=tensor_cores)]


def check(name: str, found: torch.Tensor, exact: np.ndarray, allowed: Limit) -> None:
    """Assert that a result has the right shape, is finite wherever the exact one is, and is near enough to it."""
    assert found.shape == exact.shape, f"{name} has shape {list(found.shape)}, not {list(exact.shape)}"
    values = found.detach().double().cpu().numpy()
    finite = np.isfinite(exact)
    assert np.isfinite(values[finite]).all(), f"{name} has {int((~np.isfinite(values[finite])).sum())} wild elements"
    error = np.abs(values - exact)[finite]
    size = np.abs(exact[finite])
    # results may be too small for their dtype: its least number is as good as zero
    nothing = torch.finfo(found.dtype).smallest_normal * torch.finfo(found.dtype).eps
    most = max(float(size.max(initial=0.0)), 1e-300)
    worst = float(error.max(initial=0.0))
    relative = float(np.linalg.norm(error) / max(float(np.linalg.norm(size)), 1e-300))
    if worst <= nothing:
        return
    assert worst <= allowed.largest * most, (
        f"{name}: worst error {worst:.2g} of {most:.2g}, {worst / most:.2g} > {allowed.largest:.2g}"
    )
    assert relative <= allowed.relative, f"{name}: relative error {relative:.2g} > {allowed.relative:.2g}"
