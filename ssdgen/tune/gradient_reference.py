"""The gradients in float64, chunk by chunk, on the device where the inputs are.  Inputs, adjoints -> gradients -> gate

The states go forward, then each chunk is computed again, from the last one to the first, and PyTorch differentiates it.
It shares no code with the generator: a mistake in the description must not hide here.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .inputs import OF_HEADS, Inputs, steps
from .reference import CHUNK

# bytes of float64: of all states of a slice of heads, and of one [chunk, chunk] matrix of those heads
STATE_BYTES, SCORE_BYTES = 4 << 30, 1 << 28

Tensors = dict[str, Tensor]


def backward(inputs: Inputs, d_y: Tensor, d_final: Tensor | None, heads: list[int]) -> Tensors:
    """{operand: its gradient of sum(d_y * y) + sum(d_final * final states)}, in float64, rounded to fp32.

    d_y: [batch, seqlen, nheads, headdim]; d_final: [batch, nheads, headdim, dstate], or None for zero.  heads: those of
    which d_x is kept, in order, [batch, seqlen, heads, headdim], where every head has an x of its own; the other
    gradients are whole, in the shapes of their operands.
    """
    given, x = inputs.tensors(), inputs.x
    found = {"dt": torch.zeros(inputs.dt.shape, device=x.device)}
    if inputs.each("x") == 1:
        found["x"] = torch.zeros(*x.shape[:2], len(heads), x.shape[3], device=x.device)
    if inputs.A.dim() == 3:
        found["A"] = torch.zeros(inputs.A.shape, device=x.device)
    # what heads share, and the numbers of each head, are sums over heads and chunks
    sums = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in given.items() if name not in found}
    for at in _slices(inputs):
        kept = [(place, head - at.start) for place, head in enumerate(heads) if at.start <= head < at.stop]
        places, own = [place for place, _ in kept], [head for _, head in kept]
        for tokens, parts in _walk(inputs, at, d_y, d_final):
            for name, part in parts.items():
                if name == "x" and name in found:
                    found[name][:, tokens, places] = part[:, :, own].float()
                elif name in found:
                    found[name][:, tokens, at] = part.float()
                elif name in OF_HEADS:
                    sums[name][at] += part
                else:
                    sums[name][:, tokens, _entries(inputs, name, at)] += part
    return found | {name: total.float() for name, total in sums.items()}


def _entries(inputs: Inputs, operand: str, heads: slice) -> slice:
    """The entries of x, B or C that some heads use: their own, or the one that they share."""
    each = inputs.each(operand)
    return slice(heads.start // each, (heads.stop - 1) // each + 1)


def _slices(inputs: Inputs) -> Iterator[slice]:
    """As many heads of one group as fit beside the problem."""
    (batch, seqlen), headdim, dstate = inputs.x.shape[:2], inputs.x.shape[3], inputs.B.shape[3]
    states = 8 * batch * -(-seqlen // CHUNK) * headdim * dstate
    most = max(1, min(STATE_BYTES // states, SCORE_BYTES // (8 * batch * CHUNK * CHUNK)))
    # of heads that share an operand
    each = max(inputs.each(name) for name in ("x", "B", "C"))
    for first in range(0, inputs.nheads, each):
        for start in range(0, each, most):
            yield slice(first + start, first + min(start + most, each))


def _walk(inputs: Inputs, heads: slice, d_y: Tensor, d_final: Tensor | None) -> Iterator[tuple[slice, Tensors]]:
    """The parts of the gradients that each chunk makes, from the last one on: (its tokens, {operand: part})."""
    (batch, seqlen), headdim, dstate = inputs.x.shape[:2], inputs.x.shape[3], inputs.B.shape[3]
    count, given = heads.stop - heads.start, inputs.tensors()
    chunks = [slice(start, min(start + CHUNK, seqlen)) for start in range(0, seqlen, CHUNK)]
    places = {name: heads if name in OF_HEADS else _entries(inputs, name, heads) for name in given}

    def operands(tokens: slice) -> Tensors:
        return {
            name: (value[places[name]] if value.dim() == 1 else value[:, tokens, places[name]]).double()
            for name, value in given.items()
        }

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
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(y, the state that leaves) of heads of one group, all float64; the equation is that of `reference.forward`.

    state: [batch, heads, headdim, dstate]; x, B, C: [batch, chunk, heads or 1, headdim or dstate]; dt, A, D, dt_bias:
    as in `Inputs`.  y: [batch, chunk, heads, headdim].
    """
    x, B, C = (operand.transpose(1, 2) for operand in (x, B, C))  # [b, h or 1, i, p or n]
    step, decays = (t.transpose(1, 2) for t in steps(dt, A, dt_bias))  # [b, h, i]
    s = decays.cumsum(-1)
    below = torch.ones(s.shape[-1], s.shape[-1], dtype=torch.bool, device=s.device).tril()
    # masked before exp: above the diagonal it would overflow
    decay = (s[..., :, None] - s[..., None, :]).masked_fill(~below, float("-inf")).exp()  # [b, h, i, j]
    weights = (C @ B.mT) * decay * step[..., None, :]
    y = weights @ x + s.exp()[..., None] * (C @ state.mT) + D[:, None, None] * x
    last = s[..., -1:]
    gathered = (x * ((last - s).exp() * step)[..., None]).mT @ B  # [b, h, p, n]
    return y.transpose(1, 2), last.exp()[..., None] * state + gathered
