"""Scores in two terms: what rounding them to the operands' dtype loses comes back."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from ssdgen.emit import kernel as emission
from ssdgen.pack import templates
from ssdgen.plan.schedules import walk
from ssdgen.plan.schedules.walk import Walk
from ssdgen.spec.decompose import chunk_graph
from ssdgen.spec.layer import Layer
from ssdgen.tune import reference
from ssdgen.tune.inputs import Inputs

# one chunk and no entering state: all of y goes through the scores
BATCH, SEQLEN, NHEADS, HEADDIM, DSTATE = 1, 16, 2, 16, 16


def kernel(shape: Walk, folder: Path):
    """The emitted kernel, imported."""
    templates.load()
    layer = Layer()
    text = emission.module(walk.kernel(layer, shape), chunk_graph(layer))
    path = folder / f"{shape.name}.py"
    path.write_text(text.replace("from .functions", "from ssdgen.mamba2_ops.kernels.functions"))
    spec = importlib.util.spec_from_file_location(shape.name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, shape.name)


def error(shape: Walk, folder: Path) -> float:
    """|y - float64| / |float64| in fp16, y itself kept in fp32 so that its own rounding does not count."""
    import triton.language as tl

    torch.manual_seed(0)
    half = [torch.randn(BATCH, SEQLEN, heads, size).half() for heads, size in ((NHEADS, HEADDIM), *[(1, DSTATE)] * 2)]
    x, B, C = half
    raw = torch.rand(BATCH, SEQLEN, NHEADS)
    A = -torch.rand(NHEADS) - 0.1
    zero = torch.zeros(NHEADS)
    dt = torch.nn.functional.softplus(raw)
    dt_ready = dt.transpose(1, 2).contiguous()
    dA_cs = (dt_ready * A[:, None]).cumsum(-1) / torch.log(torch.tensor(2.0))
    y = torch.full((BATCH, SEQLEN, NHEADS, HEADDIM), torch.nan)
    known = {
        "x_ptr": x, "B_ptr": B, "C_ptr": C, "dt_ptr": dt_ready, "dA_cs_ptr": dA_cs, "y_ptr": y, "seqlen": SEQLEN,
        "nheads": NHEADS, "ngroups": 1, "nsegments": 1, "segment_len": SEQLEN, "padded": SEQLEN, "HEADDIM": HEADDIM,
        "DSTATE": DSTATE, "CHUNK": SEQLEN, "BLOCK_N": DSTATE, "BLOCK_P": HEADDIM, "DOT": tl.float16,
        "PRECISION": "ieee",
    }  # fmt: skip
    for name, tensor, heads in (("x", x, "nheads"), ("B", B, "ngroups"), ("C", C, "ngroups")):
        known |= {f"stride_{name}_{dim}": tensor.stride(axis) for axis, dim in enumerate(("batch", "seqlen", heads))}
    function = kernel(shape, folder)
    # what is left are tensors that are not there, their strides and flags
    args = {name: known.get(name, False if name.isupper() else None) for name in function.arg_names}
    args = {name: 0 if value is None and name.startswith("stride_") else value for name, value in args.items()}
    function[(NHEADS, 1, BATCH)](**args)
    expected, _ = reference.forward(Inputs(x, raw, A, B, C, zero, zero), list(range(NHEADS)))
    return float((y - expected).norm() / expected.norm())


@pytest.mark.interpreter
@pytest.mark.parametrize("major", ["n", "p"])
def test_a_second_term_takes_the_rounding_away(major: str, tmp_path: Path) -> None:
    one = error(Walk(state_major=major), tmp_path)
    two = error(Walk(state_major=major, two_terms=True), tmp_path)
    assert 5e-5 < one < 5e-4
    assert two < one / 50


def test_the_state_alone_has_no_scores() -> None:
    with pytest.raises(ValueError, match="scores"):
        walk.kernel(Layer(), Walk(outputs=False, two_terms=True))
