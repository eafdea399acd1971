"""The layer in float64 on the GPU, chunk by chunk, and errors against it.  workload -> reference -> forward

It shares no code with the generator: a mistake in the description must not hide here.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

CHUNK = 64


def walk(args: dict[str, torch.Tensor], dt_softplus: bool = True) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield (positions, y) for each chunk in order; y is [batch, chunk, nheads, headdim] in float64.

    args: x, dt, A, B, C, D, dt_bias as workload.inputs makes them.  Only one chunk is in memory at a time.
    """
    x, B = args["x"], args["B"]
    batch, seqlen, nheads, headdim = x.shape
    ngroups, dstate = B.shape[2:]
    A, D, dt_bias = (args[name].double() for name in ("A", "D", "dt_bias"))
    heads_per_group = nheads // ngroups
    state = torch.zeros(batch, ngroups, heads_per_group, headdim, dstate, dtype=torch.float64, device=x.device)
    for start in range(0, seqlen, CHUNK):
        at = slice(start, min(start + CHUNK, seqlen))
        xc, dtc, Bc, Cc = (args[name][:, at].double() for name in ("x", "dt", "B", "C"))
        dtc = dtc + dt_bias
        if dt_softplus:
            dtc = torch.nn.functional.softplus(dtc)
        s = (dtc * A).cumsum(1)  # [batch, chunk, nheads]
        # exp of the masked difference: the upper triangle would overflow
        gap = (s[:, :, None] - s[:, None]).masked_fill(_above_diagonal(s)[None, :, :, None], float("-inf"))
        weights = (gap.exp() * dtc[:, None]).unflatten(-1, (ngroups, heads_per_group))  # [batch, i, j, g, k]
        scores = torch.einsum("bign,bjgn->bijg", Cc, Bc)
        xg = xc.unflatten(2, (ngroups, heads_per_group))  # [batch, chunk, g, k, headdim]
        y = torch.einsum("bijg,bijgk,bjgkp->bigkp", scores, weights, xg)
        decay = s.exp().unflatten(-1, (ngroups, heads_per_group))  # [batch, i, g, k]
        y += torch.einsum("bign,bgkpn,bigk->bigkp", Cc, state, decay)
        yield at, y.flatten(2, 3) + D[:, None] * xc
        to_end = ((s[:, -1:] - s).exp() * dtc).unflatten(-1, (ngroups, heads_per_group))
        state = decay[:, -1, :, :, None, None] * state + torch.einsum("bjgkp,bjgk,bjgn->bgkpn", xg, to_end, Bc)


def _above_diagonal(s: torch.Tensor) -> torch.Tensor:
    rows = torch.arange(s.shape[1], device=s.device)
    return rows[None] > rows[:, None]


def errors(args: dict[str, torch.Tensor], outputs: dict[str, torch.Tensor]) -> dict[str, dict[str, float]]:
    """{name: {"relative": |out - ref| / |ref| over all elements, "largest": worst element over the ref's RMS}}.

    A value that is not finite makes both infinite.
    """

    def zeros() -> dict[str, torch.Tensor]:
        return {name: torch.zeros((), dtype=torch.float64, device=args["x"].device) for name in outputs}

    squared, largest, reference = zeros(), zeros(), 0.0
    for at, y in walk(args):
        reference = reference + y.square().sum()
        for name, out in outputs.items():
            gap = (out[:, at].double() - y).nan_to_num(float("inf"), float("inf"), float("inf"))
            squared[name] += gap.square().sum()
            largest[name] = torch.maximum(gap.abs().amax(), largest[name])
    norm = float(reference) ** 0.5
    rms = norm / args["x"].numel() ** 0.5
    return {
        name: {"relative": float(squared[name]) ** 0.5 / norm, "largest": float(largest[name]) / rms}
        for name in outputs
    }
