"""Where a call runs: in PyTorch on the CPU, in Triton's interpreter, on a GPU.  What the tests of parity share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

import ssdgen.mamba2_ops as ops
from ssdgen.mamba2_ops.launchers import forward as launcher
from ssdgen.tune.gate import poisoned_memory
from tests.parity.cases import DTYPES, Case

NAMES = ("fallback", "interpreter", "gpu")
MARKS = {
    "fallback": (),
    "interpreter": (pytest.mark.interpreter,),
    "gpu": (pytest.mark.gpu,),
}


@dataclass
class Setting:
    """device: of the tensors; kernels: whether the emitted kernels run; launched: configs that they ran with."""

    name: str
    launched: list[dict[str, Any]] = field(default_factory=list)

    @property
    def device(self) -> str:
        return "cuda" if self.name == "gpu" else "cpu"

    @property
    def kernels(self) -> bool:
        return self.name != "fallback"

    def call(self, **arguments: Any) -> Any:
        """The public call, in memory that is full of NaN; asserts that the path ran which this setting is about."""
        before = len(self.launched)
        with poisoned_memory():
            result = ops.mamba_chunk_scan_combined(**arguments)
        assert (len(self.launched) > before) == self.kernels
        return result


def enter(name: str, monkeypatch: pytest.MonkeyPatch) -> Setting:
    """The setting of this name until the end of the test."""
    setting = Setting(name)
    if name == "interpreter":
        monkeypatch.setenv("SSDGEN_FORCE_TRITON", "1")
    else:
        monkeypatch.delenv("SSDGEN_FORCE_TRITON", raising=False)
    monkeypatch.setattr(launcher, "forward", _spied(launcher.forward, setting))
    # a call that is repeated does not come by the launchers
    monkeypatch.setattr(launcher, "again", lambda *given, **options: None)
    monkeypatch.setattr(ops.interface, "_calls", type(ops.interface._calls)(1))
    return setting


def _spied(forward: Callable[..., Any], setting: Setting) -> Callable[..., Any]:
    def spied(config: dict[str, Any], *operands: Any, **options: Any) -> Any:
        setting.launched.append(config)
        return forward(config, *operands, **options)

    return spied


def runs(name: str, case: Case) -> list[Case]:
    """The variants of a case that run in a setting."""
    if name == "gpu":
        return [replace(case, dtype=dtype) for dtype in (DTYPES if case.dtype == "float32" else (case.dtype,))]
    # Triton's interpreter (3.7.1) multiplies matrices of bfloat16 as if their bits were integers
    return [] if name == "interpreter" and case.dtype == "bfloat16" else [case]


def parameters(cases: list[Case], names: tuple[str, ...] = NAMES) -> list[Any]:
    """(setting, case) for `pytest.mark.parametrize`."""
    return [
        pytest.param(name, variant, id=f"{name}-{variant}", marks=MARKS[name])
        for name in names
        for case in cases
        for variant in runs(name, case)
    ]
