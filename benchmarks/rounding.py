"""What each rounding of the forward pass adds to its error, on the CPU: no kernel runs.  workload -> rounding

The layer in float64, chunk by chunk, with one value at a time rounded to bf16 where kernels round it: the scores before
their product, the state before C reads it, the weighted input (or B) before it reaches the state, and y. So a schedule
can be judged by its error before anyone writes it.

    .venv/bin/python benchmarks/rounding.py --dstate 64
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.workload import Shape, inputs

Tensors = dict[str, torch.Tensor]
CHUNKS = (64, 128, 256)


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    """To bf16 and back."""
    return tensor.to(torch.bfloat16).to(tensor.dtype)


def in_two_terms(tensor: torch.Tensor) -> torch.Tensor:
    return rounded(tensor) + rounded(tensor - rounded(tensor))


def apart(scores: torch.Tensor) -> torch.Tensor:
    """All but the diagonal, which needs no product: a token's own input times one number."""
    own = torch.eye(scores.shape[0], dtype=torch.bool)[..., None]
    return torch.where(own, scores, rounded(scores))


def exactly(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


Rounding = Callable[[torch.Tensor], torch.Tensor]
EXACT: dict[str, Rounding] = dict.fromkeys(("scores", "state", "x_weighted", "y"), exactly)
ROUNDED: dict[str, Rounding] = dict.fromkeys(EXACT, rounded)
# what is rounded, by the name that the table has for it
WAYS: dict[str, dict[str, Rounding]] = {
    "all": ROUNDED,
    "scores in two terms": {**ROUNDED, "scores": in_two_terms},
    "diagonal apart": {**ROUNDED, "scores": apart},
    **{f"{name} alone": {**EXACT, name: rounded} for name in EXACT},
}


def layer(args: Tensors, chunk: int, how: dict[str, Rounding]) -> torch.Tensor:
    """y of the first row, [seqlen, nheads, headdim], float64.  how: what becomes of each value of EXACT."""
    x, B, C = args["x"][0].double(), args["B"][0, :, 0].double(), args["C"][0, :, 0].double()
    dt = torch.nn.functional.softplus(args["dt"][0].double() + args["dt_bias"].double())
    A, D = args["A"].double(), args["D"].double()
    state = torch.zeros(x.shape[1], x.shape[2], B.shape[1], dtype=torch.float64)
    parts = []
    for start in range(0, len(x), chunk):
        at = slice(start, start + chunk)
        s = (dt[at] * A).cumsum(0)
        later = torch.ones(len(s), len(s), dtype=torch.bool).triu(1)[..., None]
        decay = (s[:, None] - s[None]).masked_fill(later, -torch.inf).exp()
        scores = how["scores"]((C[at] @ B[at].T)[..., None] * decay * dt[at])
        y = torch.einsum("ijh,jhp->ihp", scores, x[at]) + D[:, None] * x[at]
        y += torch.einsum("in,hpn->ihp", C[at], how["state"](state)) * s.exp()[..., None]
        parts.append(how["y"](y))
        weighted = how["x_weighted"](x[at] * ((s[-1:] - s).exp() * dt[at])[..., None])
        state = s[-1].exp()[:, None, None] * state + torch.einsum("jhp,jn->hpn", weighted, B[at])
    return torch.cat(parts)


def shares(args: Tensors, chunk: int) -> dict[str, float]:
    """|y - exact| / |exact| for each of WAYS."""
    exact = layer(args, chunk, EXACT)
    return {name: float((layer(args, chunk, how) - exact).norm() / exact.norm()) for name, how in WAYS.items()}


@click.command(help=__doc__)
@click.option("--seqlen", default=1024, show_default=True)
@click.option("--nheads", default=40, show_default=True, help="Each draws a decay and a step size of its own.")
@click.option("--headdim", default=64, show_default=True)
@click.option("--dstate", default=128, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(seqlen: int, nheads: int, headdim: int, dstate: int, seed: int) -> None:
    args = inputs(Shape("", 1, seqlen, nheads, headdim, dstate, 1), "cpu", seed)
    found = [shares(args, chunk) for chunk in CHUNKS]
    click.echo(f"thousandths of |y|; chunk{'':16}" + "".join(f"{chunk:>8}" for chunk in CHUNKS))
    for name in WAYS:
        click.echo(f"{name:<37}" + "".join(f"{1e3 * row[name]:8.3f}" for row in found))


if __name__ == "__main__":
    main()
