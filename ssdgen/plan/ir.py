"""The plan: a kernel as frozen data over tiles.  lower -> plan -> interpret, emit

Tile values carry the axis names of the description (i, j, p, n); formulas are sympy, with one `Indexed` per value read.
Scalars (indices, bounds, loop ranges) are short integer expressions in Python's own syntax over the kernel's
parameters, which print as they stand.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy


@dataclass(frozen=True)
class Tensor:
    """A kernel parameter in memory.

    dims: extent of each dimension, as scalars.
    strided: "no" (contiguous), "unit" (strides are parameters, the last one is 1), "rows" (the last two dimensions are
    contiguous, the other strides are parameters), "all".
    dtype: "operand" (that of x), "float32", "any" and "state" (read as fp32 whatever they are), "stored" (a state in a
    format of few bits), "int", "index" (read as int64).
    flag: option without which it may be None.
    """

    name: str
    dims: tuple[str, ...]
    dtype: str
    strided: str = "no"
    flag: str | None = None
    out: bool = False

    def stride(self, axis: int) -> str:
        """Stride of dimension `axis` in elements, a product that a 64-bit index may multiply from the left."""
        last = len(self.dims) - 1
        if axis == last and self.strided != "all":
            return "1"
        if self.strided == "no" or self.strided == "rows" and axis == last - 1:
            return " * ".join(self.dims[axis + 1 :])
        return f"stride_{self.name}_{self.dims[axis].lower()}"

    def stride_parameters(self) -> tuple[str, ...]:
        """Names of the stride parameters, in order of the dimensions."""
        if self.strided == "no":
            return ()
        strides = (self.stride(axis) for axis in range(len(self.dims)))
        return tuple(stride for stride in strides if stride.startswith("stride_"))


@dataclass(frozen=True)
class Span:
    """The part of one dimension that a tile covers: origin + offsets, offsets being an arange of `size`."""

    axis: str
    offsets: str
    size: str
    origin: str = "0"
    mask: str | None = None


Index = str | Span


@dataclass(frozen=True)
class Value:
    """A tile in registers: its variable, its axes in order and its dtype.

    dtype: "float32", "operand" (still that of the operands), "int", "stored" (that of the memory it came from, or
    float32 where an option made it anew).
    """

    name: str
    axes: tuple[str, ...]
    dtype: str = "float32"


@dataclass(frozen=True)
class Note:
    """A comment line in the kernel."""

    text: str


@dataclass(frozen=True)
class Scalar:
    """name = integer expression.

    wide: in 64 bits (anything that is multiplied by a stride); narrow: in 32 (trip counts).
    """

    name: str
    expr: str
    wide: bool = False
    narrow: bool = False


@dataclass(frozen=True)
class Arange:
    """name = 0 .. size-1 along an axis."""

    name: str
    axis: str
    size: str


@dataclass(frozen=True)
class Mask:
    """name = offsets < limit, along an axis; `also`: further conditions over scalars and the offsets."""

    name: str
    axis: str
    offsets: str
    limit: str
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Load:
    """out = tensor[index]; positions outside the masks read `other`.

    near: the last entry of what is moved for a stage too, as a vector, and is read from there where it is needed.
    """

    out: Value
    tensor: str
    index: tuple[Index, ...]
    descriptor: bool = False
    near: bool = False


@dataclass(frozen=True)
class Full:
    """out = a tile of one number."""

    out: Value
    sizes: tuple[str, ...]
    value: float = 0.0


@dataclass(frozen=True)
class Let:
    """out = formula, pointwise over the axes of `out`; reads: values by name."""

    out: Value
    formula: sympy.Expr
    reads: tuple[Value, ...] = ()


@dataclass(frozen=True)
class Dot:
    """out = (acc +) left . right over `over`, on the matrix unit."""

    out: Value
    left: Value
    right: Value
    over: str
    acc: bool = False


@dataclass(frozen=True)
class Rest:
    """out = what rounding `of` to the operands' dtype leaves out: the second term of an operand in two terms."""

    out: Value
    of: Value


@dataclass(frozen=True)
class Cumsum:
    """out = inclusive running sum of `of` along one axis, from its start or, reverse, from its end."""

    out: Value
    of: Value
    along: str
    reverse: bool = False


@dataclass(frozen=True)
class Sum:
    """out = sum of `of` along one axis, which `out` lacks."""

    out: Value
    of: Value
    along: str


@dataclass(frozen=True)
class Largest:
    """out = largest magnitude of `of` along one axis, which `out` lacks."""

    out: Value
    of: Value
    along: str


@dataclass(frozen=True)
class Widen:
    """out = `of` as fp32, out of the format that states are stored in."""

    out: Value
    of: Value


@dataclass(frozen=True)
class Narrow:
    """out = `of`, over (p, n), in the format that states are stored in, rounded to nearest or at random.

    row: number of its first row of dstate; column: where in dstate it starts; token: position in the call.  Random bits
    depend on these and on `seed`.
    """

    out: Value
    of: Value
    row: str
    column: str
    token: str


@dataclass(frozen=True)
class InWords:
    """out = `of`, as loaded, with numbers of 16 bits two to a word: what a loop carries takes half the registers."""

    out: Value
    of: Value


@dataclass(frozen=True)
class FromWords:
    """out = `of` as fp32, which `InWords` made of what stands in a tensor."""

    out: Value
    of: Value
    tensor: str


@dataclass(frozen=True)
class Split:
    """first, second = numbers 0 and 1 of each pair that stands along the last axis of `of`.

    sizes: of either half, whose last axis has a position for each pair.
    """

    first: Value
    second: Value
    of: Value
    sizes: tuple[str, ...]


@dataclass(frozen=True)
class Join:
    """out = pairs of a number of `first` and one of `second`, pair after pair along its last axis.  sizes: of `out`."""

    out: Value
    first: Value
    second: Value
    sizes: tuple[str, ...]


@dataclass(frozen=True)
class Leave:
    """The program ends here."""


@dataclass(frozen=True)
class Wait:
    """Nothing below is done before the kernel that was launched before this one has ended."""


@dataclass(frozen=True)
class Release:
    """The kernel that is launched after this one, and waits for it, may start."""


@dataclass(frozen=True)
class Begun:
    """Every load above is on its way before anything below is done: a compiler must not move one behind a wait."""


@dataclass(frozen=True)
class Store:
    """tensor[index] = value.

    vectors: a matrix that a consumer holds changes places between the threads of a warp first, so that each stores
    neighbours in a row together; as the matrix unit leaves it in 16 bits, half of each sector would be written alone.
    """

    tensor: str
    index: tuple[Index, ...]
    value: Value
    descriptor: bool = False
    vectors: bool = False


@dataclass(frozen=True)
class When:
    """Statements that stand only if a compile-time flag, or a run-time condition, holds."""

    condition: str
    body: tuple[Stmt, ...]
    otherwise: tuple[Stmt, ...] = ()


@dataclass(frozen=True)
class For:
    """for var in range(trips): body.  pipelined: loads may be started stages ahead."""

    var: str
    trips: str
    body: tuple[Stmt, ...]


@dataclass(frozen=True)
class Aside:
    """Vectors and numbers of a trip that a warp makes for each consumer.

    values: what consumers find in shared memory, as if it had been moved there; sizes: its extents; body: how it is
    made.
    """

    values: tuple[Value, ...]
    sizes: tuple[tuple[str, ...], ...]
    body: tuple[Stmt, ...]


Stmt = (
    Note
    | Scalar
    | Arange
    | Mask
    | Load
    | Full
    | Let
    | Dot
    | Rest
    | Cumsum
    | Sum
    | Largest
    | Widen
    | Narrow
    | InWords
    | FromWords
    | Split
    | Join
    | Leave
    | Wait
    | Release
    | Begun
    | Store
    | When
    | For
    | Aside
)


@dataclass(frozen=True)
class Kernel:
    """One kernel.

    grid: integer expressions over sizes and constants; constants: compile-time parameters; sizes: run-time integers.
    consumers: 0 where all warps of a program do the same. Otherwise the body is what one of so many groups of warps
    does, which knows its number as `consumer`; loads by descriptor inside a loop are made ahead, for all of them.
    roles: what each consumer does, where they do not all do the same; its part of the body stands at the top, under the
    condition "consumer == 0", "consumer == 1" and so on.
    given: values of the graph that it loads, where its name and its tensors do not say so.
    spare: of consumers whose registers are full. What is in shared memory is multiplied from there, though formulas
    read it too, and all that is copied to memory goes through one tile of each, from which products take it as well.
    registers: of a thread of each consumer but the first, which has what is left; none: all have the same.
    gates: of what moves memory and computes little else, where a sigmoid of few instructions counts.
    turns: sines and cosines are of angles within one turn, which take few instructions.
    ahead: of one consumer: products of nothing but tiles of a stage are issued at the end of the one before, and waited
    for where their own begins. It takes two stages.
    """

    name: str
    about: str
    equations: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    sizes: tuple[str, ...]
    reals: tuple[str, ...]
    constants: tuple[str, ...]
    flags: tuple[str, ...]
    grid: tuple[str, ...]
    body: tuple[Stmt, ...]
    consumers: int = 0
    roles: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    spare: bool = False
    registers: tuple[int, ...] = ()
    gates: bool = False
    turns: bool = False
    ahead: bool = False

    def shares(self, extent: str) -> bool:
        """Whether programs share out an extent."""
        return any(f"cdiv({extent}," in axis for axis in self.grid)

    def tensor(self, name: str) -> Tensor:
        return next(tensor for tensor in self.tensors if tensor.name == name)


def walk(body: tuple[Stmt, ...]):
    """Every statement of a body, inner ones included, in order."""
    for stmt in body:
        yield stmt
        if isinstance(stmt, When):
            yield from walk(stmt.body)
            yield from walk(stmt.otherwise)
        elif isinstance(stmt, (For, Aside)):
            yield from walk(stmt.body)
