"""A launch that is repeated: the same descriptor for another tensor, and no tensor kept alive."""

from __future__ import annotations

import weakref

import pytest
import torch

pytest.importorskip("triton")

from ssdgen.runtime.launching import Launch, Plan, Recipes, can_describe, descriptor, key_of, redescribe

ORDER, BLOCK = (0, 2, 1, 3), (1, 1, 16, 16)


def tensor() -> torch.Tensor:
    return torch.randn(2, 32, 3, 16)


class Compiled:
    """What Triton returns from a launch: `compiled[grid](*args)` launches again."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __getitem__(self, grid: tuple[int, ...]):
        return lambda *args: self.calls.append(args)


class Jit:
    """A kernel whose launch returns what it was compiled to."""

    def __init__(self, compiled: Compiled) -> None:
        self.compiled = compiled

    def __getitem__(self, grid: tuple[int, ...]):
        return lambda *args, **options: self.compiled


def test_another_tensor_has_the_descriptor_that_the_constructor_makes() -> None:
    first, second = tensor(), tensor()
    assert redescribe(descriptor(first, ORDER, BLOCK), second) == descriptor(second, ORDER, BLOCK)


def test_what_can_be_described() -> None:
    assert can_describe(tensor())
    assert not can_describe(tensor()[:, :, :, 1:])  # not on 16 bytes
    assert not can_describe(torch.randn(2, 32, 3, 6))  # rows of 24 bytes
    assert not can_describe(tensor().expand(2, 32, 3, 16).transpose(2, 3))  # no unit stride
    assert not can_describe(torch.randn(1, 1, 1, 16).expand(2, 32, 3, 16))  # strides of 0


def test_a_repeated_call_fills_in_its_own_tensors() -> None:
    compiled, recipes = Compiled(), Recipes()
    first = tensor()
    args = {"x_ptr": first, "x_desc": descriptor(first, ORDER, BLOCK), "seqlen": 32, "y_ptr": first}
    slots = {"x_ptr": "x", "x_desc": "x", "y_ptr": "y"}
    launch = Launch(Jit(compiled), (1, 1, 1), args, 4, 1, slots=slots, blocks={"x_desc": (ORDER, BLOCK)})
    plan = Plan([launch], {"x": first, "y": first}, {"y": ((2, 5), torch.float32)})
    assert recipes.get(("key",)) is None
    recipes.run(("key",), plan, keep=None)
    recipe = recipes.get(("key",))
    assert recipe is not None
    second = {"x": tensor()}
    recipe(second, torch.device("cpu"))
    x, described, seqlen, y = compiled.calls[0]
    assert x is second["x"] and described.base is second["x"] and seqlen == 32
    assert described == descriptor(second["x"], ORDER, BLOCK)
    assert y is second["y"] and y.shape == (2, 5) and y.is_contiguous()


def test_the_first_call_s_tensors_are_not_kept() -> None:
    compiled, recipes, first = Compiled(), Recipes(), tensor()
    seen = weakref.ref(first)
    args = {"x_ptr": first, "x_desc": descriptor(first, ORDER, BLOCK)}
    launch = Launch(
        Jit(compiled), (1, 1, 1), args, 4, 1, slots=dict.fromkeys(args, "x"), blocks={"x_desc": (ORDER, BLOCK)}
    )
    recipes.run(("key",), Plan([launch], {"x": first}, {}), keep=None)
    del launch, args, first
    assert seen() is None


def test_the_key_tells_apart_what_is_compiled_apart() -> None:
    x = tensor()
    same = key_of({"x": x, "D": None}, True)
    assert same == key_of({"x": tensor(), "D": None}, True)
    assert same != key_of({"x": x, "D": None}, False)
    assert same != key_of({"x": x, "D": x}, True)
    assert same != key_of({"x": x.to(torch.bfloat16), "D": None}, True)
    assert same != key_of({"x": x.transpose(1, 2), "D": None}, True)
    unaligned = torch.randn(2 * 32 * 3 * 16 + 1)[1:].view(2, 32, 3, 16)
    assert same != key_of({"x": unaligned, "D": None}, True)
