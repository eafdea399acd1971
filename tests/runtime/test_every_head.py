"""Operands that heads share, repeated: when a backward pass does it, by the records that ship."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from ssdgen.mamba2_ops import every_head, select
from ssdgen.mamba2_ops.match import Gpu
from ssdgen.mamba2_ops.problem import Problem

H200, A100 = Gpu("NVIDIA H200", "sm90", 132), Gpu("NVIDIA A100-SXM4-80GB", "sm80", 108)
X = torch.empty(1, dtype=torch.bfloat16, device="meta")


def problem(layout: str, dtype: str = "bfloat16") -> Problem:
    return Problem(8, 2048, 32, 64, 128, 1, dtype, layout=layout)


@pytest.fixture(autouse=True)
def on_an_h200(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(select, "gpu_of", cache(lambda _: H200))
    monkeypatch.delenv("SSDGEN_MEMORY_LIMIT", raising=False)
    select.forget()
    yield
    select.forget()


@pytest.mark.parametrize("layout", ["multi-contract", "multi-expand"])
def test_where_kernels_of_every_head_are_specialised(layout: str) -> None:
    own = every_head.instead(problem(layout), X)
    assert own is not None and own.ngroups == own.nheads == 32 and not own.layout
    assert every_head.instead(own, X) is None


def test_not_in_fp32() -> None:
    assert every_head.instead(problem("multi-contract", "float32"), X.float()) is None


def test_not_with_a_limit_to_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSDGEN_MEMORY_LIMIT", "64G")
    assert every_head.instead(problem("multi-contract"), X) is None


def test_not_where_no_kernel_is_specialised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "gpu_of", cache(lambda _: A100))
    assert every_head.instead(problem("multi-contract"), X) is None


def test_repeated_and_added_up() -> None:
    operand = torch.arange(12.0).view(1, 2, 3, 2)
    each = every_head.repeated(operand, 6)
    assert each.shape == (1, 2, 6, 2) and torch.equal(each[:, :, 2], operand[:, :, 1])
    assert torch.equal(every_head.added_up(each, 3), 2 * operand)
    assert every_head.added_up(operand, 3) is operand and every_head.repeated(operand, 3) is operand
