"""Tables of the kernels that are specialised by warps, as launchers have them.  plan.schedules -> package"""

from __future__ import annotations

from itertools import product

from ..plan import catalogue
from ..plan.schedules.gradients import Gradients
from ..plan.schedules.groups import Groups
from ..plan.schedules.reverse import Reverse
from ..plan.schedules.states import States
from ..plan.schedules.walk import Walk


def backward() -> dict[str, list[tuple[str, str]]]:
    """Kernels of the backward pass that are specialised by warps: (consumers, tiles) -> name, by kernel.

    Tiles of dstate, and of headdim for `group_gradients`, whose programs share out dstate.
    """
    found: dict[str, list[tuple[str, str]]] = {
        "chunk_gradients": [
            (f"({len(shape.roles)}, 1)", shape.name)
            for shape in (Gradients(specialised=True, three=three) for three in (False, True))
        ],
        "chunk_gradients_by_head": [("(2, 1)", Gradients(specialised=True, by_head=True).name)],
    }
    for kernel, left in (("reverse_walk", False), ("reverse_walk_left", True)):
        found[kernel] = [(f"(2, {n})", Reverse(n, blocks=True, consumers=2, left=left).name) for n in (2, 4)]
    found["group_gradients"] = [
        (f"({len(shape.roles)}, {shape.p_tiles})", shape.name)
        for shape in (
            Groups(p_tiles=p, blocks=True, specialised=True, three=three) for three, p in product((False, True), (1, 2))
        )
    ]
    for count, n in product(catalogue.CONSUMERS, (1, 2)):
        shapes = {
            "segment_state": Walk(False, n_tiles=n, descriptors=True, state_major="p", consumers=count),
            "chunk_states": States(n_tiles=n, consumers=count),
            "chunk_adjoints": States(True, n_tiles=n, consumers=count),
            "segment_adjoint": States(True, False, n, count),
        }
        for kernel, shape in shapes.items():
            found.setdefault(kernel, []).append((f"({count}, {n})", shape.name))
    return found
