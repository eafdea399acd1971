"""A record as users meet it: in a folder, found by the public call, run and compared once more.  Record -> Checked

What is right when the search launches it may still be wrong for users: another config is found, or a launch fails there
and gives way to the plainest one in silence.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..mamba2_ops import select
from ..pack import store
from ..pack.records import Identity, Record
from . import gate
from .errors import WrongResultError
from .gate import Checked
from .passes import PASSES
from .results import key_of

# how many programs share out the heads goes by the sizes of the call, whatever a record says
_BY_THE_CALL = ("parts",)


def check(
    record: Record, identity: Identity, kernels: dict[str, str], given: Any, expected: Any, device: torch.device
) -> Checked:
    """The error of a public call that finds this record, with the final states or their adjoint.

    identity: of the GPU that is here.  kernels: {name: fingerprint} of the package.  given, expected: with `more`.
    Errors: WrongResultError for another config or a wrong result.
    """
    it = PASSES[record.direction]
    with _found_first(record, identity, kernels):
        with gate.poisoned_memory():
            found = it.call(given, True)
        # afterwards: a config that did not run was replaced by then
        ran = it.found_by(record.problem, device)
        if ran is None or _fixed(ran) != _fixed(record.config):
            raise WrongResultError("users would not run it: the public call runs another config for this problem")
    return it.check(found, expected, record.problem)


@contextmanager
def _found_first(record: Record, identity: Identity, kernels: dict[str, str]) -> Iterator[None]:
    """Have the public call look into a folder with this record alone, before everything else."""
    before = {name: os.environ.get(name) for name in ("SSDGEN_TUNED", "SSDGEN_NO_TUNE", "SSDGEN_ASSERT_TUNED")}
    with tempfile.TemporaryDirectory(prefix="ssdgen-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store.save(Path(folder), identity, [record], kernels)
        try:
            _set({"SSDGEN_TUNED": folder, "SSDGEN_NO_TUNE": None, "SSDGEN_ASSERT_TUNED": None})
            select.forget()
            yield
        finally:
            _set(before)
            select.forget()


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _fixed(config: dict[str, Any]) -> str:
    return key_of({name: value for name, value in config.items() if name not in _BY_THE_CALL})
