"""Cases of models on ranks: the sequence cut, parameters sharded by FSDP2, heads split, and two of them at once."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import parallelize_module

from ssdgen.mamba2_ops import Mamba2
from ssdgen.mamba2_ops.tensor_parallel import SplitHeads, load_whole_state, whole_state
from tests.parallel.processes import Case

Found = dict[str, Tensor]
# of a mixer: groups that four ranks divide, groups that they share, a part that bypasses the scan
MIXERS: dict[str, dict[str, Any]] = {
    "groups": {"ngroups": 4},
    "bypass": {"ngroups": 4, "expand": 3, "d_ssm": 32, "D_has_hdim": True, "norm_before_gate": True, "bias": True},
    "shared groups": {"ngroups": 2, "rmsnorm": False, "bias": True},
    "one group": {"ngroups": 1, "rmsnorm": False, "conv_bias": False},
}


def model(name: str, layers: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"d_state": 6, "headdim": 4, "expand": 2, "chunk_size": 16, **MIXERS[name]}
    return nn.Sequential(*(Mamba2(16, **sizes).double() for _ in range(layers)))


def tokens(boundaries: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
    """Inputs, what the outputs are multiplied with in the loss, the sequences of the tokens."""
    draw = torch.Generator().manual_seed(1)
    u, weights = (torch.randn(2, 40, 16, generator=draw, dtype=torch.float64) for _ in range(2))
    places = torch.arange(40)
    ids = torch.stack([places.ge(10).int() + places.ge(22), places.ge(31).int()]).int()
    return u, weights, ids if boundaries else None


def whole(name: str, layers: int = 1, boundaries: bool = False) -> Found:
    """Output and gradients of one process."""
    one, (u, weights, ids) = model(name, layers), tokens(boundaries)
    first = u.requires_grad_()
    for mixer in one:
        u = mixer(u, seq_idx=ids)
    (u * weights).sum().backward()
    gradients = {name: parameter.grad for name, parameter in one.named_parameters()}
    return gradients | {"output": u.detach(), "input": first.grad}


def sharded(name: str, boundaries: bool, group: dist.ProcessGroup) -> Found:
    """Parameters by FSDP2 and the sequence on the same ranks: whole gradients; output and input of this shard."""
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    mesh = init_device_mesh("cpu", (size,), mesh_dim_names=("sequence",))
    ours, (u, weights, ids) = model(name, 2), tokens(boundaries)
    for mixer in ours:
        fully_shard(mixer, mesh=mesh)
        # gradients of shards add up; a mean is for batches
        mixer.set_gradient_divide_factor(1.0)
    first, weights = u.chunk(size, dim=1)[rank].clone().requires_grad_(), weights.chunk(size, dim=1)[rank]
    part, ids = first, None if ids is None else ids.chunk(size, dim=1)[rank]
    for mixer in ours:
        part = mixer(part, seq_idx=ids, process_group=mesh["sequence"])
    (part * weights).sum().backward()
    found = {name: parameter.grad.full_tensor() for name, parameter in ours.named_parameters()}
    return found | {"output": part.detach(), "input": first.grad}


def split(name: str, group: dist.ProcessGroup) -> Found:
    """Heads over all ranks; the number of all-reduces, and a step of decoding, are in there too."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(group),), mesh_dim_names=("tensor",))
    ours, (u, weights, _) = model(name), tokens()
    kept = {name: parameter.detach().clone() for name, parameter in ours[0].named_parameters()}
    if dist.get_rank(group):
        # the first rank's parameters are everyone's
        nn.init.zeros_(ours[0].in_proj.weight)
    ours = parallelize_module(ours, mesh, {"0": SplitHeads()})
    assert all(isinstance(parameter, DTensor) for parameter in ours.parameters())
    counts, reduce = [0], dist.all_reduce

    def counted(*given: Any, **options: Any) -> Any:
        counts[0] += 1
        return reduce(*given, **options)

    dist.all_reduce = counted
    try:
        u.requires_grad_()
        output = ours(u)
        (output * weights).sum().backward()
    finally:
        dist.all_reduce = reduce
    assert counts == [2]
    back = whole_state(ours[0])
    assert all(torch.equal(back[name], kept[name]) for name in kept), "what was cut does not join"
    found = _gradients(ours[0])
    step, *_ = ours[0].step(u[:, :1].detach(), *ours[0].allocate_inference_cache(2, 40))
    load_whole_state(ours[0], {name: torch.zeros_like(tensor) for name, tensor in kept.items()})
    assert not any(tensor.any() for tensor in whole_state(ours[0]).values())
    return found | {"output": output.detach(), "input": u.grad, "step": step.detach()}


def _gradients(mixer: Any) -> Found:
    """Whole gradients, in the order of the layer."""
    found = {}
    for name, parameter in mixer.named_parameters():
        gradient, cut = parameter.grad.full_tensor(), mixer.tensor_parallel.cuts.get(name)
        found[f"0.{name}"] = gradient if cut is None else cut.join(gradient)
    return found


def both(group: dist.ProcessGroup) -> Found:
    """Heads over two ranks and the sequence, with FSDP2, over two others."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("sequence", "tensor"))
    ours, (u, weights, _) = model("groups"), tokens()
    ours = parallelize_module(ours, mesh["tensor"], {"0": SplitHeads()})
    fully_shard(ours[0], mesh=mesh["sequence"])
    ours[0].set_gradient_divide_factor(1.0)
    rank = mesh["sequence"].get_local_rank()
    first, weights = u.chunk(2, dim=1)[rank].clone().requires_grad_(), weights.chunk(2, dim=1)[rank]
    output = ours[0](first, process_group=mesh["sequence"])
    (output * weights).sum().backward()
    return _gradients(ours[0]) | {"output": output.detach(), "input": first.grad}


def refused(change: dict[str, Any], group: dist.ProcessGroup) -> Any:
    mesh = init_device_mesh("cpu", (dist.get_world_size(group),))
    layer = Mamba2(16, d_state=6, **{"headdim": 4, "ngroups": 4, **change})
    return parallelize_module(nn.Sequential(layer), mesh, {"0": SplitHeads()})


# sizes that four ranks cannot share, and what is said of them
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "heads": ({"headdim": 16, "ngroups": 2}, "nheads 2 and d_inner - d_ssm 0 must be divisible by the mesh's 4 ranks"),
    "norm": ({"ngroups": 1}, "take an ngroups that the ranks divide"),
    "groups": ({"headdim": 2, "ngroups": 3, "d_ssm": 24}, "ngroups is 3; it must be a multiple of the 4 ranks"),
}
CASES: dict[str, tuple[int, Case]] = {
    "fsdp": (4, partial(sharded, "one group", False)),
    "fsdp boundaries": (4, partial(sharded, "groups", True)),
    **{f"split {name}": (4, partial(split, name)) for name in MIXERS},
    "both": (4, both),
    **{f"refused {name}": (4, partial(refused, change)) for name, (change, _) in REFUSED.items()},
}
