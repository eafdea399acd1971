"""The kernels that can be asked for by name.  name, Layer -> plan.Kernel -> show"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

from ..plan.ir import Kernel
from ..plan.schedules import passing, prepare, scan, walk
from ..spec.layer import Layer
from ..tune.errors import TuneError

# heads per program, tiles of dstate and headdim, row tiles, prepared step sizes, descriptors, rows of the state
_WALKS = product((True, False), (1, 2, 4), (1, 2), (1, 2), (1, 2), (True, False), (False, True), ("n", "p"))

BY_NAME: dict[str, Callable[[Layer], Kernel]] = {"dt_cumsum": prepare.kernel, "state_passing": passing.kernel}
BY_NAME |= {(shape := walk.Walk(*options)).name: partial(walk.kernel, shape=shape) for options in _WALKS}
BY_NAME |= {(shape := scan.Scan(*tiles)).name: partial(scan.kernel, shape=shape) for tiles in product((1, 2), (1, 2))}


class UnknownKernelError(TuneError):
    """A kernel that cannot be made; the message says which can."""


def named(name: str, layer: Layer) -> Kernel:
    """The kernel of this name for a layer.  Errors: UnknownKernelError, which lists the plain ones."""
    if name not in BY_NAME:
        plain = ", ".join(known for known in sorted(BY_NAME) if known.count("_") == 1)
        raise UnknownKernelError(
            f"no kernel {name!r}; there are {plain}, and shapes of them such as single_pass_2heads, single_pass_tma"
        )
    try:
        return BY_NAME[name](layer)
    except ValueError as error:
        raise UnknownKernelError(f"{name} cannot be made: {error}") from error
