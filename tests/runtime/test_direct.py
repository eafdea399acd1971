"""Repeated launches past Triton: its C function gets what Triton would give it, or Triton launches itself."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from triton import knobs
from triton.compiler import CompiledKernel

from ssdgen.runtime.direct import DirectLaunch, direct_launch
from ssdgen.runtime.launching import Launch, Plan, Recipe, Recipes, redescribe
from tests.runtime.imitations import (
    BLOCK,
    BLOCKS,
    FORMS,
    FUNCTION,
    GRID,
    LAYOUT,
    METADATA,
    NAMES,
    SHAPE,
    SLOTS,
    STREAM,
    STRIDES,
    Cuda,
    Encoded,
    Flat,
    Heard,
    Launcher,
    Listed,
    arguments,
    compiled,
    in_place_of_triton,
    plain,
    renamed,
    tensors,
)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """Triton's driver on no GPU, its functions in C replaced."""
    return in_place_of_triton(monkeypatch)


@pytest.fixture(params=FORMS)
def kernel(request: pytest.FixtureRequest, cuda: Cuda) -> CompiledKernel:
    return compiled(FORMS[request.param](cuda, [LAYOUT, LAYOUT]))


def direct(kernel: Any, given: dict[str, Any]) -> DirectLaunch | None:
    args = arguments(given)
    pointers = [(NAMES.index(name), slot) for name, slot in SLOTS.items() if name not in BLOCKS]
    # in any order
    descriptors = [
        (NAMES.index(name), SLOTS[name], lambda other, name=name: redescribe(args[name], other))
        for name in reversed(BLOCKS)
    ]
    return direct_launch(kernel, GRID, list(args.values()), pointers, descriptors)


def addresses(given: dict[str, Any]) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in given.items()}


def as_numbers(given: Any) -> Any:
    """What Triton gives, with addresses for tensors and nothing of those who listen."""
    if isinstance(given, list | tuple):
        return tuple(map(as_numbers, given))
    if isinstance(given, torch.Tensor):
        return given.data_ptr()
    return None if isinstance(given, knobs.HookChain) or type(given).__name__ == "LazyDict" else given


def has_tensors(given: Any) -> bool:
    return any(map(has_tensors, given)) if isinstance(given, list | tuple) else isinstance(given, torch.Tensor)


def test_the_c_function_gets_what_triton_gives_it(kernel: CompiledKernel, cuda: Cuda) -> None:
    launch = direct(kernel, tensors())
    assert launch is not None and not cuda.launches
    for _ in range(2):
        given = tensors()
        kernel[GRID](*arguments(given).values())
        launch(STREAM, addresses(given), given)
        by_triton, by_us = cuda.launches[-2:]
        assert plain(by_us) == as_numbers(by_triton)
        assert has_tensors(by_triton) and not has_tensors(by_us)


def of_a_kernel(given: dict[str, Any]) -> tuple:
    x, y = addresses(given).values()
    ends = (list(BLOCK), list(SHAPE), list(STRIDES), 0)
    x_desc, y_desc = (Encoded(address, plain((3, 4, 7, *ends))) for address in (x, y))
    return (x, None, x_desc, *SHAPE, *STRIDES, 32, y_desc, *SHAPE, *STRIDES, y, y, 64)


def test_the_arguments_of_triton_3_6_one_by_one(cuda: Cuda) -> None:
    given = tensors()
    launch = direct(compiled(FORMS["3.6"](cuda, [LAYOUT, LAYOUT])), tensors())
    launch(9, addresses(given), given)
    ours = (3, 2, 1, 9, FUNCTION, False, True, None, None, METADATA, None, None, None, *of_a_kernel(given))
    assert cuda.launches == [ours]


def test_the_arguments_of_triton_3_7_one_by_one(cuda: Cuda) -> None:
    given = tensors()
    launch = direct(compiled(FORMS["3.7"](cuda, [LAYOUT, LAYOUT])), tensors())
    launch(9, addresses(given), given)
    before = (3, 2, 1, 9, FUNCTION, False, True, METADATA, None, None, None, None, None, ["annotations"], b"signature")
    assert cuda.launches == [(*before, list(of_a_kernel(given)))]


def test_a_kernel_without_descriptors(cuda: Cuda) -> None:
    given = tensors()
    for launcher in (Flat(cuda.launch), Listed(cuda.launch)):
        kernel = compiled(launcher)
        launch = direct_launch(kernel, GRID, [given["x"], 32, None, 0.5], [(0, "x")], [])
        other = tensors()
        kernel[GRID](other["x"], 32, None, 0.5)
        launch(STREAM, addresses(other), other)
        assert plain(cuda.launches[-1]) == as_numbers(cuda.launches[-2])


def test_a_descriptor_is_encoded_once_for_an_address(kernel: CompiledKernel, cuda: Cuda) -> None:
    launch, given = direct(kernel, tensors()), tensors()
    cuda.encoded.clear()
    launch(STREAM, addresses(given), given)
    assert sorted(cuda.encoded) == sorted(addresses(given).values())
    # another tensor at the same address
    again = {name: tensor.view_as(tensor) for name, tensor in given.items()}
    launch(STREAM, addresses(again), again)
    assert len(cuda.encoded) == 2 and cuda.launches[-1] == cuda.launches[-2]
    mixed = {**given, "y": torch.randn(2, 32, 3, 16)}
    launch(STREAM, addresses(mixed), mixed)
    assert cuda.encoded[2:] == [mixed["y"].data_ptr()] and cuda.launches[-1] != cuda.launches[-2]


def test_few_addresses_are_remembered(kernel: CompiledKernel, cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DirectLaunch, "MOST_MAPS", 3)
    launch, given = direct(kernel, tensors()), [tensors() for _ in range(4)]

    def encodes(each: dict[str, Any]) -> int:
        before = len(cuda.encoded)
        launch(STREAM, addresses(each), each)
        return len(cuda.encoded) - before

    assert [encodes(each) for each in given[:3]] == [2, 2, 2]
    assert [encodes(each) for each in given[:3]] == [0, 0, 0]
    assert encodes(given[3]) == 2  # in place of the three
    assert [encodes(each) for each in (given[3], given[0])] == [0, 2]


def of_another_class(cuda: Cuda) -> Any:
    return type("Other", (Flat,), {})(FORMS["3.6"](cuda, [LAYOUT, LAYOUT]).launch)


def wrapped(cuda: Cuda) -> Any:
    """By somebody else, in a way that is not Triton's."""
    launcher = FORMS["3.6"](cuda, [LAYOUT, LAYOUT])
    real = launcher.launch
    launcher.launch = lambda *given: real(*given)
    return launcher


def with_scratch(name: str) -> Callable[[Cuda], Any]:
    def make(cuda: Cuda) -> Any:
        launcher = FORMS["installed"](cuda, [LAYOUT, LAYOUT])
        setattr(launcher, name, 8)
        return launcher

    return make


@renamed
class Shorter(Launcher):
    """Takes other arguments than launchers do today."""

    def __call__(self, grid, stream):
        self.launch(*grid, stream)


@renamed
class Twice(Launcher):
    def __call__(self, *given):
        self.launch(*given)
        self.launch(*given)


@renamed
class WithoutStream(Launcher):
    def __call__(self, x, y, z, stream, *given):
        self.launch(x, y, z, *given)


@renamed
class Repeating(Launcher):
    """Gives each argument twice."""

    def __call__(self, x, y, z, stream, *given):
        self.launch(x, y, z, stream, *(each for each in given[5:] for _ in range(2)))


UNKNOWN: dict[str, Callable[[Cuda], Any]] = {
    "another class": of_another_class,
    "wrapped": wrapped,
    "scratch memory": with_scratch("global_scratch_size"),
    "memory for profiles": with_scratch("profile_scratch_size"),
    "descriptors in parts": lambda cuda: FORMS["3.6"](cuda, [None, None]),
    "descriptors unseen": lambda cuda: Flat(cuda.launch),
}
UNKNOWN_PLAIN: dict[str, Callable[[Any], Any]] = {
    "no C function": lambda launch: Flat(None),
    "other arguments": Shorter,
    "two launches": Twice,
    "no stream": WithoutStream,
    "arguments twice": Repeating,
}


@pytest.mark.parametrize("form", UNKNOWN)
def test_an_unknown_launcher_stays_with_triton(form: str, cuda: Cuda) -> None:
    assert direct(compiled(UNKNOWN[form](cuda)), tensors()) is None
    assert not cuda.launches


@pytest.mark.parametrize("form", UNKNOWN_PLAIN)
def test_an_unknown_launcher_of_a_kernel_without_descriptors(form: str, cuda: Cuda) -> None:
    kernel = compiled(UNKNOWN_PLAIN[form](cuda.launch))
    assert direct_launch(kernel, GRID, [tensors()["x"], 32], [(0, "x")], []) is None
    assert not cuda.launches


class Jit:
    """A kernel whose launch returns what it was compiled to."""

    def __init__(self, kernel: CompiledKernel) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]):
        return lambda *args, **options: self.kernel


def recipe(first: dict[str, Any], *kernels: CompiledKernel) -> Recipe:
    launches = [
        Launch(Jit(kernel), GRID, arguments(first), 4, 1, slots=SLOTS, blocks=BLOCKS)  # type: ignore[arg-type]
        for kernel in kernels
    ]
    recipes = Recipes()
    recipes.run(("key",), Plan(launches, first, {}), keep=None)
    found = recipes.get(("key",))
    assert found is not None
    return found


def test_a_recipe_launches_on_the_stream_of_the_moment(kernel: CompiledKernel, cuda: Cuda) -> None:
    made = recipe(tensors(), kernel, kernel)
    for cuda.stream in (11, 12):
        given = tensors()
        made(given, torch.device("cuda", 3))
        assert [launch[3] for launch in cuda.launches[-2:]] == [cuda.stream] * 2
        assert not has_tensors(cuda.launches[-2:])
        kernel[GRID](*arguments(given).values())
        assert plain(cuda.launches[-2]) == as_numbers(cuda.launches[-1])
    assert 3 in cuda.devices


def test_what_is_scratch_lies_in_one_piece_of_memory(kernel: CompiledKernel, cuda: Cuda) -> None:
    first = tensors()
    scratch = {"y": (tuple(first["y"].shape), first["y"].dtype)}
    launches = [Launch(Jit(kernel), GRID, arguments(first), 4, 1, slots=SLOTS, blocks=BLOCKS) for _ in range(2)]
    recipes = Recipes()
    recipes.run(("key",), Plan(launches, first, {}, scratch), keep=None)  # type: ignore[arg-type]
    made = recipes.get(("key",))
    assert made is not None
    # an operand of its name may be absent
    for given in ({"x": tensors()["x"]}, {"x": tensors()["x"], "y": None}):
        names = list(given)
        made(given, torch.device("cpu"))  # type: ignore[arg-type]
        one, other = cuda.launches[-2:]
        assert one == other and list(given) == names
    found = plain(one)
    (inside,) = {each.address for each in flat(found) if isinstance(each, Encoded)} - {given["x"].data_ptr()}
    assert inside in flat(found)


def test_parts_of_tensors_lie_in_those_of_the_call(kernel: CompiledKernel, cuda: Cuda) -> None:
    """Of results and of scratch, by address; one that a descriptor is of is made when its address is new."""
    first = tensors()
    shape, dtype = tuple(first["y"].shape), first["y"].dtype
    large = {**first, "rows": torch.zeros((3, *shape), dtype=dtype)}
    views = {"y": ("rows", ((0, 1, 1),))}
    large["y"] = large["rows"].narrow(0, 1, 1)
    launch = Launch(Jit(kernel), GRID, arguments(first), 4, 1, slots=SLOTS, blocks=BLOCKS)
    for scratch in ({}, {"rows": ((3, *shape), dtype)}):
        recipes = Recipes()
        recipes.run(("key",), Plan([launch], large, {}, scratch, views), keep=None)  # type: ignore[arg-type]
        made, given = recipes.get(("key",)), {"x": tensors()["x"], "rows": torch.zeros((3, *shape), dtype=dtype)}
        assert made is not None
        begins = given["rows"].data_ptr()
        made({"x": given["x"]} if scratch else given, torch.device("cpu"))
        addresses = {each.address for each in flat(plain(cuda.launches[-1])) if isinstance(each, Encoded)}
        (inside,) = addresses - {given["x"].data_ptr()}
        assert scratch or inside == begins + first["y"].nbytes
        assert inside in flat(plain(cuda.launches[-1]))


def flat(given: Any) -> list:
    """What is in nested lists, one after the other."""
    return [inner for each in given for inner in flat(each)] if isinstance(given, list | tuple) else [given]


def test_one_unknown_launcher_leaves_all_launches_to_triton(kernel: CompiledKernel, cuda: Cuda) -> None:
    recipe(tensors(), kernel, compiled(wrapped(cuda)))(tensors(), torch.device("cuda", 0))
    assert [has_tensors(launch) for launch in cuda.launches] == [True, True]


@pytest.mark.parametrize("name", ["launch_enter_hook", "launch_exit_hook"])
def test_hooks_hear_of_every_launch(
    name: str, kernel: CompiledKernel, cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, heard = recipe(tensors(), kernel), Heard()

    def told() -> int:
        before = len(heard)
        made(tensors(), torch.device("cuda", 0))
        return len(heard) - before

    assert told() == 0
    with monkeypatch.context() as changed:
        changed.setattr(knobs.runtime, name, knobs.HookChain())
        getattr(knobs.runtime, name).add(heard)
        assert told() == 1
    with monkeypatch.context() as changed:
        changed.setattr(knobs.runtime, name, heard)
        assert told() == 1
        # made while somebody listens, and repeated when nobody does
        late = recipe(tensors(), kernel)
    with monkeypatch.context() as changed:
        changed.setattr(knobs.runtime, name, None)
        assert told() == 0 and not has_tensors(cuda.launches[-1])
        late(tensors(), torch.device("cuda", 0))
        assert len(heard) == 2 and plain(cuda.launches[-1][:13]) == plain(cuda.launches[-2][:13])


def test_the_first_call_s_tensors_are_not_kept(kernel: CompiledKernel, cuda: Cuda) -> None:
    first = tensors()
    seen = [weakref.ref(tensor) for tensor in first.values()]
    made = recipe(first, kernel)
    del first
    assert [tensor() for tensor in seen] == [None, None]
    made(tensors(), torch.device("cuda", 0))
    assert not has_tensors(cuda.launches[-1])


@pytest.mark.gpu
def test_on_a_gpu_a_direct_launch_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from ssdgen.mamba2_ops import direct, mamba_chunk_scan_combined

    def given() -> dict[str, torch.Tensor]:
        x = torch.randn(1, 2048, 16, 64, device="cuda", dtype=torch.bfloat16)
        B, C = (torch.randn(1, 2048, 1, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        return {
            "x": x,
            "dt": torch.rand(x.shape[:3], device="cuda"),
            "A": -torch.rand(16, device="cuda"),
            "B": B,
            "C": C,
        }

    made: list[int] = []
    real = direct.DirectRecipe.__call__

    def counted(self: Any, *args: Any) -> None:
        made.append(1)
        real(self, *args)

    monkeypatch.setattr(direct.DirectRecipe, "__call__", counted)
    first, second = given(), given()
    mamba_chunk_scan_combined(**first, chunk_size=64)
    made.clear()
    by_us = [mamba_chunk_scan_combined(**each, chunk_size=64) for each in (first, second, first)]
    assert len(made) == 3
    monkeypatch.setattr(direct.DirectRecipe, "is_watched", lambda self: True)
    by_triton = [mamba_chunk_scan_combined(**each, chunk_size=64) for each in (first, second, first)]
    assert len(made) == 3
    for ours, theirs in zip(by_us, by_triton, strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(by_us[0], by_us[1])
