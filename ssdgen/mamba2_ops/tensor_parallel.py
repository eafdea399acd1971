"""The heads of a Mamba-2 layer split over ranks, as DTensors.  public; Mamba2, mesh -> a style of parallelize_module

    from torch.distributed.tensor.parallel import parallelize_module
    from mamba2_ops.tensor_parallel import SplitHeads
    parallelize_module(model, mesh["tensor"], {"backbone.layers.*.mixer": SplitHeads()})

A rank has some heads with their groups: rows of in_proj, channels of the convolution, entries of A_log, D and dt_bias,
whole groups of the norm and columns of out_proj.  So it computes a part of the layer's output from all of its input,
and a layer costs one all-reduce of [batch, seqlen, d_model] forwards and one backwards.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ParallelStyle

from .errors import OptionError, ShapeError
from .ranks import CALLS, DTYPES, Agreement, Ranks, ranks_of, talking

__all__ = ["Cut", "SplitHeads", "cuts", "load_whole_state", "whole_state"]

# attributes that a rank has a part of
_SIZES = ("d_inner", "d_ssm", "nheads", "ngroups")


@dataclass(frozen=True)
class Cut:
    """How a parameter is cut.  axis: that is cut; parts: for each rank the positions along it that it has.

    A position lies on several ranks where it belongs to a group that their heads share.
    """

    axis: int
    parts: tuple[Tensor, ...]

    def of(self, whole: Tensor, rank: int) -> Tensor:
        """A rank's part of the whole parameter."""
        return whole.index_select(self.axis, self.parts[rank].to(whole.device))

    def join(self, stacked: Tensor) -> Tensor:
        """The whole parameter from the parts of all ranks, one after the other along the axis."""
        places = torch.cat(self.parts).to(stacked.device)
        return stacked.new_empty(self.shape(stacked.shape)).index_copy(self.axis, places, stacked)

    def shape(self, part: torch.Size) -> torch.Size:
        """Of the whole parameter, from that of a part."""
        extent = 1 + max(int(places.max()) for places in self.parts)
        return torch.Size((*part[: self.axis], extent, *part[self.axis + 1 :]))


def cuts(layer: nn.Module, size: int) -> dict[str, Cut]:
    """How ranks share the parameters of a layer.

    layer: a `Mamba2`.  size: how many ranks there are.

    Returns: {parameter's name: its cut}; parameters that are whole on every rank are left out.
    Errors: OptionError, ShapeError (heads that do not divide, groups that a norm cannot be kept inside of a rank for).
    """
    if missing := [name for name in (*_SIZES, "d_state", "in_proj", "conv1d", "out_proj") if not hasattr(layer, name)]:
        raise OptionError(f"{type(layer).__name__} has no {missing[0]}; only a Mamba2 can be split by heads")
    ssm, heads, groups = layer.d_ssm, layer.nheads, layer.ngroups
    bypass, states = layer.d_inner - ssm, groups * layer.d_state
    if heads % size or bypass % size:
        raise ShapeError(f"nheads {heads} and d_inner - d_ssm {bypass} must be divisible by the mesh's {size} ranks")
    if groups % size and size % groups:
        raise ShapeError(f"ngroups is {groups}; it must be a multiple of the {size} ranks of the mesh, or divide them")
    normed = layer.norm.weight.shape[0] // groups if layer.rmsnorm else 1
    if (ssm // size) % normed:
        raise ShapeError(
            f"the norm is over groups of {normed} channels, and each of {size} ranks has {ssm // size}; take an "
            "ngroups that the ranks divide, so that the norm stays inside of a rank"
        )

    def even(extent: int, rank: int) -> Tensor:
        return torch.arange(extent * rank // size, extent * (rank + 1) // size)

    def grouped(rank: int) -> Tensor:
        # ranks that have heads of one group all have the group
        first = groups * rank // size
        return torch.arange(first * layer.d_state, (first + max(1, groups // size)) * layer.d_state)

    def side_by_side(*pieces: tuple[int, Callable[[int], Tensor]]) -> tuple[Tensor, ...]:
        starts = [sum(extent for extent, _ in pieces[:at]) for at in range(len(pieces))]
        return tuple(
            torch.cat([start + place(rank) for start, (_, place) in zip(starts, pieces, strict=True)])
            for rank in range(size)
        )

    def piece(extent: int) -> tuple[int, Callable[[int], Tensor]]:
        return extent, partial(even, extent)

    shared = (states, grouped)
    rows = side_by_side(piece(bypass), piece(bypass), piece(ssm), piece(ssm), shared, shared, piece(heads))
    channels = side_by_side(piece(ssm), shared, shared)
    found = {
        "in_proj.weight": Cut(0, rows),
        "in_proj.bias": Cut(0, rows),
        "conv1d.weight": Cut(0, channels),
        "conv1d.bias": Cut(0, channels),
        "dt_bias": Cut(0, side_by_side(piece(heads))),
        "A_log": Cut(0, side_by_side(piece(heads))),
        "D": Cut(0, side_by_side(piece(layer.D.shape[0]))),
        "norm.weight": Cut(0, side_by_side(piece(ssm))),
        "out_proj.weight": Cut(1, side_by_side(piece(bypass), piece(ssm))),
    }
    there = {name for name, _ in layer.named_parameters()}
    return {name: cut for name, cut in found.items() if name in there}


class SplitHeads(ParallelStyle):
    """Splits a `Mamba2` by heads, in place: its parameters become DTensors, its input and output stay whole tensors.

    nheads divisible by the ranks; ngroups a multiple of them, or, without a norm, a divisor: ranks with heads of one
    group then all have it, and add up its gradients in the backward pass, one collective more.
    The rows of a DTensor lie in the order of the ranks; `whole_state` gives them in the order of the layer, and
    `load_whole_state` takes them so.  The first rank's parameters are sent to all others, as torch's own styles do
    (src_data_rank of parallelize_module).  Works together with FSDP2, applied afterwards, on another axis of the mesh.
    Every rank gives a layer of the same sizes, and from then on the same input: on the CPU the inputs' sizes are
    compared at each call, on a GPU, where that would be a message more, with SSDGEN_CHECK_RANKS=1.

    Errors: GroupError (a mesh of more than one dimension, or on another device than the layer), OptionError,
    ShapeError; RankMismatchError where ranks give different layers or inputs, CommunicationError.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        layer: Any = module
        ranks = ranks_of(device_mesh, getattr(getattr(layer, "out_proj", None), "weight", None))
        found, call, failed = {}, {"call": CALLS.index("SplitHeads")}, None
        try:
            found = cuts(layer, ranks.size)
            call |= {name: int(getattr(layer, name)) for name in ("d_model", *_SIZES, "headdim", "d_state", "d_conv")}
            call |= {"dtype": DTYPES.index(layer.out_proj.weight.dtype)}
            call |= {"parameters": len(list(layer.parameters()))}
        except Exception as error:
            # whatever it is: the others are told before it is raised here
            failed = error
        Agreement(ranks, call, failed).wait()
        split = _Split(layer, ranks, found)
        source = getattr(self, "src_data_rank", 0)
        for name, parameter in list(layer.named_parameters()):
            whole = parameter.detach()
            if source is not None and not whole.is_meta:
                with talking(ranks, "parameters"):
                    dist.broadcast(whole, ranks.place(source), group=ranks.group)
            cut = found.get(name)
            local = whole if cut is None else cut.of(whole, ranks.rank)
            placement = Replicate() if cut is None else Shard(cut.axis)
            made = nn.Parameter(
                DTensor.from_local(local, device_mesh, [placement], run_check=False), parameter.requires_grad
            )
            made.__dict__.update(parameter.__dict__)
            owner, _, key = name.rpartition(".")
            layer.get_submodule(owner).register_parameter(key, made)
        layer.d_inner = layer.d_inner // ranks.size
        layer.d_ssm, layer.nheads = layer.d_ssm // ranks.size, layer.nheads // ranks.size
        layer.ngroups = max(1, layer.ngroups // ranks.size)
        layer.tensor_parallel = split
        layer.forward = split.around(layer.forward)
        layer.step = split.around(layer.step)
        return module


class _Split:
    """What a split layer does around its own code, which sees this rank's part as plain tensors."""

    def __init__(self, layer: Any, ranks: Ranks, found: dict[str, Cut]) -> None:
        self.layer, self.ranks, self.cuts = layer, ranks, found
        self.inside = False
        # ranks with heads of the same group
        self.sharing = max(1, ranks.size // layer.ngroups)
        self.states = layer.d_state

    def around(self, run: Callable) -> Callable:
        @wraps(run)
        def whole(u: Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.inside:
                return run(u, *args, **kwargs)
            self._agree(u)
            u = _ToAll.apply(self.ranks, u)
            with self._local():
                found = run(u, *args, **kwargs)
            out, *others = found if isinstance(found, tuple) else (found,)
            out = _FromAll.apply(self.ranks, out)
            return (out, *others) if others else out

        return whole

    def _agree(self, u: Tensor) -> None:
        """That all ranks have an input of the same sizes; parts of others could not be added up."""
        if self.ranks.device.type != "cpu" and os.environ.get("SSDGEN_CHECK_RANKS") != "1":
            return
        call, failed = {"call": CALLS.index("a split Mamba2")}, None
        try:
            call |= {"dtype": DTYPES.index(u.dtype), "dimensions": u.dim()}
            call |= {f"size {axis}": size for axis, size in enumerate(u.shape)}
            call |= {"gradients": int(torch.is_grad_enabled() and u.requires_grad)}
        except Exception as error:
            failed = error
        Agreement(self.ranks, call, failed).wait()

    @contextmanager
    def _local(self) -> Iterator[None]:
        """This rank's parts in place of the parameters."""
        kept = []
        self.inside = True
        try:
            for name, parameter in list(self.layer.named_parameters()):
                owner, _, key = name.rpartition(".")
                parameters = self.layer.get_submodule(owner)._parameters
                kept.append((parameters, key, parameters[key]))
                parameters[key] = self._part(name, parameter)
            yield
        finally:
            self.inside = False
            for parameters, key, parameter in kept:
                parameters[key] = parameter

    def _part(self, name: str, parameter: Tensor) -> Any:
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        if name not in self.cuts:
            # the parts of the output are added up, and the bias is to be in there once
            return _OnFirst.apply(self.ranks, local)
        if self.sharing > 1 and name.partition(".")[0] in ("in_proj", "conv1d"):
            after = self.layer.nheads if name.startswith("in_proj") else 0
            return _Shared.apply(self.ranks, self.sharing, 2 * self.states, after, local)
        return local


def _split_of(layer: Any) -> _Split:
    split = getattr(layer, "tensor_parallel", None)
    if not isinstance(split, _Split):
        raise OptionError(
            f"this {type(layer).__name__} is not split; split it first, parallelize_module(layer, mesh, SplitHeads())"
        )
    return split


def whole_state(layer: nn.Module) -> dict[str, Tensor]:
    """The parameters of a split layer as one process has them; a collective call, which all ranks make.

    layer: one that `SplitHeads` has split.

    Returns: {parameter's name: tensor}, the same on every rank.
    Errors: OptionError for a layer that is not split, CommunicationError.
    """
    split = _split_of(layer)
    found = {}
    for name, parameter in layer.named_parameters():
        with talking(split.ranks, "parameters"):
            stacked = parameter.detach().full_tensor()
        cut = split.cuts.get(name)
        found[name] = stacked if cut is None else cut.join(stacked)
    return found


def load_whole_state(layer: nn.Module, state: dict[str, Tensor]) -> None:
    """Take this rank's parts of the parameters that one process has; nothing is sent.

    layer: one that `SplitHeads` has split.  state: {parameter's name: tensor} as `whole_state` gives it.

    Errors: OptionError for a layer that is not split and for names that are missing or too many, ShapeError; nothing
    is changed then.
    """
    split = _split_of(layer)
    own = dict(layer.named_parameters())
    if wrong := sorted(own.keys() ^ state.keys()):
        raise OptionError(
            f"{', '.join(wrong)}: in the state or in the layer alone; give each of {', '.join(sorted(own))}"
        )
    parts = {}
    for name, parameter in own.items():
        cut, local = split.cuts.get(name), parameter.detach().to_local()
        size = local.shape if cut is None else cut.shape(local.shape)
        if state[name].shape != size:
            raise ShapeError(
                f"{name} has shape {list(state[name].shape)}; it must be that of one process, {list(size)}"
            )
        parts[name] = local, state[name] if cut is None else cut.of(state[name], split.ranks.rank)
    for local, part in parts.values():
        local.copy_(part)


class _ToAll(torch.autograd.Function):
    """The layer's input, whole on every rank; the parts of its gradient are added up."""

    @staticmethod
    def forward(ctx, ranks, u):
        ctx.ranks = ranks
        return u.view_as(u)

    @staticmethod
    def backward(ctx, d_u):  # type: ignore[override]
        return None, _added(ctx.ranks, d_u, "the gradient of a layer's input")


class _FromAll(torch.autograd.Function):
    """The layer's output, added up from the parts of all ranks; each part has the gradient of the whole."""

    @staticmethod
    def forward(ctx, ranks, out):
        return _added(ranks, out, "a layer's output")

    @staticmethod
    def backward(ctx, d_out):  # type: ignore[override]
        return None, d_out


def _added(ranks: Ranks, part: Tensor, what: str) -> Tensor:
    total = part.clone(memory_format=torch.contiguous_format)
    with talking(ranks, what):
        dist.all_reduce(total, group=ranks.group)
    return total


class _OnFirst(torch.autograd.Function):
    """A bias on the first rank, zero on the others; its gradient is the same everywhere."""

    @staticmethod
    def forward(ctx, ranks, bias):
        return bias.view_as(bias) if ranks.rank == 0 else torch.zeros_like(bias)

    @staticmethod
    def backward(ctx, d_bias):  # type: ignore[override]
        return None, d_bias


class _Shared(torch.autograd.Function):
    """A parameter some of whose rows, `count` before the last `after`, are the same on `sharing` ranks in a row."""

    @staticmethod
    def forward(ctx, ranks, sharing, count, after, parameter):
        ctx.given = ranks, sharing, count, after
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx, d_parameter):  # type: ignore[override]
        ranks, sharing, count, after = ctx.given
        d_parameter = d_parameter.clone()
        rows = d_parameter.narrow(0, d_parameter.shape[0] - after - count, count)
        everyones = rows.new_empty(ranks.size, *rows.shape)
        with talking(ranks, "gradients of shared groups"):
            dist.all_gather(list(everyones.unbind(0)), rows.contiguous(), group=ranks.group)
        first = ranks.rank // sharing * sharing
        rows.copy_(everyones[first : first + sharing].sum(0))
        return *[None] * 4, d_parameter
