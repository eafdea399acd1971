"""The gradients in float64, chunk by chunk, on the device where the inputs are.  Inputs, adjoints -> gradients -> gate

The states go forward, then each chunk is computed again, from the last one to the first, and PyTorch differentiates it.
It shares no code with the generator: a mistake in the description must not hide here.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .inputs import Inputs
from .reference import CHUNK

OPERANDS = ("x", "dt", "A", "B", "C", "D", "dt_bias")

# bytes of float64: of all states of a slice of heads, and of one [chunk, chunk] matrix of those heads
STATE_BYTES, SCORE_BYTES = 4 << 30, 1 << 28

Tensors = dict[str, Tensor]


def backward(inputs: Inputs, d_y: Tensor, d_final: Tensor | None, heads: list[int]) -> Tensors:
    """{operand: its gradient of sum(d_y * y) + sum(d_final * final states)}, in float64, rounded to fp32.

    d_y: as x; d_final: [batch, nheads, headdim, dstate], or None for zero.  heads: those of which d_x is kept, in
    order, [batch, seqlen, heads, headdim]; the other gradients are whole, in the shapes of their operands.
    """
    given = {name: getattr(inputs, name) for name in OPERANDS}
    x, dt = inputs.x, inputs.dt
    found = {"x": torch.zeros(*x.shape[:2], len(heads), x.shape[3], device=x.device)}
    found["dt"] = torch.zeros(dt.shape, device=x.device)
    # what heads share, and the numbers of each head, are sums over heads and chunks
    sums = {name: torch.zeros_like(given[name], dtype=torch.float64) for name in OPERANDS if name not in found}
    for at, group in _slices(inputs):
        kept = [(place, head - at.start) for place, head in enumerate(heads) if at.start <= head < at.stop]
        places, own = [place for place, _ in kept], [head for _, head in kept]
        for tokens, parts in _walk(given, at, group, d_y, d_final):
            if kept:
                found["x"][:, tokens, places] = parts["x"][:, :, own].float()
            found["dt"][:, tokens, at] = parts["dt"].float()
            for name in ("A", "D", "dt_bias"):
                sums[name][at] += parts[name]
            for name in ("B", "C"):
                sums[name][:, tokens, group] += parts[name]
    return found | {name: total.float() for name, total in sums.items()}


def _slices(inputs: Inputs) -> Iterator[tuple[slice, int]]:
    """(heads, their group): as many heads of one group as fit beside the problem."""
    batch, seqlen, nheads, headdim = inputs.x.shape
    ngroups, dstate = inputs.B.shape[2:]
    states = 8 * batch * -(-seqlen // CHUNK) * headdim * dstate
    most = max(1, min(STATE_BYTES // states, SCORE_BYTES // (8 * batch * CHUNK * CHUNK)))
    each = nheads // ngroups
    for group in range(ngroups):
        for start in range(0, each, most):
            yield slice(group * each + start, group * each + min(start + most, each)), group


def _walk(
    given: Tensors, heads: slice, group: int, d_y: Tensor, d_final: Tensor | None
) -> Iterator[tuple[slice, Tensors]]:
    """The parts of the gradients that each chunk makes, from the last one on: (its tokens, {operand: part})."""
    batch, seqlen, _, headdim = given["x"].shape
    count, dstate = heads.stop - heads.start, given["B"].shape[3]
    chunks = [slice(start, min(start + CHUNK, seqlen)) for start in range(0, seqlen, CHUNK)]
    fixed = {name: given[name][heads].double() for name in ("A", "D", "dt_bias")}

    def operands(tokens: slice) -> Tensors:
        own = {name: given[name][:, tokens, heads].double() for name in ("x", "dt")}
        return own | {name: given[name][:, tokens, group].double() for name in ("B", "C")} | fixed

    state = torch.zeros(batch, count, headdim, dstate, dtype=torch.float64, device=d_y.device)
    entering = []
    with torch.no_grad():
        for tokens in chunks:
            entering.append(state)
            state = _chunk(state, **operands(tokens))[1]
    d_state = torch.zeros_like(state) if d_final is None else d_final[:, heads].double()
    for tokens in reversed(chunks):
        leaves = {name: value.detach().requires_grad_() for name, value in operands(tokens).items()}
        first = entering.pop().requires_grad_()
        with torch.enable_grad():
            y, state = _chunk(first, **leaves)
            d_state, *parts = torch.autograd.grad(
                (y, state), (first, *leaves.values()), (d_y[:, tokens, heads].double(), d_state)
            )
        yield tokens, dict(zip(leaves, parts, strict=True))


def _chunk(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor
) -> tuple[Tensor, Tensor]:
    """(y, the state that leaves) of heads of one group, all float64; the equation is that of `reference.forward`.

    state: [batch, heads, headdim, dstate]; x, y: [batch, chunk, heads, headdim]; dt: [batch, chunk, heads], before bias
    and softplus; B, C: [batch, chunk, dstate]; A, D, dt_bias: [heads].
    """
    x = x.transpose(1, 2)  # [b, h, i, p]
    step = F.softplus(dt + dt_bias).transpose(1, 2)  # [b, h, i]
    B, C = B[:, None], C[:, None]  # [b, 1, i, n]
    s = (step * A[:, None]).cumsum(-1)
    below = torch.ones(s.shape[-1], s.shape[-1], dtype=torch.bool, device=s.device).tril()
    # masked before exp: above the diagonal it would overflow
    decay = (s[..., :, None] - s[..., None, :]).masked_fill(~below, float("-inf")).exp()  # [b, h, i, j]
    weights = (C @ B.mT) * decay * step[..., None, :]
    y = weights @ x + s.exp()[..., None] * (C @ state.mT) + D[:, None, None] * x
    last = s[..., -1:]
    gathered = (x * ((last - s).exp() * step)[..., None]).mT @ B  # [b, h, p, n]
    return y.transpose(1, 2), last.exp()[..., None] * state + gathered
