"""The description carries weight: change it and kernels, oracle and counts follow, with the same templates.

And break it and the kernels are wrong: nothing of the mathematics is written anywhere else.
"""

from __future__ import annotations

import ast
import itertools
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import sympy
import torch

from ssdgen.emit import environment
from ssdgen.pack import templates
from ssdgen.plan import catalogue, space
from ssdgen.spec import counts, dims, roofline
from ssdgen.spec import layer as formulas
from ssdgen.spec.layer import Layer
from ssdgen.spec.layouts import LAYOUTS
from ssdgen.spec.masks import CONSTANT, DT, FAMILIES, NONE, SSD, A, MaskFamily
from ssdgen.spec.oracle import Result
from tests.emit import sources
from tests.parity import configs, tolerances
from tests.parity.cases import Call, Case, draw, of_call

CASE = Case(batch=1, seqlen=50, nheads=2, options=("D", "z", "dt_bias", "dt_softplus", "initial_states", "seq_idx"))
SIZES = {"headdim": 16, "dstate": 16}
NEVER_TWICE = itertools.count()


def built(layer: Layer, folder: Path) -> ModuleType:
    """The package of a layer as it is described now."""
    return sources.imported(sources.fresh(layer, **SIZES), folder, f"described_{next(NEVER_TWICE)}")


def run(module: ModuleType, schedule: str, call: Call) -> tuple[torch.Tensor, torch.Tensor]:
    """A schedule's kernels of a package, interpreted."""
    from importlib import import_module

    launcher = import_module(f"{module.__name__}.launchers.forward")
    operands, options = configs.prepared(call)
    return launcher.forward(configs.fine(schedule, configs.problem(CASE)), *operands, **options)


def distance(found: torch.Tensor, exact: np.ndarray) -> float:
    return float(np.linalg.norm(found.double().numpy() - exact) / np.linalg.norm(exact))


def agree(found: tuple[torch.Tensor, torch.Tensor], exact: Result) -> None:
    tolerances.check("y", found[0], exact.y, tolerances.LIMITS["exact"])
    tolerances.check("final_states", found[1], exact.final_states, tolerances.LIMITS["exact"])


# ---- another description


@pytest.mark.interpreter
@pytest.mark.parametrize("schedule", space.SCHEDULES)
@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_kernels_and_oracle_of_a_family_agree(family: MaskFamily, schedule: str, tmp_path: Path) -> None:
    """Each family's kernels equal its oracle and no other family's."""
    call = draw(CASE)
    found = run(built(Layer(family=family), tmp_path), schedule, call)
    agree(found, of_call(call, Layer(family=family, dt_softplus=True)))
    for other in FAMILIES.values():
        if other is not family:
            assert distance(found[0], of_call(call, Layer(family=other, dt_softplus=True)).y) > 0.05, other.name


@pytest.mark.interpreter
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "multi-input"])
def test_kernels_and_oracle_of_a_layout_agree(layout: str, tmp_path: Path) -> None:
    """Operands of one per head or one per group, as the layout says; four heads in two groups."""
    layer = Layer(layout=LAYOUTS[layout])
    case = replace(CASE, nheads=4, ngroups=2, options=())
    drawn = draw(case)
    generator = torch.Generator().manual_seed(3)
    operands = {
        name: torch.randn(1, 50, 4 if layer.layout.per_head(name) else 2, 16, generator=generator) for name in "xBC"
    }
    call = Call({**drawn.operands, **operands}, {})
    agree(run(built(layer, tmp_path), "single_pass", call), of_call(call, layer))


@pytest.mark.parametrize("family", [CONSTANT, NONE], ids=lambda family: family.name)
def test_the_public_call_of_a_family_is_that_family_on_a_cpu_too(family: MaskFamily, tmp_path: Path) -> None:
    """A package of another family computes that family wherever it runs: without Triton, with gradients, in float64."""
    call = draw(CASE)
    module = built(Layer(family=family), tmp_path)
    exact = of_call(call, Layer(family=family, dt_softplus=True))
    y, final = module.mamba_chunk_scan_combined(
        **call.operands, **call.options, chunk_size=64, return_final_states=True
    )
    agree((y, final), exact)


@pytest.mark.parametrize("family", [CONSTANT, NONE], ids=lambda family: family.name)
def test_the_same_templates_make_every_family(family: MaskFamily) -> None:
    templates.load()
    before = dict(environment._sources)
    other = sources.fresh(Layer(family=family), **SIZES)
    assert environment._sources == before == templates.read()
    # what `ssd` has beside the layer's own kernels
    beside = re.compile(r"gated|mirror_walk|multi_(contract|expand)")
    ssd = {path: text for path, text in sources.package(**SIZES).items() if not beside.search(path)}
    if not family.decays:
        # nothing is a sum over states there
        ssd = {path: text for path, text in ssd.items() if Path(path).stem not in catalogue.THREE_ROLES}
    assert {path for path in other if not beside.search(path)} == set(ssd)
    # a constant decay is another running sum; without one the kernels lose their decays
    changed = {"constant": "dt_cumsum", "none": "single_pass"}[family.name]
    different = {path for path in ssd if path.startswith("kernels/") and ssd[path] != other[path]}
    assert f"kernels/{changed}.py" in different and "kernels/functions.py" not in different
    # and no template knows a family by name
    assert not [name for name, text in before.items() if re.search(r"\b(constant|retention|family ==)\b", text)]


def without_totals(module: ast.Module) -> ast.Module:
    """A kernel without the branch that takes the totals of earlier segments, as the scan over segments does."""
    for node in ast.walk(module):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "HAS_SUMMARIES":
            node.body = [ast.Pass()]
    return module


def test_a_family_without_decay_has_no_trace_of_it() -> None:
    """No running sums, no exponentials, no A: in the kernels as in the counts."""
    for name, text in sources.kernels(Layer(family=NONE)).items():
        code = ast.unparse(without_totals(ast.parse(text)))
        # those are told a total, which is 0 here or minus infinity at a boundary
        if not name.endswith("_passing"):
            assert "decay(" not in code and "exp2" not in code and "tl.cumsum(" not in code, name
            assert "dA_cs" not in code and "A_ptr" not in code.replace("dA_", ""), name
    assert not counts.exponentials(Layer(family=NONE)) and counts.exponentials(Layer())


def test_the_counts_follow_and_agree_with_what_is_allocated() -> None:
    """Bytes of step sizes and running sums: by the description, and those of the buffers that the launchers make."""
    case = Case(batch=2, seqlen=128, nheads=4, headdim=16, dstate=16)
    at = {dims.BATCH: 2, dims.SEQLEN: 128, dims.NHEADS: 4}
    plan = configs.launches(configs.fine("single_pass", configs.problem(case)), draw(case).on("meta"))
    buffers = {name: torch.Size(shape).numel() * 4 for name, (shape, _) in plan.scratch.items()}
    reason = "step sizes and running sums"
    # written once and read once
    assert counts.at(counts.extra_bytes(Layer(), "single_pass")[reason], at) == 2 * (
        buffers["dt_ready"] + buffers["dA_cs"]
    )
    without = counts.at(counts.extra_bytes(Layer(family=NONE), "single_pass")[reason], at)
    assert without == 2 * buffers["dt_ready"]


def test_the_roofline_follows_a_change_of_the_graph() -> None:
    """Per-head B and C cost what they weigh; a gate and a state are bytes too."""
    sizes: dict[str, Any] = {"batch": 8, "seqlen": 2048, "nheads": 80, "headdim": 64, "dstate": 128, "ngroups": 1}
    rates: dict[str, Any] = {"element_bytes": 2, "chunk": 128, "copy_tbs": 4.27, "bf16_tflops": 790}

    def floor(layer: Layer, **options: Any) -> roofline.Floor:
        return roofline.floor(layer, **sizes, **rates, **options)

    plain = floor(Layer())
    tokens = 8 * 2048
    heads = floor(Layer(layout=LAYOUTS["multi-head"]))
    assert heads.bytes - plain.bytes == tokens * 2 * 79 * 128 * 2 and heads.flops > plain.flops
    assert floor(Layer(gate=True)).bytes - plain.bytes == tokens * 80 * 64 * 2
    assert floor(Layer(), final_states=True).bytes - plain.bytes == 8 * 80 * 64 * 128 * 4
    exponentials = {name: sum(counts.exponentials(Layer(family=f)).values()) for name, f in FAMILIES.items()}
    assert exponentials["none"] == 0 and exponentials["ssd"] == exponentials["constant"] != 0


# ---- a broken description


def flipped() -> Layer:
    return Layer(family=MaskFamily("ssd", -DT * A, "the sign of the log-decay is wrong"))


def halved() -> Layer:
    return Layer(family=MaskFamily("ssd", DT * A / 2, "half of the log-decay"))


@pytest.mark.interpreter
@pytest.mark.parametrize("schedule", space.SCHEDULES)
@pytest.mark.parametrize("broken", [flipped, halved])
def test_a_wrong_log_decay_makes_wrong_kernels(broken: Any, schedule: str, tmp_path: Path) -> None:
    """Far from the truth, and exactly what the wrong description says."""
    call = draw(CASE)
    truth = of_call(call, Layer(dt_softplus=True))
    found = run(built(broken(), tmp_path), schedule, call)
    assert distance(found[0], truth.y) > 0.05 and distance(found[1], truth.final_states) > 0.05
    agree(found, of_call(call, replace(broken(), dt_softplus=True)))


BREAKS = {
    "no factor dt": ("input_weight", lambda dt: sympy.Integer(1)),
    "dt doubled": ("input_weight", lambda dt: 2 * dt),
    "skip subtracted": ("skip", lambda y, d, x: y - d * x),
    "gate without its sigmoid": ("gate", lambda y, z: y * z),
    "bias subtracted": ("add_bias", lambda dt, bias: dt - bias),
    "no softplus": ("rectify", lambda dt: dt + 1),
    "limits exchanged": ("clamp", lambda dt, low, high: sympy.Max(sympy.Min(dt, low), high)),
}


@pytest.mark.interpreter
@pytest.mark.parametrize("name", BREAKS)
def test_a_wrong_formula_makes_wrong_kernels(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call = draw(Case(**{**CASE.__dict__, "options": (*CASE.options, "dt_limit")}))
    layer = Layer(dt_softplus=True)
    truth = of_call(call, layer)
    agree(run(built(Layer(), tmp_path), "single_pass", call), truth)
    monkeypatch.setattr(formulas, *BREAKS[name])
    found = run(built(Layer(), tmp_path), "single_pass", call)
    assert distance(found[0], truth.y) > 0.01, "the kernels do not follow the description"
    agree(found, of_call(call, layer))


@pytest.mark.parametrize("name", ["no factor dt", "skip subtracted"])
def test_a_wrong_formula_is_seen_in_the_sources(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without running anything: the golden files and the fingerprints differ."""
    before = sources.package(**SIZES)
    monkeypatch.setattr(formulas, *BREAKS[name])
    after = sources.fresh(Layer(), **SIZES)
    assert before["kernels/single_pass.py"] != after["kernels/single_pass.py"]
    assert before["manifest.json"] != after["manifest.json"]


def test_the_families_differ_in_one_formula_only() -> None:
    assert {family.log_decay for family in (SSD, CONSTANT, NONE)} == {DT * A, A, sympy.Integer(0)}
