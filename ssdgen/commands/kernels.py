"""The kernels that can be asked for by name.  name, Layer -> plan.Kernel -> show"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..plan import catalogue, mamba3, parts
from ..plan.ir import Kernel
from ..plan.schedules import mirror, passing, prepare, scan, walk
from ..spec.graph import Graph
from ..spec.layer import Layer
from ..tune.errors import TuneError

BY_NAME: dict[str, Callable[[Layer], Kernel]] = {"dt_cumsum": prepare.kernel, "state_passing": passing.kernel}
BY_NAME |= catalogue.BACKWARD | catalogue.SPECIALISED | catalogue.DECODE | catalogue.TILED
BY_NAME |= {mirror.name_of(n): partial(mirror.kernel, n_tiles=n) for n in (1, 2)}
BY_NAME |= {
    shape.name: partial(walk.kernel if isinstance(shape, walk.Walk) else scan.kernel, shape=shape)
    for shape in catalogue.every_shape()
}


class UnknownKernelError(TuneError):
    """A kernel that cannot be made; the message says which can."""


def named(name: str, layer: Layer) -> Kernel:
    """The kernel of this name for a layer.  Errors: UnknownKernelError, which lists the plain ones."""
    if name not in BY_NAME and name in parts.kernels():
        return parts.kernels()[name][0]
    if name not in BY_NAME:
        plain = ", ".join(known for known in sorted(BY_NAME) if known.count("_") == 1)
        raise UnknownKernelError(
            f"no kernel {name!r}; there are {plain}, and shapes of them such as single_pass_2heads, single_pass_tma; "
            f"of the other parts {', '.join(sorted(parts.kernels()))}"
        )
    try:
        return BY_NAME[name](layer)
    except ValueError as error:
        raise UnknownKernelError(f"{name} cannot be made: {error}") from error


def of_variant(name: str) -> tuple[Kernel, Graph]:
    """A kernel of Mamba-3's package and the graph that its equations are of.  Errors: UnknownKernelError."""
    every = mamba3.every()
    if name not in every:
        raise UnknownKernelError(f"mamba3 has no kernel {name!r}; there are {', '.join(sorted(every))}")
    return every[name]
