"""A generated package as a repository of Hugging Face's `kernels`.  {path: text} of the package -> {path: text}

    mamba2-ops/
      README.md
      manifest.json                 what the package was made from
      build/torch-cuda/             one folder for each backend, all alike: nothing in it is compiled
        metadata.json               for `kernels`: name, backend, licence
        __init__.py                 the public names, and `layers`
        mamba2_ops/                 the package, with its records

`kernels.get_local_kernel(Path("mamba2-ops"))` loads it; `LocalLayerRepository(Path("mamba2-ops"), layer_name=...)` puts
one of its layers into a model.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping

from .tree import MARKER

NAME = "mamba2-ops"
PACKAGE = "mamba2_ops"
# no part of the package is built for one version of torch
BACKENDS = ("cuda", "cpu")
# the first one that knows folders without a version of torch in their name
MINIMUM = "0.15.0"

_INIT = f'''"""The public names of {PACKAGE}, and its layers."""

from .{PACKAGE} import *  # noqa: F403
from .{PACKAGE} import __all__, layers

__all__ = [*__all__, "layers"]
'''

_README = f"""---
license: apache-2.0
tags:
- kernels
---
# {NAME}

Mamba-2's layer in Triton: scan, state update, causal convolution, gated norm.

```python
from kernels import get_kernel

ops = get_kernel("owner/{NAME}", version=1, trust_remote_code=True)
y = ops.mamba_chunk_scan_combined(x, dt, A, B, C, chunk_size=256)
```

`layers` has the same functions as modules without state, for `kernelize`: {{layers}}.
"""


def repository(package: Mapping[str, str], records: Mapping[str, str]) -> dict[str, str]:
    """{path below the repository: text}; the same for the same contents.

    package: {path: text} of a generated package, `layers.py` in it.  records: {path below tuned/: text}.
    """
    inside = {f"{PACKAGE}/{path}": text for path, text in package.items()}
    inside |= {f"{PACKAGE}/tuned/{path}": text for path, text in records.items()}
    inside["__init__.py"] = _INIT
    digest = hashlib.sha256(json.dumps(inside, sort_keys=True).encode()).hexdigest()
    layers = [node.name for node in ast.parse(package["layers.py"]).body if isinstance(node, ast.ClassDef)]
    texts = {"README.md": _README.format(layers=", ".join(f"`{name}`" for name in layers)), MARKER: package[MARKER]}
    for backend in BACKENDS:
        folder = f"build/torch-{backend}"
        texts[f"{folder}/metadata.json"] = _metadata(backend, digest)
        texts |= {f"{folder}/{path}": text for path, text in inside.items()}
    return dict(sorted(texts.items()))


def _metadata(backend: str, digest: str) -> str:
    content = {
        # also the name of the module, and by it of torch's operators: two versions may be loaded in one process
        "id": f"_{PACKAGE}_{backend}_{digest[:12]}",
        "name": NAME,
        "version": 1,
        "license": "Apache-2.0",
        "kernels-minver": MINIMUM,
        "python-depends": [],
        "backend": {"type": backend},
    }
    return json.dumps(content, indent=2) + "\n"
