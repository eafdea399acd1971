"""Emitted kernels as they were last looked at: one file each, for one kernel of every kind.

After a change that was meant run `make golden` and read the diff.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from ssdgen.emit import kernel as emission
from ssdgen.pack import templates
from ssdgen.plan import catalogue, mamba3, parts
from ssdgen.plan.schedules import diagonal, passing, prepare, scan, walk
from ssdgen.plan.schedules.scan import Scan
from ssdgen.plan.schedules.walk import Walk
from ssdgen.spec.layer import Layer
from ssdgen.spec.layouts import MULTI_CONTRACT, MULTI_HEAD
from ssdgen.spec.masks import CONSTANT, NONE

FOLDER = Path(__file__).resolve().parent
SSD = {
    "dt_cumsum": prepare.kernel,
    "segment_state": lambda layer: walk.kernel(layer, Walk(outputs=False)),
    "state_passing": passing.kernel,
    "diagonal_products": diagonal.kernel,
    "single_pass": lambda layer: walk.kernel(layer, Walk()),
    "chunk_scan": lambda layer: scan.kernel(layer, Scan()),
}
SHAPES = {
    shape.name: lambda layer, shape=shape: walk.kernel(layer, shape)
    for shape in (
        Walk(descriptors=True),
        Walk(heads=2),
        Walk(prepared=False),
        Walk(n_tiles=2, p_tiles=2),
        Walk(state_major="p"),
        Walk(consumers=2, descriptors=True, state_major="p", two_terms=True),
        Walk(consumers=2, descriptors=True, state_major="p"),
        Walk(consumers=1, descriptors=True, state_major="p", two_terms=True, ahead=True),
        Walk(consumers=1, descriptors=True, state_major="p", ahead=True, prepared=False, apart=True),
        Walk(outputs=False, consumers=1, descriptors=True, state_major="p"),
    )
}
BACKWARD = catalogue.BACKWARD
KINDS = {
    **{("ssd", name): (Layer(), make) for name, make in {**SSD, **SHAPES}.items()},
    **{("constant", name): (Layer(family=CONSTANT), SSD[name]) for name in ("dt_cumsum", "single_pass", "chunk_scan")},
    **{("none", name): (Layer(family=NONE), SSD[name]) for name in ("dt_cumsum", "segment_state", "single_pass")},
    ("multi_head", "single_pass"): (Layer(layout=MULTI_HEAD), SSD["single_pass"]),
    **{("ssd", name): (Layer(), BACKWARD[name]) for name in BACKWARD if "_2" not in name},
    **{
        ("ssd", name): (Layer(), catalogue.SPECIALISED[name])
        for name in (
            "chunk_gradients_2consumers",
            "chunk_gradients_3consumers",
            "chunk_gradients_by_head_2consumers",
            "chunk_adjoints_1consumer",
            "reverse_walk_2n_blocks_2consumers",
            "reverse_walk_2n_blocks_left_2consumers",
            "group_gradients_blocks_2consumers",
            "group_gradients_blocks_3consumers",
        )
    },
    ("ssd", "reverse_walk_2n_2p"): (Layer(), BACKWARD["reverse_walk_2n_2p"]),
    **{("constant", name): (Layer(family=CONSTANT), BACKWARD[name]) for name in ("reverse_walk", "dt_gradients")},
    **{("none", name): (Layer(family=NONE), BACKWARD[name]) for name in ("reverse_walk", "dt_gradients")},
    **{("ssd", name): (Layer(), make) for name, make in catalogue.DECODE.items() if not name.endswith("_untied_2n")},
    **{
        ("ssd", name): (Layer(), catalogue.TILED[name])
        for name in (
            "state_step_1tile",
            "state_step_2tiles",
            "state_step_1tile_units",
            "replay_step_2tiles",
            "replay_scores",
        )
    },
    **{("constant", name): (Layer(family=CONSTANT), catalogue.DECODE[name]) for name in ("state_step", "replay_step")},
    ("none", "state_step"): (Layer(family=NONE), catalogue.DECODE["state_step"]),
    ("multi_contract", "replay_step"): (Layer(layout=MULTI_CONTRACT), catalogue.DECODE["replay_step"]),
    ("multi_contract", "group_gradients"): (Layer(layout=MULTI_CONTRACT), BACKWARD["group_gradients"]),
}
# of the layer's other parts
PARTS = {
    ("parts", name): parts.kernels()[name]
    for name in (
        "conv_walk_4w",
        "conv_walk_backward_2w",
        "conv_tile_2w",
        "conv_tile_backward_2w",
        "conv_update_3w",
        "layer_norm_2d",
        "rms_norm_gate_first_backward_3d",
        "sum_heads",
        "sum_parts",
        "sum_parts_early",
    )
}
# of another recurrence's kernels, those that are new in it, and of the chunks' what changes most
PARTS |= {
    ("mamba3", name): mamba3.every()[name]
    for name in (
        "mamba3_steps",
        "mamba3_angles",
        "mamba3_step",
        "mamba3_turn_gradients",
        "mamba3_step_gradients",
        "single_pass",
    )
}
NAMES = (*KINDS, *PARTS)


def emitted(kind: str, name: str) -> str:
    templates.load()
    if (kind, name) in PARTS:
        return emission.module(*PARTS[kind, name])
    layer, make = KINDS[kind, name]
    kernel = make(layer)
    return emission.module(kernel, catalogue.graph(kernel, layer))


@pytest.mark.parametrize(("kind", "name"), NAMES, ids=[f"{kind}-{name}" for kind, name in NAMES])
def test_kernel(kind: str, name: str, update_golden: bool) -> None:
    text = emitted(kind, name)
    path = FOLDER / kind / f"{name}.py.golden"
    if update_golden:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.is_file(), f"no golden file {path.name}; run `make golden`"
    assert text.splitlines() == path.read_text().splitlines()
    assert text == path.read_text()


def test_no_golden_file_is_left_over(update_golden: bool) -> None:
    wanted = {FOLDER / kind / f"{name}.py.golden" for kind, name in NAMES}
    there = set(FOLDER.glob("*/*.golden"))
    if update_golden:
        for path in there - wanted:
            path.unlink()
    else:
        assert there == wanted
