"""The backward pass of other descriptions: a package of each, its kernels interpreted, against float64."""

from __future__ import annotations

import math
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from ssdgen.spec import oracle_gradient
from ssdgen.spec.layer import Layer
from ssdgen.spec.layouts import LAYOUTS
from ssdgen.spec.masks import FAMILIES
from tests.emit import sources
from tests.parity import tolerances
from tests.spec.cases import Sizes, draw

KINDS = [("constant", "multi-input"), ("none", "multi-expand"), ("constant", "multi-contract"), ("ssd", "multi-head")]
SIZES = Sizes(batch=1, seqlen=37, nheads=4, headdim=16, dstate=16, ngroups=2)


@pytest.mark.interpreter
@pytest.mark.parametrize("schedule", ["walk", "chunks"])
@pytest.mark.parametrize(("family", "layout"), KINDS)
def test_every_gradient(family: str, layout: str, schedule: str, tmp_path: Path, seed: int) -> None:
    layer = Layer(FAMILIES[family], LAYOUTS[layout], "head", gate=True, dt_softplus=True, initial_states=True)
    texts = sources.package(Layer(layer.family, layer.layout), headdim=16, dstate=16)
    name = f"backward_{schedule}_{family}_{layout.replace('-', '_')}"
    sources.imported(texts, tmp_path, name)
    launcher = import_module(f"{name}.launchers.backward")
    arrays = {key: value.astype(np.float32) for key, value in draw(layer, SIZES, seed).items()}
    random = np.random.default_rng(seed)
    d_y, d_final = (random.normal(size=arrays[like].shape).astype(np.float32) for like in ("z", "initial_states"))
    wanted = oracle_gradient.backward(layer, arrays, d_y, d_final, chunk=16)
    given = {key: torch.from_numpy(value) for key, value in arrays.items()}
    found = launcher.backward(
        {"schedule": schedule, "chunk": 16, "segment": 32, "kernels": {}},
        **given,
        d_y=torch.from_numpy(d_y),
        d_final_states=torch.from_numpy(d_final),
        dt_bias=None,
        seq_idx=None,
        dt_softplus=True,
        dt_limit=(0.0, math.inf),
        needs=frozenset(given),
    )
    assert {f"d_{key}" for key in found} == wanted.keys()
    for key, gradient in found.items():
        if np.any(wanted[f"d_{key}"]):
            tolerances.check(f"d_{key}", gradient, wanted[f"d_{key}"], tolerances.Limit(5e-5, 2e-4))
        else:
            assert not gradient.any()
