"""Gradients of the layer in float64 on the GPU, and errors against them.  workload -> gradient_reference -> training

Chunk by chunk: the states go forward, then each chunk is computed again, from the last one to the first, and PyTorch
differentiates it.  Heads are taken a slice at a time, so that float64 fits beside the problem.  It shares no code with
the generator: a mistake in the description must not hide here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

CHUNK = 64
# of the device memory that is free: what the states between chunks of one slice of heads may take
STATE_SHARE = 1 / 8

Tensors = dict[str, torch.Tensor]
OPERANDS = ("x", "dt", "A", "B", "C", "D", "dt_bias")


def chunk(state: torch.Tensor, x, dt, A, B, C, D, dt_bias) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, the state that leaves), for heads of one group; all float64.

    state: [batch, heads, headdim, dstate]; x: [batch, chunk, heads, headdim]; dt: [batch, chunk, heads], before bias
    and softplus; B, C: [batch, chunk, dstate]; A, D, dt_bias: [heads].
    """
    dt = torch.nn.functional.softplus(dt + dt_bias)
    s = (dt * A).cumsum(1)  # [batch, i, heads]
    rows = torch.arange(s.shape[1], device=s.device)
    above = (rows[None] > rows[:, None])[None, :, :, None]
    # exp of the masked difference: the upper triangle would overflow
    decay = (s[:, :, None] - s[:, None]).masked_fill(above, float("-inf")).exp()  # [batch, i, j, heads]
    scores = torch.einsum("bin,bjn->bij", C, B)
    x_dt = x * dt[..., None]
    y = torch.einsum("bij,bijh,bjhp->bihp", scores, decay, x_dt) + D[:, None] * x
    y = y + torch.einsum("bin,bhpn,bih->bihp", C, state, s.exp())
    to_end = (s[:, -1:] - s).exp()
    state = s[:, -1].exp()[..., None, None] * state + torch.einsum("bjhp,bjh,bjn->bhpn", x_dt, to_end, B)
    return y, state


def walk(args: Tensors, d_y: torch.Tensor, emit: Callable[[str, tuple, torch.Tensor], None]) -> None:
    """Hand out the gradients of sum(d_y * y) as they are made: emit(operand, its index, part of the gradient).

    args: x, dt, A, B, C, D, dt_bias as workload.inputs makes them; d_y: as x.  The parts of x and dt come once each.
    Those of the others are terms of sums, over slices of heads and over chunks.
    """
    batch, seqlen, nheads, headdim = args["x"].shape
    ngroups, dstate = args["B"].shape[2:]
    chunks = [slice(start, min(start + CHUNK, seqlen)) for start in range(0, seqlen, CHUNK)]
    fitting = int(STATE_SHARE * _free(args["x"].device)) // (8 * len(chunks) * batch * headdim * dstate)
    for heads, group in slices(nheads, ngroups, max(1, fitting)):
        places = {"A": (heads,), "D": (heads,), "dt_bias": (heads,)}
        fixed = {name: args[name][heads].double() for name in places}

        def inputs(at: slice, heads=heads, group=group, fixed=fixed) -> tuple[Tensors, dict[str, tuple]]:
            index = {name: (slice(None), at, heads) for name in ("x", "dt")}
            index |= {name: (slice(None), at, group) for name in ("B", "C")}
            return {name: args[name][place].double() for name, place in index.items()} | fixed, index

        state = torch.zeros(
            batch, heads.stop - heads.start, headdim, dstate, dtype=torch.float64, device=args["x"].device
        )
        entering = []
        with torch.no_grad():
            for at in chunks:
                entering.append(state)
                state = chunk(state, **inputs(at)[0])[1]
        d_state = torch.zeros_like(state)
        for at in reversed(chunks):
            given, index = inputs(at)
            leaves = {name: value.detach().requires_grad_() for name, value in given.items()}
            first = entering.pop().requires_grad_()
            with torch.enable_grad():
                y, state = chunk(first, **leaves)
                found = torch.autograd.grad(
                    (y, state), (first, *leaves.values()), (d_y[:, at, heads].double(), d_state)
                )
            d_state = found[0]
            for name, gradient in zip(leaves, found[1:], strict=True):
                emit(name, {**index, **places}[name], gradient)


def _free(device: torch.device) -> int:
    """Bytes that are free on the device; of a CPU, as many as a small one has."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 8 << 30


def slices(nheads: int, ngroups: int, most: int) -> list[tuple[slice, int]]:
    """(heads, their group), at most so many heads at a time and never heads of two groups."""
    each = nheads // ngroups
    return [
        (slice(group * each + start, group * each + min(start + most, each)), group)
        for group in range(ngroups)
        for start in range(0, each, most)
    ]


def errors(args: Tensors, d_y: torch.Tensor, candidates: dict[str, Tensors]) -> dict[str, dict[str, dict[str, float]]]:
    """{candidate: {operand: {"relative": |found - ref| / |ref|, "largest": worst element over the ref's RMS}}}.

    candidates: gradients by operand, in the operand's shape.  A value that is not finite makes both infinite.
    """
    sums = {name: torch.zeros(args[name].shape, dtype=torch.float64, device=args[name].device) for name in ("B", "C")}
    sums |= {name: torch.zeros_like(args[name], dtype=torch.float64) for name in ("A", "D", "dt_bias")}
    tallies = {name: {operand: _Tally(args[operand]) for operand in OPERANDS} for name in candidates}

    def emit(operand: str, place: tuple, part: torch.Tensor) -> None:
        if operand in sums:
            sums[operand][place] += part
            return
        for name, found in candidates.items():
            tallies[name][operand].add(found[operand][place], part)

    walk(args, d_y, emit)
    for operand, exact in sums.items():
        for name, found in candidates.items():
            tallies[name][operand].add(found[operand], exact)
    return {name: {operand: tally.result() for operand, tally in of.items()} for name, of in tallies.items()}


class _Tally:
    """Sums over the parts of one gradient, on the device until they are asked for."""

    def __init__(self, operand: torch.Tensor) -> None:
        self._squared, self._exact, self._largest = torch.zeros(3, dtype=torch.float64, device=operand.device).unbind()
        self._elements = operand.numel()

    def add(self, found: torch.Tensor, exact: torch.Tensor) -> None:
        gap = (found.double() - exact).nan_to_num(float("inf"), float("inf"), float("inf"))
        self._squared = self._squared + gap.square().sum()
        self._exact = self._exact + exact.square().sum()
        self._largest = torch.maximum(self._largest, gap.abs().amax())

    def result(self) -> dict[str, float]:
        norm = float(self._exact) ** 0.5
        rms = norm / self._elements**0.5
        return {"relative": float(self._squared) ** 0.5 / norm, "largest": float(self._largest) / rms}
