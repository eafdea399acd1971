"""What `ssd` refuses, with what words, and how it goes through compilers and autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ssdgen.mamba2_ops import OptionError, ShapeError, duality, ssd
from ssdgen.mamba2_ops.errors import DeviceError, DtypeError, OperandError, SequenceError
from tests.parity.dense import HEADS, draw

SIZES = (2, 9, 4, 2, 3, 5)


def operands(layout: str = "multi-input") -> dict[str, Any]:
    return {name: value.float() for name, value in draw(layout, "gated", SIZES, 0).items()}


def zeros(*shape: int, **options: Any) -> torch.Tensor:
    return torch.zeros(*shape, **options)


REFUSED: list[tuple[type[Exception], str, str, dict[str, Any]]] = [
    (OperandError, "b is a list", "multi-input", {"b": [1.0]}),
    (OperandError, "a is a float; it must be a torch.Tensor or None", "multi-input", {"a": 0.5}),
    (ShapeError, r"x has shape \[2, 9, 4\]", "multi-input", {"x": zeros(2, 9, 4)}),
    (ShapeError, r"c has shape \[2, 9, 2, 0\].*none of the last three 0", "multi-input", {"c": zeros(2, 9, 2, 0)}),
    (ShapeError, "a has 3 heads, the most that x, b and c have is 4", "multi-input", {"a": zeros(2, 9, 3)}),
    (ShapeError, r"a has shape \[2, 8, 4\]; it must be .* = \[2, 9, 4\]", "multi-input", {"a": zeros(2, 8, 4)}),
    (ShapeError, r"a has shape \[2, 4\].*\[nheads\] = \[4\]", "multi-input", {"a": zeros(2, 4)}),
    (ShapeError, r"weight has shape \[4\]", "multi-input", {"weight": zeros(4)}),
    (
        ShapeError,
        "4 heads do not divide into 3 groups",
        "multi-input",
        {"b": zeros(2, 9, 3, 5), "c": zeros(2, 9, 3, 5)},
    ),
    (
        ShapeError,
        "have 4, 2 and 1 heads.*multi-contract: x ngroups",
        "multi-input",
        {"c": zeros(2, 9, 1, 5)},
    ),
    (ShapeError, r"B has shape \[2, 8, 2, 5\]", "multi-input", {"b": zeros(2, 8, 2, 5)}),
    (ShapeError, r"C has shape \[2, 9, 2, 6\]", "multi-input", {"c": zeros(2, 9, 2, 6)}),
    (OptionError, "layout is 'mqa'; allowed are None and multi-input", "multi-input", {"layout": "mqa"}),
    (ShapeError, "this layout has multi-expand: x ngroups, B 4, C ngroups", "multi-input", {"layout": "multi-expand"}),
    (ShapeError, "4, 2 and 2 heads; multi-head wants the same", "multi-input", {"layout": "multi-head"}),
    (ShapeError, "nheads", "multi-expand", {"D": zeros(3)}),
    (ShapeError, "initial_states has shape", "multi-contract", {"initial_states": zeros(2, 2, 3, 5)}),
    (DtypeError, "a is torch.int64", "multi-input", {"a": zeros(4, dtype=torch.int64)}),
    (DtypeError, "float64 only together with a float64 x", "multi-input", {"a": zeros(4, dtype=torch.float64)}),
    (DtypeError, "B is torch.float16", "multi-input", {"b": zeros(2, 9, 2, 5, dtype=torch.float16)}),
    (DeviceError, "a is on meta, x is on cpu", "multi-input", {"a": zeros(4, device="meta")}),
    (OptionError, "chunk_size is 0", "multi-input", {"chunk_size": 0}),
    (OptionError, "needs cu_seqlens", "multi-input", {"return_varlen_states": True}),
    (OptionError, "two_sided is 3; allowed are", "multi-input", {"two_sided": 3}),
    (OperandError, r"two_sided\[1\] is a NoneType", "multi-input", {"two_sided": (None, None, None)}),
    (ShapeError, r"two_sided\[1\] is \[2, 9, 4, 5\]", "multi-input", {"two_sided": (None, *[zeros(2, 9, 4, 5)] * 2)}),
    (OptionError, "no state to begin or end with", "multi-head", {"two_sided": True, "return_final_states": True}),
    (ShapeError, "pack them into batch 1", "multi-head", {"cu_seqlens": torch.tensor([0, 9])}),
]


@pytest.mark.parametrize(("error", "words", "layout", "changes"), REFUSED, ids=[words[:40] for _, words, *_ in REFUSED])
def test_what_is_refused(error: type[Exception], words: str, layout: str, changes: dict[str, Any]) -> None:
    with pytest.raises(error, match=words):
        ssd(**{**operands(layout), **changes})


def test_contents_of_cu_seqlens() -> None:
    one = {name: value[:1] for name, value in operands().items()}
    with pytest.raises(SequenceError, match="ends at 8"):
        ssd(**one, cu_seqlens=torch.tensor([0, 8]))


@pytest.mark.parametrize("layout", HEADS)
def test_a_layout_may_be_named(layout: str) -> None:
    given = operands(layout)
    torch.testing.assert_close(ssd(**given, layout=layout), ssd(**given))


def test_the_layout_of_equal_heads_is_multi_head() -> None:
    given = operands("multi-head")
    torch.testing.assert_close(ssd(**given, layout="multi-input"), ssd(**given, layout="multi-contract"))


def test_a_package_without_decays_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duality.settings, "GATED", False)
    monkeypatch.setattr(duality.settings, "log_decay", lambda dt, A: 0)
    given = operands()
    with pytest.raises(OptionError, match="emitted without decays"):
        ssd(**given)
    torch.testing.assert_close(ssd(**{**given, "a": None}), ssd(**{**given, "a": None}, chunk_size=3))


@pytest.mark.parametrize("layout", ["multi-input", "multi-contract"])
def test_through_torch_compile(layout: str) -> None:
    given = {name: value.requires_grad_() for name, value in operands(layout).items()}
    compiled = torch.compile(ssd, fullgraph=True, backend="aot_eager")
    found, wanted = (call(**given, return_final_states=True) for call in (compiled, ssd))
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad(sum(out.sum() for out in each), list(given.values())) for each in (found, wanted)]
    torch.testing.assert_close(*gradients)


def test_under_autocast() -> None:
    given = operands()
    with torch.autocast("cpu", torch.bfloat16):
        y = ssd(**given)
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(y.float(), ssd(**given), rtol=5e-2, atol=5e-2)


def test_no_rows() -> None:
    given = {name: value[:0] for name, value in operands("multi-contract").items()}
    assert ssd(**given).shape == (0, 9, 4, 3)
