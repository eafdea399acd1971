"""The top-level name `mamba2_ops`.  -> ssdgen.mamba2_ops, the same module objects under both names.

The package registers operators with torch, which may happen once: a second copy of a submodule would be an error.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType

REAL = "ssdgen.mamba2_ops"
ALIAS = __name__


class _SubmoduleFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers `import mamba2_ops.a.b` with the module `ssdgen.mamba2_ops.a.b`."""

    def find_spec(self, fullname, path=None, target=None):
        if not fullname.startswith(f"{ALIAS}."):
            return None
        real = importlib.util.find_spec(REAL + fullname.removeprefix(ALIAS))
        return importlib.machinery.ModuleSpec(fullname, self) if real else None

    def create_module(self, spec) -> ModuleType:
        module = importlib.import_module(REAL + spec.name.removeprefix(ALIAS))
        # the import system puts the alias's spec on the module; exec_module puts the module's own back
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = module.__spec__.loader_state


sys.meta_path.insert(0, _SubmoduleFinder())
sys.modules[ALIAS] = importlib.import_module(REAL)
