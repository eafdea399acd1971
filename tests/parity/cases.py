"""Calls of the public function and what they must return.  The same cases run in PyTorch, in the interpreter, on a GPU.

One thing varies at a time around a small base, which is not round in any size; a seeded handful varies everything.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import torch

from ssdgen.spec import oracle as truth
from ssdgen.spec.layer import Layer
from tests.parity import tolerances

# what each option passes to the call; "one_state" gives a packed row one initial state, for its first sequence
OPTIONS = (
    "D",
    "D_headdim",
    "z",
    "dt_bias",
    "dt_softplus",
    "dt_limit",
    "initial_states",
    "one_state",
    "seq_idx",
    "cu_seqlens",
    "state_bf16",
    "state_fp16",
    "strided",
)
LIMITS = (0.05, 0.6)
# results in which dtype a state is returned
STATE_DTYPES = {"state_bf16": torch.bfloat16, "state_fp16": torch.float16}

Tensors = dict[str, Any]


@dataclass(frozen=True)
class Case:
    batch: int = 2
    seqlen: int = 65
    nheads: int = 3
    headdim: int = 16
    dstate: int = 16
    ngroups: int = 1
    dtype: str = "float32"
    options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = set(self.options) - set(OPTIONS)
        assert not unknown, f"no option {unknown}; there are {', '.join(OPTIONS)}"
        assert "cu_seqlens" not in self.options or self.batch == 1, "a packed batch is one row"

    def has(self, option: str) -> bool:
        return option in self.options

    def __str__(self) -> str:
        """What differs from the base."""
        base = Case()
        found = [
            f"{field.name}={getattr(self, field.name)}"
            for field in fields(self)
            if field.name != "options" and getattr(self, field.name) != getattr(base, field.name)
        ]
        return "-".join([*found, *self.options]) or "base"


@dataclass(frozen=True)
class Call:
    """operands: x, dt, A, B, C; options: the other keyword arguments that have no default here."""

    operands: Tensors
    options: Tensors

    def on(self, device: str) -> Call:
        """The same call with tensors on another device, their strides kept."""
        if device == "cpu":
            return self
        return Call(_moved(self.operands, device), _moved(self.options, device))


def _moved(tensors: Tensors, device: str) -> Tensors:
    """Slices of one projection stay slices: the projection moves, and is cut again."""
    whole: dict[int, torch.Tensor] = {}
    found = {}
    for name, value in tensors.items():
        if isinstance(value, torch.Tensor):
            memory = value.untyped_storage()
            flat = torch.empty(0, dtype=value.dtype).set_(memory)
            moved = whole.setdefault(memory.data_ptr(), flat.to(device))
            value = moved.as_strided(value.shape, value.stride(), value.storage_offset())
        found[name] = value
    return found


def draw(case: Case) -> Call:
    """Random arguments of a case, the same ones every time, on the CPU."""
    random_ = torch.Generator().manual_seed(zlib.crc32(str(case).encode()))
    dtype = getattr(torch, case.dtype)
    b, length, h, p, n, g = (getattr(case, field.name) for field in fields(case)[:6])

    def normal(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=random_)

    x, z = normal(b, length, h, p).to(dtype), normal(b, length, h, p).to(dtype)
    B, C = (normal(b, length, g, n).to(dtype) for _ in range(2))
    # before a softplus any sign will do; without one a step size is positive, about 0.05 to 0.5
    dt = normal(b, length, h) if case.has("dt_softplus") else (normal(b, length, h) / 2 - 2).exp()
    if case.has("strided"):
        # as a model's input projection leaves them: z, x, B, C and dt beside each other
        dt = dt.to(dtype)
        wide = torch.cat([z.flatten(2), x.flatten(2), B.flatten(2), C.flatten(2), dt], dim=-1)
        z, x, B, C, dt = wide.split([h * p, h * p, g * n, g * n, h], dim=-1)
        z, x = (t.unflatten(2, (h, p)) for t in (z, x))
        B, C = (t.unflatten(2, (g, n)) for t in (B, C))
    A = -torch.rand(h, generator=random_) * 2 - 0.01
    options: Tensors = {"dt_softplus": case.has("dt_softplus")}
    if case.has("D") or case.has("D_headdim"):
        options["D"] = normal(h, p) if case.has("D_headdim") else normal(h)
    if case.has("z"):
        options["z"] = z
    if case.has("dt_bias"):
        options["dt_bias"] = normal(h) / 4
    if case.has("dt_limit"):
        options["dt_limit"] = LIMITS
    rows = b
    if case.has("cu_seqlens"):
        cuts = _cuts(case)
        options["cu_seqlens"] = torch.tensor(cuts, dtype=torch.int32)
        rows = len(cuts) - 1
    if case.has("seq_idx"):
        options["seq_idx"] = torch.stack([_runs(case, row) for row in range(b)])
    if case.has("initial_states") or case.has("one_state"):
        options["initial_states"] = normal(1 if case.has("one_state") else rows, h, p, n)
    for name, state_dtype in STATE_DTYPES.items():
        if case.has(name):
            options["state_dtype"] = state_dtype
    return Call({"x": x, "dt": dt, "A": A, "B": B, "C": C}, options)


def _cuts(case: Case) -> list[int]:
    """Ends of packed sequences: one of a single token, one over more than a chunk, one that ends inside a chunk."""
    inner = {1, 2, case.seqlen // 2 + 3, case.seqlen - 2}
    return sorted({0, case.seqlen} | {cut for cut in inner if 0 < cut < case.seqlen})


def _runs(case: Case, row: int) -> torch.Tensor:
    """seq_idx of a row: numbers neither sorted nor from 0, each one run; every row cut elsewhere."""
    cuts = [cut + row for cut in _cuts(case)[1:-1] if cut + row < case.seqlen]
    lengths = [stop - start for start, stop in zip([0, *cuts], [*cuts, case.seqlen], strict=True)]
    numbers = [(7 * place + 3) % 11 for place in range(len(lengths))]
    return torch.repeat_interleave(torch.tensor(numbers), torch.tensor(lengths)).int()


def layer(case: Case) -> Layer:
    return Layer(dt_softplus=case.has("dt_softplus"))


@lru_cache(maxsize=256)
def exact(case: Case) -> truth.Result:
    """The case in float64, from its description."""
    return of_call(draw(case), layer(case))


def of_call(call: Call, over: Layer) -> truth.Result:
    """A call in float64, by the oracle of a layer."""
    arrays = {name: t.double().numpy() for name, t in call.operands.items()}
    options = {name: value for name, value in call.options.items() if name not in ("dt_softplus", "state_dtype")}
    # cu_seqlens alone says where sequences begin
    if "cu_seqlens" in options:
        options.pop("seq_idx", None)
    options = {
        name: (value.double() if value.is_floating_point() else value).numpy() if torch.is_tensor(value) else value
        for name, value in options.items()
    }
    return truth.oracle(over, **arrays, **options)


def compare(
    case: Case,
    y: torch.Tensor,
    final: torch.Tensor,
    varlen: torch.Tensor | None,
    *also: str,
    tensor_cores: bool = False,
) -> None:
    """Everything a call returned against float64.  also: dtypes that results passed through beside the operands'."""
    found = exact(case)
    state_dtype = next((STATE_DTYPES[name] for name in case.options if name in STATE_DTYPES), torch.float32)
    allowed = tolerances.limit(case.dtype, *also, tensor_cores=tensor_cores)
    of_states = tolerances.limit(case.dtype, *also, str(state_dtype).removeprefix("torch."), tensor_cores=tensor_cores)
    assert y.dtype == getattr(torch, case.dtype)
    tolerances.check("y", y, found.y, allowed)
    assert final.dtype == state_dtype
    tolerances.check("final_states", final, found.final_states, of_states)
    if case.has("cu_seqlens"):
        assert varlen is not None and varlen.dtype == state_dtype
        tolerances.check("varlen_states", varlen, found.varlen_states, of_states)


def arguments(case: Case, call: Call) -> Tensors:
    """Keyword arguments of the public call that ask for everything it can return."""
    wanted = {"return_final_states": True, "return_varlen_states": case.has("cu_seqlens")}
    return {**call.operands, "chunk_size": 64, **call.options, **wanted}


BASE = Case()

SEQLENS = [Case(seqlen=seqlen) for seqlen in (1, 7, 63, 64, 257)]
HEADDIMS = [Case(headdim=headdim) for headdim in (8, 24, 64, 80, 128)]
DSTATES = [Case(dstate=dstate) for dstate in (2, 96, 128, 256)]
HEADS = [Case(nheads=h, ngroups=g) for h, g in ((1, 1), (3, 3), (10, 1), (10, 10), (10, 5), (10, 2))]
SHAPES = [BASE, *SEQLENS, *HEADDIMS, *DSTATES, *HEADS]

# combinations in which one option could spoil another
TOGETHER = [
    ("dt_bias", "dt_softplus"),
    ("dt_bias", "dt_softplus", "dt_limit"),
    ("D", "z"),
    ("initial_states", "seq_idx"),
    ("initial_states", "state_bf16"),
    ("strided", "z", "D", "dt_bias", "dt_softplus"),
    ("D_headdim", "z", "dt_bias", "dt_softplus", "dt_limit", "initial_states", "seq_idx", "strided"),
]
PACKED = [
    ("cu_seqlens",),
    ("cu_seqlens", "initial_states"),
    ("cu_seqlens", "one_state"),
    # as mamba_ssm wants it: seq_idx beside cu_seqlens changes nothing
    ("cu_seqlens", "seq_idx"),
    ("D", "z", "dt_bias", "dt_softplus", "dt_limit", "initial_states", "cu_seqlens", "strided", "state_bf16"),
]
ALONE = [(name,) for name in OPTIONS if name not in ("one_state", "cu_seqlens")]
WITH_OPTIONS = [Case(options=options) for options in (*ALONE, *TOGETHER)]
WITH_OPTIONS += [Case(batch=1, options=options) for options in PACKED]


def _mixed(count: int, seed: int) -> list[Case]:
    """Cases in which everything varies."""
    draw_ = random.Random(seed)
    found = []
    for _ in range(count):
        nheads = draw_.choice((1, 3, 10))
        options = [name for name in OPTIONS if name not in ("D_headdim", "one_state", "state_fp16")]
        chosen = [name for name in options if draw_.random() < 0.4]
        found.append(
            Case(
                batch=1 if "cu_seqlens" in chosen else draw_.choice((1, 2)),
                seqlen=draw_.choice((1, 7, 63, 64, 65, 100)),
                nheads=nheads,
                headdim=draw_.choice((8, 16, 24, 64, 80, 128)),
                dstate=draw_.choice((2, 16, 96, 128, 256)),
                ngroups=draw_.choice([g for g in range(1, nheads + 1) if nheads % g == 0]),
                options=tuple(chosen),
            )
        )
    return found


MIXED = _mixed(8, seed=7)
DTYPES = ("float32", "bfloat16", "float16")
ROUNDED = [Case(dtype=dtype, options=("D", "z")) for dtype in DTYPES[1:]]
ROUNDED += [Case(dtype=dtype, headdim=24, dstate=96, options=TOGETHER[-1]) for dtype in DTYPES[1:]]

ALL = [*SHAPES, *WITH_OPTIONS, *MIXED, *ROUNDED]
