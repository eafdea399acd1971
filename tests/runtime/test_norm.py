"""The gated norms' public calls in PyTorch: against their formulas, in gradients, as modules, and with bad input."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F

import mamba2_ops as ops

DOUBLE = torch.float64


def operands(rows=(2, 3), dim=12, seed=0):
    made = torch.Generator().manual_seed(seed)
    shapes = {"x": (*rows, dim), "weight": (dim,), "bias": (dim,), "z": (*rows, dim)}
    return {name: torch.randn(*shape, generator=made, dtype=DOUBLE) for name, shape in shapes.items()}


@pytest.mark.parametrize("rms,before,group", list(product((False, True), (False, True), (None, 4, 1))))
def test_it_is_the_formula(rms, before, group):
    given = operands()
    y = ops.layernorm_fn(**given, eps=0.1, group_size=group, norm_before_gate=before, is_rms_norm=rms)
    x, weight, bias, z = given.values()
    value = (x if before else x * F.silu(z)).unflatten(-1, (-1, group or 12))
    if rms:
        value = value / (value.square().mean(-1, keepdim=True) + 0.1).sqrt()
    else:
        value = F.layer_norm(value, (group or 12,), eps=0.1)
    value = value.flatten(-2) * weight + bias
    torch.testing.assert_close(y, value * F.silu(z) if before else value)
    if rms:
        again = ops.rmsnorm_fn(**given, eps=0.1, group_size=group, norm_before_gate=before)
        assert torch.equal(y, again)


@pytest.mark.parametrize("rms,before", list(product((False, True), (False, True))))
def test_gradients(rms, before):
    given = [tensor.requires_grad_() for tensor in operands(rows=(2,), dim=6).values()]
    assert torch.autograd.gradcheck(lambda *each: ops.layernorm_fn(*each, 1e-5, 3, before, rms), given)


def test_modules_have_mamba_ssms_parameters():
    norms = {ops.RMSNorm: ["weight"], ops.LayerNorm: ["weight", "bias"]}
    for kind, names in norms.items():
        norm = kind(12, eps=1e-5, group_size=4, norm_before_gate=False)
        assert list(norm.state_dict()) == names
        assert norm.weight.eq(1).all()
        x, z = torch.randn(2, 3, 12), torch.randn(2, 3, 12)
        function = ops.rmsnorm_fn if kind is ops.RMSNorm else ops.layernorm_fn
        expected = function(x, norm.weight, norm.bias, z, 1e-5, 4, False)
        assert torch.equal(norm(x, z), expected)
        assert norm(x).shape == x.shape


@pytest.mark.parametrize("out_dtype", [None, torch.bfloat16])
def test_compiled_whole(out_dtype):
    norm = ops.RMSNorm(12, norm_before_gate=False).double()
    results = []
    for run in (norm, torch.compile(norm, fullgraph=True, backend="aot_eager")):
        given = operands()
        x, z = given["x"].requires_grad_(), given["z"].requires_grad_()
        norm.zero_grad()
        y = run(x, z, out_dtype) if out_dtype else run(x, z)
        assert y.dtype is (out_dtype or DOUBLE)
        y.sin().sum().backward()
        results.append([y, x.grad, z.grad, norm.weight.grad])
    for own, other in zip(*results, strict=True):
        torch.testing.assert_close(own, other)


G = operands()
WRONG = {
    "group": ({"group_size": 5}, ops.OptionError, "divisor of dim = 12"),
    "eps": ({"eps": -1.0}, ops.OptionError, "-1.0"),
    "weight": ({"weight": G["weight"][:4]}, ops.ShapeError, r"\[12\]"),
    "bias": ({"bias": G["bias"][:4]}, ops.ShapeError, r"\[12\]"),
    "gate": ({"z": G["z"][:1]}, ops.ShapeError, "z has shape"),
    "result": ({"out_dtype": torch.int8}, ops.DtypeError, "out_dtype is torch.int8"),
    "integers": ({"x": G["x"].long()}, ops.DtypeError, "int64"),
    "no tensor": ({"weight": None}, ops.OperandError, "weight"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input(case):
    changed, error, words = WRONG[case]
    with pytest.raises(error, match=words):
        ops.layernorm_fn(**{**G, **changed})
