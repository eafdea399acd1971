"""Mistakes in a plan are noticed: every mask, statement, formula and index of every kernel is needed."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from ssdgen.plan import interpret, ir
from ssdgen.plan.interpret import BrokenPlan, run
from ssdgen.plan.schedules.walk import Walk
from ssdgen.spec.layer import Layer
from tests.plan import mutants
from tests.plan.agree import inputs_of
from tests.spec.cases import Sizes

LAYER = Layer(skip="headdim", gate=True, dt_bias=True, dt_softplus=True, boundaries=True)
# every tile overhangs: 3 heads in blocks of 2, headdim 3 in a tile of 4, dstate 5 in one of 8 or in 4 + 2
BLOCKS = {"BLOCK_H": 2, "BLOCK_P": 4, "BLOCK_N": 8, "BLOCK": 4}
BLOCKS |= {"BLOCK_N_0": 4, "BLOCK_N_1": 2}

WALKS = (
    Walk(),
    Walk(row_tiles=2, n_tiles=2),
    Walk(prepared=False),
    Walk(descriptors=True),
    Walk(state_major="p"),
)
KERNELS: dict[str, dict[str, Any]] = {
    "dt_cumsum": {"schedule": "single_pass"},
    **{shape.name: {"schedule": "single_pass", "shape": shape} for shape in WALKS},
    "segment_state": {"schedule": "segments"},
    "state_passing": {"schedule": "segments", "segment": 4},
    "chunk_scan": {"schedule": "split"},
}
CHANGES = (
    mutants.without_a_mask,
    mutants.another_mask,
    mutants.another_formula,
    mutants.left_out,
    mutants.forgotten,
    mutants.elsewhere,
)


class Launch:
    """A launch of a kernel as a schedule made it, and what the kernel wrote."""

    def __init__(self, kernel: ir.Kernel, tensors: dict[str, Any], *numbers: dict[str, Any]):
        self.kernel, self.numbers = kernel, numbers
        self.tensors = {name: None if array is None else array.copy() for name, array in tensors.items()}
        self.written = self.run(kernel)

    def run(self, kernel: ir.Kernel) -> list[Any]:
        tensors = {name: None if array is None else array.copy() for name, array in self.tensors.items()}
        run(kernel, tensors, *self.numbers)
        return [tensors[tensor.name] for tensor in kernel.tensors if tensor.out and tensors[tensor.name] is not None]

    def differs(self, kernel: ir.Kernel) -> bool:
        try:
            pairs = zip(self.run(kernel), self.written, strict=True)
            return not all(np.allclose(found, right, 1e-9, 1e-9, equal_nan=True) for found, right in pairs)
        except BrokenPlan:
            return True


@lru_cache
def launches(name: str) -> tuple[Launch, ...]:
    """Launches of a kernel with every option, with none, and for packed sequences where it takes them."""
    sizes = Sizes(seqlen=23, nheads=3, headdim=3, dstate=5)
    arrays = inputs_of(LAYER, sizes, 0, limits=(0.2, 1.2))
    arrays["A"] = np.array([-0.1, -0.2, -0.3])
    # boundaries inside every part of a chunk and between two chunks; the middle one of three segments has none
    arrays["seq_idx"] = np.repeat([[3, 4, 5, 7, 8]], [1, 2, 15, 2, 3], axis=1)
    arrays["initial_states"] = np.random.default_rng(0).normal(size=(1, 3, 3, 5))
    # the last chunk ends in its second half above, in its first half here
    shorter = {**arrays, **{of: arrays[of][:, :21] for of in ("x", "dt", "B", "C", "z", "seq_idx")}}
    bare = {of: shorter[of] for of in ("x", "dt", "A", "B", "C")}
    packed = {**bare, "cu_seqlens": np.array([0, 6, 7, 21])}
    found: list[Launch] = []

    def record(kernel: ir.Kernel, tensors: dict[str, Any], *numbers: dict[str, Any]) -> None:
        if kernel.name == name:
            found.append(Launch(kernel, {t.name: tensors[t.name] for t in kernel.tensors}, *numbers))
        run(kernel, tensors, *numbers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpret, "run", record)
        for inputs in (arrays, shorter, bare, *([packed] if "inline" in name else [])):
            interpret.forward(LAYER, inputs=inputs, chunk=4, constants=BLOCKS, **KERNELS[name])
    return tuple(found)


def needless(name: str, what: str) -> bool:
    """Changes that change nothing."""
    # the first of two tiles never overhangs
    return "2n" in name and "n_0_in" in what and "no Mask" not in what


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("name", KERNELS)
def test_every_mistake_is_noticed(name: str, change: mutants.Change):
    calls = launches(name)
    plan = calls[0].kernel
    unnoticed = [
        what
        for what, broken in mutants.mutants(plan, change)
        if not needless(name, what) and not any(call.differs(broken) for call in calls)
    ]
    assert not unnoticed
