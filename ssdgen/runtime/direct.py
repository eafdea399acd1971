"""Repeated launches past Triton's Python: its C function, called as Triton calls it.  launching -> direct -> Triton

At every launch Triton prepares for hooks, asks the driver about each pointer and encodes each tensor descriptor anew.
The host takes longer for that than for the launch.  Two launches of one recipe differ in addresses and in the stream
alone, so Triton makes one with a recorder in place of the C function and marks in place of what differs, and later ones
repeat what was recorded with other values where the marks are.  If anything in it is unknown, Triton makes them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from types import CellType, FunctionType
from typing import Any

from torch import Tensor

from .scratch import Scratch

# The one launcher whose C function is known to take an integer as a pointer, without asking the driver what it points
# to.  _ENCODE: its function that turns a descriptor into arguments, of which the encoded descriptor is the first.
_LAUNCHER = ("triton.backends.nvidia.driver", "CudaLauncher")
_ENCODE = "make_tensordesc_arg"

# position of an argument, and the tensor that it is
Pointer = tuple[int, str]
# position of a descriptor, the tensor that it is of, and what makes the same descriptor of another tensor
Described = tuple[int, str, Callable[[Any], Any]]
# of a part of a tensor: the tensor, bytes from its beginning, and what makes the part of it
Place = tuple[str, int, Callable[[Tensor], Tensor]]
# a function in C and its arguments
Packed = tuple[Callable[..., Any], tuple[Any, ...]]


class DirectLaunch:
    """A launch of a compiled kernel.

    after: what stands between the stream and the kernel's arguments where these are one list, as in Triton 3.7; None
    where they are arguments of the C function itself, as in 3.6.
    pointers, maps: positions in args; maps with what encodes the descriptor of a tensor.
    """

    # Addresses that are remembered of one descriptor.  The layers of a network share a recipe and come again with the
    # same addresses at every step: more than a deep network has layers.
    MOST_MAPS = 256

    def __init__(
        self,
        launch: Callable[..., Any],
        before: Sequence[Any],
        after: Sequence[Any] | None,
        args: Sequence[Any],
        pointers: Sequence[Pointer],
        maps: Sequence[Described],
    ) -> None:
        self._launch, self._before, self._after, self._args = launch, before, after, list(args)
        self._pointers = list(pointers)
        self._maps: list[tuple[int, str, dict[int, Any], Callable]] = [
            (at, slot, {}, encode) for at, slot, encode in maps
        ]
        self.slots = {slot for _, slot in pointers} | {slot for _, slot, _ in maps}

    def __call__(self, stream: int, addresses: dict[str, int], tensors: dict[str, Tensor | None]) -> None:
        """Launch.  addresses: those of `slots`; tensors: read where a descriptor has to be encoded."""
        function, given = self.packed(stream, addresses, tensors)
        function(*given)

    def packed(self, stream: int, addresses: dict[str, int], tensors: dict[str, Tensor | None]) -> Packed:
        """What a launch is: the C function and all that it is given.  Arguments as of a launch."""
        args = self._args.copy()
        for at, slot in self._pointers:
            args[at] = addresses[slot]
        for at, slot, encoded, encode in self._maps:
            # sizes, strides, dtype and block are the recipe's: only the address is left to tell encoded ones apart
            address = addresses[slot]
            found = encoded.get(address)
            if found is None:
                if len(encoded) >= self.MOST_MAPS:
                    encoded.clear()
                found = encoded[address] = encode(tensors[slot])
            args[at] = found
        rest = args if self._after is None else [*self._after, args]
        return self._launch, (*self._before, stream, *rest)


class DirectRecipe:
    """The launches of a recipe, in order.  scratch: what they leave for each other; views: parts of tensors.

    What addresses and stream make of the arguments is kept, up to MOST times: of numbers and encoded descriptors alone.
    """

    # more than most networks have layers; a kilobyte for each launch
    MOST = 128

    def __init__(
        self, launches: Sequence[DirectLaunch], scratch: Scratch, views: dict[str, Place] | None = None
    ) -> None:
        from triton import knobs
        from triton.runtime import driver

        self._launches = list(launches)
        self._scratch = scratch
        self._views = views or {}
        slots = {slot for launch in launches for slot in launch.slots}
        slots |= {self._views[slot][0] for slot in slots if slot in self._views}
        self._slots = sorted(slots - set(scratch.offsets) - set(self._views))
        self._packed: dict[tuple[int, ...], list[Packed]] = {}
        self._hooks = knobs.runtime
        # torch's function in C, which makes no object of the stream
        self._stream_of: Callable[[int | None], int] = driver.active.get_current_stream

    def is_watched(self) -> bool:
        """Whether someone wants to hear of every launch, as profilers do: then Triton has to make them."""
        return _listens(self._hooks.launch_enter_hook) or _listens(self._hooks.launch_exit_hook)

    def __call__(self, tensors: dict[str, Tensor | None], memory: Tensor | None, device: int | None) -> None:
        """Launch on the current stream of the device, which must be the current one.  memory: of what is scratch."""
        where = [tensors[slot].data_ptr() for slot in self._slots]  # type: ignore[union-attr]
        where.append(memory.data_ptr() if memory is not None else 0)
        where.append(self._stream_of(device))
        key = tuple(where)
        packed = self._packed.get(key)
        if packed is None:
            if len(self._packed) >= self.MOST:
                self._packed.clear()
            packed = self._packed[key] = self._pack(tensors, memory, *key)
        for function, given in packed:
            function(*given)

    def _pack(self, tensors: dict[str, Tensor | None], memory: Tensor | None, *where: int) -> list[Packed]:
        """where: the addresses of `_slots`, that of the scratch memory, the stream."""
        *known, first, stream = where
        addresses = {name: first + offset for name, offset in self._scratch.offsets.items()}
        addresses.update(zip(self._slots, known, strict=True))
        for name, (slot, offset, _) in self._views.items():
            addresses[name] = addresses[slot] + offset
        # what the launches make stands in place of an operand of that name that is not there
        made = {*self._scratch.offsets, *self._views}
        found = _Tensors({name: tensor for name, tensor in tensors.items() if name not in made})
        found.scratch, found.memory, found.views = self._scratch, memory, self._views
        return [launch.packed(stream, addresses, found) for launch in self._launches]


class _Tensors(dict):
    """Tensors by name; scratch and views become some when asked for, which only a new address makes necessary."""

    scratch: Scratch
    memory: Tensor | None
    views: dict[str, Place]

    def __missing__(self, name: str) -> Tensor:
        if name in self.views:
            slot, _, narrow = self.views[name]
            return narrow(self[slot])
        return self.scratch.tensor(self.memory, name)


def _listens(hook: Any) -> bool:
    # what is there from the start is a chain of no hooks
    return hook is not None and bool(getattr(hook, "calls", True))


def direct_launch(
    compiled: Any,
    grid: tuple[int, int, int],
    args: Sequence[Any],
    pointers: Sequence[Pointer],
    descriptors: Sequence[Described],
) -> DirectLaunch | None:
    """The launch of a compiled kernel, or None where Triton's launcher has an unknown form.  Launches nothing.

    args: those of a launch that was made, with its tensors; the result keeps none of them.
    """
    parts = _parts(compiled)
    if parts is None or not pointers:
        return None
    launch, encode = parts
    descriptors = sorted(descriptors, key=lambda described: described[0])
    calls: list[list[Any]] = []
    encoded: list[tuple[object, Any]] = []

    def record(*given: Any) -> None:
        calls.append(list(given))

    def mark(described: Any, layout: Any) -> list[Any]:
        """Stands for `encode`: a mark for the encoded descriptor, then its sizes and strides."""
        encoded.append((object(), layout))
        return [encoded[-1][0], *encode(described, layout)[1:]]

    stream, marked = object(), list(args)
    for at, _ in pointers:
        marked[at] = object()
    launcher, probe = copy(compiled.run), copy(compiled)
    launcher.launch = record if encode is None else _rebound(launcher.launch, record, mark)
    probe._run, probe.launch_metadata = launcher, lambda *_: None
    try:
        probe[grid](*marked, stream=stream)
    except TypeError:
        # another version of Triton, where one of these functions takes other arguments
        return None
    # without a layout, what the descriptor is made of is passed on in its place
    if len(calls) != 1 or len(encoded) != len(descriptors) or any(layout is None for _, layout in encoded):
        return None
    (given,) = calls
    first = _places(given, [stream])
    if first is None:
        return None
    before, after, passed = given[: first[0]], None, _without_hooks(given[first[0] + 1 :])
    if passed and isinstance(passed[-1], list | tuple):
        *after, passed = passed
    places = _places(passed, [*(marked[at] for at, _ in pointers), *(each for each, _ in encoded)])
    if places is None:
        return None
    maps = zip(places[len(pointers) :], descriptors, encoded, strict=True)
    return DirectLaunch(
        launch,
        before,
        after,
        passed,
        [(place, slot) for place, (_, slot) in zip(places, pointers, strict=False)],
        [(place, slot, _encoder(encode, describe, layout)) for place, (_, slot, describe), (_, layout) in maps],
    )


def _parts(compiled: Any) -> tuple[Callable[..., Any], Callable[..., list[Any]] | None] | None:
    """The C function that launches, and what encodes descriptors in front of it, if the launcher is as expected."""
    launcher = getattr(compiled, "run", None)
    kind = type(launcher)
    if (kind.__module__, kind.__qualname__) != _LAUNCHER or getattr(compiled, "_run", None) is not launcher:
        return None
    # such memory is allocated at each launch
    if any(getattr(launcher, f"{scratch}_scratch_size", None) != 0 for scratch in ("global", "profile")):
        return None
    function = vars(launcher).get("launch")
    if not isinstance(function, FunctionType):
        return None if function is None else (function, None)
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    encode = function.__globals__.get(_ENCODE)
    if "launcher" not in cells or encode is None:
        return None
    return cells["launcher"].cell_contents, encode


def _rebound(function: FunctionType, launcher: Callable, encode: Callable) -> FunctionType:
    """What encodes descriptors and then launches, with others in place of the two functions that it calls for that."""
    code = function.__code__
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    closure = tuple(CellType(launcher) if name == "launcher" else cell for name, cell in cells)
    return FunctionType(code, {**function.__globals__, _ENCODE: encode}, function.__name__, None, closure)


def _encoder(encode: Any, describe: Callable[[Any], Any], layout: Any) -> Callable[[Any], Any]:
    return lambda tensor: encode(describe(tensor), layout)[0]


def _without_hooks(given: list[Any]) -> list[Any]:
    """What was given, without the hooks of the moment: a launch is direct only while nobody listens."""
    from triton import knobs

    hooks = (knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook)
    return [None if any(each is hook for hook in hooks) else each for each in given]


def _places(given: Sequence[Any], marks: Sequence[object]) -> list[int] | None:
    """Where each mark is, or None unless each is there once."""
    found = [[at for at, each in enumerate(given) if each is mark] for mark in marks]
    return [places[0] for places in found] if all(len(places) == 1 for places in found) else None
