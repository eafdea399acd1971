"""Every plan of the norms gives what its graph means, for all kinds, options and numbers of tiles."""

from __future__ import annotations

import numpy as np
import pytest

from ssdgen.plan.interpret import run
from ssdgen.plan.schedules.norm import BACKWARD_TILES, FORWARD_TILES, Rows, kernel
from ssdgen.spec.evaluate import evaluate
from ssdgen.spec.norm import KINDS, Norm, norm_adjoint, norm_graph

ROWS, GROUPS, SIZE, EPS = 5, 2, 6, 0.25
NAMES = [f"{'rms' if kind.rms else 'layer'}, {'gate first' if kind.gate_first else 'gate last'}" for kind in KINDS]


def draw(seed: int) -> dict[str, np.ndarray]:
    made = np.random.default_rng(seed)
    row, channel = (ROWS, GROUPS * SIZE), (GROUPS * SIZE,)
    shapes = {"x": row, "z": row, "d_y": row, "weight": channel, "bias": channel}
    return {name: made.standard_normal(shape) for name, shape in shapes.items()}


def expected(kind: Norm, arrays: dict[str, np.ndarray], flags: dict[str, bool]) -> dict[str, np.ndarray]:
    """y and the gradients, group after group."""
    found = {name: np.zeros((ROWS, GROUPS * SIZE)) for name in ("y", "d_x", "d_z")}
    found |= {name: np.zeros(GROUPS * SIZE) for name in ("d_weight", "d_bias")}
    for group in range(GROUPS):
        at = slice(group * SIZE, (group + 1) * SIZE)
        inputs = {name: array[..., at] for name, array in arrays.items()} | {"size": SIZE, "eps": EPS}
        d_y = inputs.pop("d_y")
        found["y"][:, at] = evaluate(norm_graph(kind), inputs, flags, ("y",))["y"]
        names = ("d_x", "d_z", "d_weight", "d_bias")
        for name, value in evaluate(norm_adjoint(kind), {**inputs, "d_y": d_y}, flags, names).items():
            found[name][..., at] = value
    return found


@pytest.mark.parametrize("options", ((), ("HAS_Z", "HAS_BIAS")))
@pytest.mark.parametrize(
    ("tiles", "backward"), [*((n, False) for n in FORWARD_TILES), *((n, True) for n in BACKWARD_TILES)]
)
@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_it_is_the_graph(kind: Norm, tiles: int, backward: bool, options: tuple[str, ...], seed: int) -> None:
    arrays = draw(seed)
    flags = {name: name in options for name in ("HAS_Z", "HAS_BIAS")}
    wanted = expected(kind, arrays, flags)
    outputs = ("d_x", "d_z") if backward else ("y",)
    made = {name: np.full_like(arrays["x"], np.nan) for name in outputs}
    parts = np.full((2, 2, GROUPS * SIZE), np.nan)
    sizes = {"rows": ROWS, "dim": GROUPS * SIZE, "group_size": SIZE, "ngroups": GROUPS, "nprograms": 2}
    blocks = {"BLOCK_T": 2, "BLOCK_D": 8 if tiles == 1 else 2, "BLOCK_D_0": 4, "BLOCK_D_1": 2}
    reals = {"size": float(SIZE), "eps": EPS}
    absent = dict.fromkeys([name for name, flag in (("z", "HAS_Z"), ("bias", "HAS_BIAS")) if not flags[flag]])
    run(kernel(Rows(kind, backward, tiles)), {**arrays, **made, "parts": parts, **absent}, sizes, blocks, flags, reals)
    if backward:
        made["d_weight"], made["d_bias"] = parts.sum(0)
    for name, array in made.items():
        if (name, "HAS_Z" in options) != ("d_z", False) and (name, "HAS_BIAS" in options) != ("d_bias", False):
            np.testing.assert_allclose(array, wanted[name], rtol=1e-11, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_rows_past_the_end_do_not_count(kind: Norm) -> None:
    """With eps = 0 a row of zeros has no finite scale, and one stands past the end of the last block."""
    arrays = draw(1)
    parts = np.full((1, 2, GROUPS * SIZE), np.nan)
    made = {name: np.full_like(arrays["x"], np.nan) for name in ("d_x", "d_z")}
    sizes = {"rows": ROWS, "dim": GROUPS * SIZE, "group_size": SIZE, "ngroups": GROUPS, "nprograms": 1}
    flags = {"HAS_Z": True, "HAS_BIAS": True}
    given = {**arrays, **made, "parts": parts}
    run(kernel(Rows(kind, True)), given, sizes, {"BLOCK_T": 4, "BLOCK_D": 8}, flags, {"size": 6.0, "eps": 0.0})
    assert np.isfinite(parts).all()
