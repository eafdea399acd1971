"""The gated norm of a row of channels, as a graph.  kind -> graph -> gradient, evaluate, plan.norm

A row is the channels of one group of one token; the mean is over them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sympy

from .dims import entry
from .functions import rsqrt, silu
from .gradient import adjoint
from .graph import Graph, Input, Map, Node, Sum


@dataclass(frozen=True)
class Norm:
    """rms: the mean stays in.  gate_first: the gate is in what is normalised, or else in the result."""

    rms: bool = True
    gate_first: bool = False


KINDS = tuple(Norm(rms, gate_first) for rms in (True, False) for gate_first in (False, True))


@lru_cache(maxsize=8)
def norm_graph(norm: Norm) -> Graph:
    """y[t, d] of a row t.  Options: HAS_Z, HAS_BIAS."""
    x, z = entry("x", "t", "d"), entry("z", "t", "d")
    size, eps = sympy.symbols("size eps", real=True, positive=True)
    nodes: list[Node] = [
        Input("x", ("t", "d"), "input"),
        Input("z", ("t", "d"), "gate"),
        Input("weight", ("d",), "weight of a channel"),
        Input("bias", ("d",), "added to a channel"),
        Input("size", (), "channels of a row"),
        Input("eps", (), "added to the mean of the squares"),
    ]

    def add(name: str, formula: Any, option: str | None = None, otherwise: Any = None) -> sympy.Indexed:
        nodes.append(Map(name, ("t", "d"), formula, option, otherwise))
        return entry(name, "t", "d")

    def mean(name: str, of: sympy.Indexed) -> sympy.Indexed:
        nodes.append(Sum(f"{name}_sum", ("t",), of, ("d",)))
        nodes.append(Map(name, ("t",), entry(f"{name}_sum", "t") / size))
        return entry(name, "t")

    value = add("gated", x * silu(z), "HAS_Z", x) if norm.gate_first else x
    if not norm.rms:
        value = add("centred", value - mean("mean", value))
    variance = mean("variance", add("square", value * value))
    scale: Any = rsqrt(variance + eps)
    nodes.append(Map("scale", ("t",), scale))
    normed = add("normed", value * entry("scale", "t"))
    weighted = add("weighted", normed * entry("weight", "d"))
    biased = add("biased", weighted + entry("bias", "d"), "HAS_BIAS", weighted)
    if norm.gate_first:
        add("y", biased)
    else:
        add("y", biased * silu(z), "HAS_Z", biased)
    return Graph(f"{'RMS' if norm.rms else 'layer'} norm, gate {'first' if norm.gate_first else 'last'}", tuple(nodes))


@lru_cache(maxsize=8)
def norm_adjoint(norm: Norm) -> Graph:
    """d_x, d_z, d_weight and d_bias from d_y."""
    return adjoint(norm_graph(norm), ("y",), ("x", "z", "weight", "bias"))
