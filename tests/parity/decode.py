"""Calls of the decode step and what they must do, in float64.  The same in PyTorch, in the interpreter, on a GPU."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch

from tests.parity import tolerances

LIMITS = (0.05, 0.6)
STATES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
    "float8": torch.float8_e4m3fn,
}
# |stored - state| / |state| where a state of normal numbers is rounded to nearest: a third of the worst case of a
# number; of 127 steps below the largest of a row; twice that and more at random
ROUNDED = {"float64": 1e-9, "float32": 1e-5, "bfloat16": 2.5e-3, "float16": 4e-4, "int8": 1e-2, "float8": 4e-2}

Tensors = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """tokens: 0 where x has no axis of them; nheads: 0 where nothing has an axis of heads.

    options: D, D_headdim, z, dt_bias, dt_softplus, dt_limit, slots, step_states, read_only, seed, strided; untied (dt
    and A for every entry, as Mamba-1 has them), expanded (in that form, but one number for a head).
    """

    batch: int = 3
    tokens: int = 0
    nheads: int = 4
    headdim: int = 12
    dstate: int = 16
    ngroups: int = 2
    dtype: str = "float32"
    state: str = "float32"
    options: tuple[str, ...] = ()

    def has(self, option: str) -> bool:
        return option in self.options

    def __str__(self) -> str:
        base = Case()
        found = [
            f"{field.name}={getattr(self, field.name)}"
            for field in fields(self)
            if field.name != "options" and getattr(self, field.name) != getattr(base, field.name)
        ]
        return "-".join([*found, *self.options]) or "base"


MODEL = ("D", "dt_bias", "dt_softplus")
EVERYTHING = ("D_headdim", "z", "dt_bias", "dt_softplus", "dt_limit", "slots", "step_states")
CASES = [
    Case(),
    Case(options=MODEL),
    Case(options=EVERYTHING),
    Case(tokens=3, options=EVERYTHING),
    Case(tokens=2, options=("slots", "step_states", "read_only")),
    Case(options=("expanded", *MODEL)),
    Case(options=("expanded", "strided", *EVERYTHING)),
    Case(options=("untied", *EVERYTHING)),
    Case(nheads=0, ngroups=0, options=("D", "z", "dt_bias", "dt_softplus")),
    Case(nheads=0, ngroups=0, dstate=6, tokens=2, options=("slots",)),
    Case(batch=1, nheads=1, headdim=1, dstate=1, ngroups=1),
    Case(headdim=5, dstate=100, ngroups=1, options=MODEL),
    Case(headdim=64, dstate=96, options=("slots", *MODEL)),
    Case(state="float16", dtype="float16", options=("z", *MODEL)),
    Case(state="float16", tokens=2, dstate=24, options=("seed", "slots")),
    Case(state="int8", dstate=32, tokens=2, options=EVERYTHING),
    Case(state="int8", dstate=20, options=("seed", *EVERYTHING)),
    Case(state="float8", dstate=48, options=("seed", *MODEL)),
    Case(state="float8", dstate=8, options=EVERYTHING),
]


def draw(case: Case, device: str = "cpu") -> Tensors:
    """Random arguments of the public call by name; the same numbers on every device."""
    generator = torch.Generator().manual_seed(zlib.crc32(str(case).encode()))
    dtype = getattr(torch, case.dtype)
    tokens = (case.tokens,) if case.tokens else ()
    heads = (case.nheads,) if case.nheads else ()
    groups = (case.ngroups,) if case.ngroups else ()
    p, n = case.headdim, case.dstate

    def normal(*sizes: int, wide: bool = False) -> torch.Tensor:
        numbers = torch.randn(sizes, generator=generator, dtype=torch.float64)
        return numbers.to(torch.promote_types(dtype, torch.float32) if wide else dtype).to(device)

    def every_other(tensor: torch.Tensor) -> torch.Tensor:
        """The same numbers with strides that are not what a new tensor has."""
        wide = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1])
        wide[..., : tensor.shape[-1]] = tensor
        return wide[..., : tensor.shape[-1]]

    rows = (case.batch, *tokens)
    each = case.has("untied") or not heads
    args: Tensors = {
        "x": normal(*rows, *heads, p),
        "dt": normal(*rows, *heads, *([p] if each else [])),
        "A": -normal(*heads, *([p, n] if each else []), wide=True).abs() - 0.1,
        "B": normal(*rows, *groups, n),
        "C": normal(*rows, *groups, n),
    }
    if not case.has("dt_softplus"):
        args["dt"] = args["dt"].abs()
    args["dt_softplus"] = case.has("dt_softplus")
    if case.has("D") or case.has("D_headdim"):
        args["D"] = normal(*heads, *([p] if case.has("D_headdim") or not heads else []), wide=True)
    if case.has("dt_bias"):
        args["dt_bias"] = normal(*heads, *([p] if each else []), wide=True)
    if case.has("z"):
        args["z"] = normal(*args["x"].shape)
    if case.has("dt_limit"):
        args["dt_limit"] = LIMITS
    if case.has("expanded"):
        args["dt"] = args["dt"][..., None].expand(*args["x"].shape)
        args["A"] = args["A"][:, None, None].expand(*heads, p, n)
        for name in ("dt_bias", "D"):
            if name in args and args[name].dim() == 1:
                args[name] = args[name][:, None].expand(*heads, p)
    slots = case.batch
    if case.has("slots"):
        slots = 2 * case.batch + 1
        order = torch.randperm(slots, generator=generator)[: case.batch].to(torch.int32)
        if case.batch > 1:
            order[1] = -1
        args["state_batch_indices"] = order.to(device)
    if case.has("strided"):
        args |= {name: every_other(args[name]) for name in ("x", "B", "C", "z") if name in args}
    state = normal(slots, *heads, p, n, wide=True)
    if case.state in ("int8", "float8"):
        largest = 127 if case.state == "int8" else 448
        args["state_scale"] = (state.abs().amax(-1) / largest).float().contiguous()
        state = state / args["state_scale"][..., None]
        state = state.round() if case.state == "int8" else state
    args["state"] = state.to(STATES[case.state])
    if case.has("strided"):
        whole = args["state"].new_zeros(slots, 2 * heads[0], p, n)
        whole[:, ::2] = args["state"]
        args["state"] = whole[:, ::2]
    if case.has("step_states"):
        shape = (case.batch, max(1, case.tokens), *heads, p, n)
        # what is not written must not be read either
        args["step_states"] = torch.zeros(shape, device=device).to(STATES[case.state])
        if "state_scale" in args:
            args["step_scales"] = torch.full(shape[:-1], float("nan"), device=device)
    if case.has("read_only"):
        args["update_state"] = False
    if case.has("seed"):
        args["rng_seed"] = 2**40 + 7
    return args


def wide(stored: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    state = stored.double()
    return state if scale is None else state * scale.double()[..., None]


def exact(args: Tensors) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """y, the states after each token [batch, tokens, nheads, headdim, dstate], and which rows are no padding."""
    state = wide(args["state"], args.get("state_scale"))
    x, dt, A, B, C = (args[name].double() for name in ("x", "dt", "A", "B", "C"))
    D, z, bias = (None if args.get(name) is None else args[name].double() for name in ("D", "z", "dt_bias"))
    heads = state.dim() == 4
    if not heads:
        state, A = state[:, None], A[None]
        D, bias = (None if t is None else t[None] for t in (D, bias))
        x, dt, z = (None if t is None else t.unsqueeze(-2) for t in (x, dt, z))
        B, C = B.unsqueeze(-2), C.unsqueeze(-2)
    if x.dim() == 3:
        x, dt, B, C = (t[:, None] for t in (x, dt, B, C))
        z = None if z is None else z[:, None]
    nheads, p, n = state.shape[1:]
    dt = dt[..., None].expand(x.shape) if dt.dim() == 3 else dt
    A = A[:, None, None].expand(nheads, p, n) if A.dim() == 1 else A
    if bias is not None:
        dt = dt + (bias[:, None] if bias.dim() == 1 else bias)
    if args["dt_softplus"]:
        dt = torch.logaddexp(dt, torch.zeros_like(dt))
    dt = dt.clamp(*args.get("dt_limit", (0.0, float("inf"))))
    B, C = (t.repeat_interleave(nheads // t.shape[2], dim=2) for t in (B, C))
    slots = args.get("state_batch_indices")
    slots = torch.arange(len(state), device=state.device) if slots is None else slots.long()
    there = (slots >= 0) & (slots < len(state))
    current = state[slots.where(there, 0)]
    ys, states = [], []
    for t in range(x.shape[1]):
        kept = (dt[:, t, :, :, None] * A).clamp(max=0).exp()
        current = kept * current + (dt * x)[:, t, :, :, None] * B[:, t, :, None, :]
        y = (current * C[:, t, :, None, :]).sum(-1)
        if D is not None:
            y = y + (D[:, None] if D.dim() == 1 else D) * x[:, t]
        if z is not None:
            y = y * z[:, t] / (1 + (-z[:, t]).exp())
        ys.append(y)
        states.append(current)
    y = torch.stack(ys, 1) * there[:, None, None, None]
    return y.reshape(args["x"].shape), torch.stack(states, 1), there


def check(case: Case, call: Callable[..., torch.Tensor], device: str = "cpu", tensor_cores: bool = False) -> None:
    """Assert that a call gives what `exact` does, and touches nothing else."""
    args = draw(case, device)
    y_exact, states, there = exact(args)
    before = {name: t.clone() for name, t in args.items() if isinstance(t, torch.Tensor)}
    y = call(**args)
    assert y.dtype is args["x"].dtype
    rounding = "exact" if case.dtype in ("float32", "float64") else case.dtype
    tolerances.check("y", y, y_exact.cpu().numpy(), tolerances.LIMITS[rounding])
    written = args["state"], args.get("state_scale"), args.get("step_states"), args.get("step_scales")
    for name, tensor in before.items():
        if name not in ("state", "state_scale", "step_states", "step_scales"):
            assert torch.equal(args[name], tensor), f"{name} was changed"
    found = wide(*written[:2])
    slots = args.get("state_batch_indices", torch.arange(case.batch, device=y.device)).long()
    rest = torch.ones(len(found), dtype=torch.bool, device=y.device)
    if not case.has("read_only"):
        near(case, found[slots[there]], states[there, -1], "the state")
        rest[slots[there]] = False
    assert torch.equal(found[rest], wide(before["state"], before.get("state_scale"))[rest]), "another slot was touched"
    if case.has("step_states"):
        near(case, wide(*written[2:])[there], states[there], "the states of each token")


def near(case: Case, found: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    expected = expected.reshape(found.shape)
    error = float((found - expected).norm() / expected.norm())
    limit = ROUNDED[case.state] * (2 if case.has("seed") else 1)
    assert error <= limit, f"{name}: error {error:.2g}, over {limit:.2g}"


def replayed(
    ops: Any, case: Case, steps: int, count: int, device: str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor, Tensors, Any]:
    """y of `count` steps with a replay, y of the same steps without, the arguments of the last step and the replay.

    The replay keeps what it must in x's dtype, so that both are the same but for rounding.
    """
    args = draw(case, device)
    args = {name: t for name, t in args.items() if name not in ("step_states", "step_scales")}
    plain = {name: t.clone() if name in ("state", "state_scale") else t for name, t in args.items()}
    replay = ops.Replay.allocate(args["state"], steps, case.ngroups, args["x"].dtype)
    generator = torch.Generator(device).manual_seed(1)
    ys, expected = [], []
    for _ in range(count):
        for name in ("x", "B", "C"):
            args[name] = plain[name] = torch.randn(
                args[name].shape, generator=generator, device=device, dtype=args[name].dtype
            )
        ys.append(ops.selective_state_update(**args, replay=replay))
        expected.append(ops.selective_state_update(**plain))
    return torch.stack(ys), torch.stack(expected), {**args, "plain": plain["state"]}, replay
