"""The end of a sequence in float64, for lengths at which all of it would take too long.  gradient_reference -> growth

y of the last tokens needs the state that enters them, which all earlier tokens make; the gradients of their x, dt, B
and C need nothing later.  So both are exact there.  Gradients of A, D and dt_bias are sums over all tokens: training.py
checks them.
"""

from __future__ import annotations

import torch

from benchmarks import gradient_reference

Tensors = dict[str, torch.Tensor]
CHECKED = ("y", "x", "dt", "B", "C")
TOKENS = 1024
# tokens of a step towards the state: fewer launches for a long sequence, and still small beside it
STRIDE = 1024
# bytes of float64 that a slice of heads may take
SLICE_BYTES = 2 << 30


def entering(args: Tensors, end: int, heads: slice, group: int) -> torch.Tensor:
    """The state before position `end`, [batch, heads, headdim, dstate], float64."""
    x, B = args["x"], args["B"]
    A, bias = args["A"][heads].double(), args["dt_bias"][heads].double()
    state = torch.zeros(x.shape[0], len(A), x.shape[3], B.shape[3], dtype=torch.float64, device=x.device)
    for start in range(0, end, STRIDE):
        at = slice(start, min(start + STRIDE, end))
        dt = torch.nn.functional.softplus(args["dt"][:, at, heads].double() + bias)
        s = (dt * A).cumsum(1)
        weighted = x[:, at, heads].double() * (dt * (s[:, -1:] - s).exp())[..., None]
        arrived = torch.einsum("bjhp,bjn->bhpn", weighted, B[:, at, group].double())
        state = s[:, -1].exp()[..., None, None] * state + arrived
    return state


def exact(args: Tensors, d_y: torch.Tensor | None, tokens: int = TOKENS) -> Tensors:
    """y of the last tokens and, with d_y, the gradients there, by the names of CHECKED."""
    x, B = args["x"], args["B"]
    batch, seqlen, nheads, headdim = x.shape
    ngroups, dstate = B.shape[2:]
    tokens = min(tokens, seqlen)
    last = slice(seqlen - tokens, seqlen)
    made = {name: torch.zeros(args[name][:, last].shape, dtype=torch.float64, device=x.device) for name in CHECKED[1:]}
    made["y"] = torch.zeros_like(made["x"])
    chunks = -(-tokens // gradient_reference.CHUNK)
    fitting = SLICE_BYTES // (
        8 * batch * (chunks * headdim * dstate + tokens * (4 * gradient_reference.CHUNK + headdim))
    )
    for heads, group in gradient_reference.slices(nheads, ngroups, max(1, fitting)):
        index = {name: (slice(None), last, heads) for name in ("x", "dt")}
        index |= {name: (slice(None), last, group) for name in ("B", "C")}
        fixed = {name: args[name][heads].double() for name in ("A", "D", "dt_bias")}
        leaves = {
            name: args[name][place].detach().double().requires_grad_(d_y is not None) for name, place in index.items()
        }
        state, parts = entering(args, last.start, heads, group), []
        with torch.set_grad_enabled(d_y is not None):
            for start in range(0, tokens, gradient_reference.CHUNK):
                at = slice(start, start + gradient_reference.CHUNK)
                given = {name: leaf[:, at] for name, leaf in leaves.items()}
                y, state = gradient_reference.chunk(state, **given, **fixed)
                parts.append(y)
            y = torch.cat(parts, dim=1)
        made["y"][:, :, heads] = y.detach()
        if d_y is None:
            continue
        found = torch.autograd.grad(y, list(leaves.values()), d_y[:, last, heads].double())
        for name, gradient in zip(leaves, found, strict=True):
            made[name][:, :, index[name][2]] += gradient
    return made if d_y is not None else {"y": made["y"]}


def errors(found: Tensors, args: Tensors, d_y: torch.Tensor | None, tokens: int = TOKENS) -> dict[str, float]:
    """{name: |found - exact| / |exact|} over the last tokens; not finite: infinite.

    found: y and, with d_y, gradients by operand, each over the whole sequence.
    """
    reference = exact(args, d_y, tokens)
    made = {}
    for name, right in reference.items():
        gap = found[name][:, -right.shape[1] :].double() - right
        relative = float(gap.norm() / right.norm())
        made[name] = relative if relative == relative else float("inf")
    return made


def attention_errors(
    inputs: Tensors, found: Tensors, d_y: torch.Tensor | None, rows: int = 32, heads: int = 2
) -> dict[str, float]:
    """The same of causal attention: y and, with d_y, the gradient of the queries, in the last rows of a few heads.

    inputs: q, k, v, [batch, heads, seqlen, headdim].  found: y, and "q" for the gradient.
    """
    totals: dict[str, list[float]] = {}
    seqlen = inputs["q"].shape[2]
    rows = min(rows, seqlen)
    allowed = torch.ones(rows, seqlen, dtype=torch.bool, device=inputs["q"].device).tril(seqlen - rows)
    for head in range(min(heads, inputs["q"].shape[1])):
        q, k, v = (inputs[name][:, head].detach().double() for name in "qkv")
        q = q[:, -rows:].detach().requires_grad_(d_y is not None)
        with torch.set_grad_enabled(d_y is not None):
            scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~allowed, float("-inf"))
            right = {"y": scores.softmax(-1) @ v}
        if d_y is not None:
            (right["q"],) = torch.autograd.grad(right["y"], (q,), d_y[:, head, -rows:].double())
        for name, exactly in right.items():
            exactly = exactly.detach()
            gap = found[name][:, head, -rows:].double() - exactly
            sums = totals.setdefault(name, [0.0, 0.0])
            sums[0] += float(gap.square().sum())
            sums[1] += float(exactly.square().sum())
    made = {name: (gap / size) ** 0.5 for name, (gap, size) in totals.items()}
    return {name: value if value == value else float("inf") for name, value in made.items()}
