"""Who is timed against length and state size, each optional but ours.  workload, selective_scan -> rivals -> growth

All compute the layer that workload.inputs describes, from the same tensors, except attention, which has queries, keys
and values of the same width.  What a library wants otherwise than it is given (expanded, transposed, multiplied by dt)
is prepared outside of what is timed, which leans towards it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from benchmarks import peer, selective_scan
from benchmarks.workload import Shape
from ssdgen.mamba2_ops import mamba_chunk_scan_combined

Tensors = dict[str, Tensor]

OURS = "ssdgen"
FLASH, CUDNN = "attention, flash", "attention, cuDNN"
GLA, SCAN = "FLA simple_gla", "Mamba-1 scan"
# the state size that Mamba-1 models have
SCAN_STATE = 16
# of attention, channels: as models of this width have them
ATTENTION_HEADDIM = 128


@dataclass(frozen=True)
class Candidate:
    """One way to compute the layer.

    prepare: arguments as workload.inputs makes them -> what is handed to `run`, differentiable, not timed.
    run: -> y in its layout, timed.  finish: (arguments, that y) -> y as [batch, seqlen, nheads, headdim]; not timed.
    quadratic: whether its time grows with the square of the length.  dstate: its own state size; None: the shape's.
    """

    name: str
    prepare: Callable[[Tensors], Tensors]
    run: Callable[[Tensors], Tensor]
    finish: Callable[[Tensors, Tensor], Tensor]
    quadratic: bool = False
    dstate: int | None = None


def as_it_is(args: Tensors) -> Tensors:
    return args


def y_itself(args: Tensors, y: Tensor) -> Tensor:
    return y


def ssd(scan: Callable[..., Tensor], chunk: int, args: Tensors) -> Tensor:
    """A call with the signature of mamba_chunk_scan_combined."""
    x, dt, A, B, C = (args[name] for name in ("x", "dt", "A", "B", "C"))
    return scan(x, dt, A, B, C, chunk, D=args["D"], dt_bias=args["dt_bias"], dt_softplus=True)


def ours() -> Candidate:
    return Candidate(OURS, as_it_is, partial(ssd, mamba_chunk_scan_combined, 256), y_itself)


def mamba_ssm(scan: Callable[..., Tensor], chunk: int) -> Candidate:
    return Candidate(f"mamba_ssm Q={chunk}", as_it_is, partial(ssd, scan, chunk), y_itself)


def step_sizes(args: Tensors) -> Tensor:
    """[batch, seqlen, nheads], fp32."""
    return F.softplus(args["dt"].float() + args["dt_bias"])


def simple_gla(call: Callable[..., Any]) -> Candidate:
    """Its heads each have keys and queries of their own: B and C are expanded.  It has no D and no step size."""

    def prepare(args: Tensors) -> Tensors:
        dt, heads = step_sizes(args), args["x"].shape[2]
        each = heads // args["B"].shape[2]
        return {
            "q": args["C"].repeat_interleave(each, dim=2),
            "k": args["B"].repeat_interleave(each, dim=2),
            "v": (args["x"] * dt[..., None]).to(args["x"].dtype),
            "g": dt * args["A"],
        }

    def run(made: Tensors) -> Tensor:
        return call(made["q"], made["k"], made["v"], made["g"], scale=1.0)[0]

    def finish(args: Tensors, y: Tensor) -> Tensor:
        return y + args["D"][:, None] * args["x"]

    return Candidate(GLA, prepare, run, finish)


def mamba1(cuda: Any, dstate: int | None) -> Candidate:
    """Every channel is a head of its own to it, with a step size and a decay for each state."""

    def prepare(args: Tensors) -> Tensors:
        x = args["x"]
        headdim, dstate = x.shape[3], args["B"].shape[3]

        def channels(each: Tensor) -> Tensor:
            return each.repeat_interleave(headdim, dim=-1)

        return {
            "u": x.flatten(2).mT.contiguous(),
            "delta": channels(args["dt"]).mT.contiguous(),
            "A": channels(args["A"])[:, None].repeat(1, dstate),
            "B": args["B"].permute(0, 2, 3, 1).contiguous(),
            "C": args["C"].permute(0, 2, 3, 1).contiguous(),
            "D": channels(args["D"]),
            "delta_bias": channels(args["dt_bias"]),
        }

    def run(made: Tensors) -> Tensor:
        return selective_scan.scan(cuda, **made)

    def finish(args: Tensors, y: Tensor) -> Tensor:
        return y.mT.unflatten(2, args["x"].shape[2:])

    return Candidate(SCAN if dstate is None else f"{SCAN} N={dstate}", prepare, run, finish, dstate=dstate)


def attention(name: str, backend: Any) -> Candidate:
    """Causal, as many channels as the layer's, in heads of ATTENTION_HEADDIM; q, k and v are x in three orders."""

    def prepare(args: Tensors) -> Tensors:
        x = args["x"].flatten(2)
        heads = max(1, x.shape[2] // ATTENTION_HEADDIM)
        parts = (x, x.roll(1, dims=2), x.roll(3, dims=2))
        made = (part.unflatten(2, (heads, -1)).transpose(1, 2).contiguous() for part in parts)
        return dict(zip("qkv", made, strict=True))

    def run(made: Tensors) -> Tensor:
        from torch.nn.attention import sdpa_kernel

        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(made["q"], made["k"], made["v"], is_causal=True)

    return Candidate(name, prepare, run, y_itself, quadratic=True)


def load(peers: bool, chunks: tuple[int, ...]) -> tuple[list[Candidate], dict[str, str]]:
    """(who is here, ours first; {name: what was found or why it is not here}).  Mamba-1's scan is there twice."""
    found, about = [ours()], {}
    if not peers:
        return found, about
    scan, about["mamba_ssm"] = peer.load_public()
    if scan is not None:
        found += [mamba_ssm(scan, chunk) for chunk in chunks]
    try:
        from fla.ops.simple_gla import chunk_simple_gla
    except ImportError as error:
        about[GLA] = f"not here: {error}"
    else:
        about[GLA] = "fla-core"
        found.append(simple_gla(chunk_simple_gla))
    from torch.nn.attention import SDPBackend

    found.append(attention(FLASH, SDPBackend.FLASH_ATTENTION))
    found.append(attention(CUDNN, SDPBackend.CUDNN_ATTENTION))
    cuda, about[SCAN] = selective_scan.load()
    if cuda is not None:
        found += [mamba1(cuda, SCAN_STATE), mamba1(cuda, None)]
    else:
        about[SCAN] = f"not here: {about[SCAN]}"
    return found, about


def shape_for(candidate: Candidate, shape: Shape) -> Shape:
    """The shape with the candidate's own state size."""
    return shape if candidate.dstate is None else replace(shape, dstate=candidate.dstate)
