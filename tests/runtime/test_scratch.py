"""runtime.scratch: buffers of a plan in one piece of memory."""

from __future__ import annotations

from typing import Any

import torch

from ssdgen.runtime.launching import Launch, Plan, Recipes
from ssdgen.runtime.scratch import ALIGNMENT, Scratch

BUFFERS = {
    "states": ((2, 3, 5), torch.bfloat16),
    "total": ((7,), torch.float32),
    "nothing": ((0, 4), torch.float32),
    "dA_cs": ((1, 300), torch.float32),
}
CPU = torch.device("cpu")


def test_buffers_lie_apart_and_aligned() -> None:
    scratch = Scratch(BUFFERS)
    memory = scratch.allocate(CPU)
    made = scratch.tensors(memory)
    for number, (name, (shape, dtype)) in enumerate(BUFFERS.items()):
        assert made[name].shape == shape and made[name].dtype is dtype and made[name].is_contiguous()
        assert scratch.offsets[name] % ALIGNMENT == 0
        assert made[name].data_ptr() == memory.data_ptr() + scratch.offsets[name] or not made[name].numel()
        made[name].fill_(number + 1)
    for number, name in enumerate(BUFFERS):
        assert (made[name] == number + 1).all()


class Code:
    """A compiled kernel that notes its arguments."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __getitem__(self, grid: Any):
        return lambda *args, **_: self.calls.append(args) or self


def test_a_recipe_gives_its_launches_the_same_scratch_and_keeps_it_to_itself() -> None:
    code, recipes = Code(), Recipes()
    x = torch.randn(4)
    args: dict[str, Any] = {"x_ptr": x, "total_ptr": torch.empty(7), "y_ptr": torch.empty(4)}
    slots = {"x_ptr": "x", "total_ptr": "total", "y_ptr": "y"}
    launches = [Launch(code, (1, 1, 1), args, 4, 1, slots=slots) for _ in range(2)]
    plan = Plan(launches, {"x": x}, {"y": ((4,), torch.float32)}, {"total": BUFFERS["total"]})
    recipes.run(("key",), plan, keep=None)
    recipe = recipes.get(("key",))
    assert recipe is not None
    code.calls.clear()
    given: dict[str, torch.Tensor | None] = {"x": torch.randn(4)}
    recipe(given, CPU)
    (first, total, y), (_, again, _) = code.calls
    assert first is given["x"] and y is given["y"] and "total" not in given
    assert total.data_ptr() == again.data_ptr() and total.shape == (7,) and total.dtype is torch.float32
