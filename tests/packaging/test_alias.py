"""`mamba2_ops` and `ssdgen.mamba2_ops` are the same module objects, submodules too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SAME_MODULES = """
import importlib, pkgutil, sys
import {first}
import {second}
assert mamba2_ops is sys.modules["ssdgen.mamba2_ops"]
names = [module.name for module in pkgutil.walk_packages(mamba2_ops.__path__, "mamba2_ops.")]
assert names
for name in names:
    real = importlib.import_module("ssdgen." + name)
    assert importlib.import_module(name) is real, name
    assert real.__name__ == real.__spec__.name == "ssdgen." + name
try:
    import mamba2_ops.no_such_module
except ModuleNotFoundError as error:
    assert error.name == "mamba2_ops.no_such_module", error.name
else:
    raise AssertionError("imported a module that is not there")
"""


@pytest.mark.parametrize(
    ("first", "second"), [("mamba2_ops", "ssdgen.mamba2_ops"), ("ssdgen.mamba2_ops", "mamba2_ops")]
)
def test_both_names_give_one_module(first: str, second: str, tmp_path: Path) -> None:
    path = [str(ROOT), str(ROOT / "ssdgen" / "_alias")]
    code = f"import sys; sys.path[:0] = {path!r}\n" + SAME_MODULES.format(first=first, second=second)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
