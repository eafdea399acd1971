"""What the launches of both passes have in the same way: tiles, warps, precision.  operands, numbers -> launchers"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .launching import Sizes, can_describe
from .tiles import CONSUMER_ROWS, LARGEST, next_power_of_two


def numbers_of(config: dict[str, Any], kernel: str) -> dict[str, Any]:
    """What a config says of a kernel; nothing where it does not know it."""
    return config["kernels"].get(kernel, {})


def dtype_of_states(config: dict[str, Any]) -> torch.dtype:
    """Of the states that launches leave for each other."""
    return getattr(torch, config.get("state_dtype", "float32"))


def precision(x: Tensor) -> str:
    """How the tensor cores multiply fp32: in tf32 if torch may, else in three tf32 products.  Others are exact."""
    if x.dtype != torch.float32 or torch.version.hip:
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"


def constants_of(name: str, tiles: tuple[int, ...]) -> dict[str, int]:
    """The constants of the tiles of an axis, BLOCK_N or BLOCK_N_0 and BLOCK_N_1."""
    return {name: tiles[0]} if len(tiles) == 1 else {f"{name}_{k}": tile for k, tile in enumerate(tiles)}


def narrow(numbers: dict[str, Any], x: Tensor) -> dict[str, Any]:
    """The numbers for a tile narrower than 64, on Hopper without its warpgroup instructions if nothing is pipelined.

    Triton 3.6 and 3.7 then read outside shared memory now and then (triton-lang/triton issues 10486 and 11366).
    """
    if not x.is_cuda or torch.version.hip or numbers.get("num_stages", 1) > 1 or numbers.get("num_warps", 4) < 4:
        return numbers
    return {**numbers, "num_warps": 2} if torch.cuda.get_device_capability(x.device)[0] == 9 else numbers


def heads_of_steps(sizes: Sizes, config: dict[str, Any]) -> int:
    """Heads of one program that works on step sizes."""
    names = sizes.names
    block = numbers_of(config, "dt_cumsum").get("block_h", max(1, min(names["nheads"], 2048 // names["CHUNK"])))
    return next_power_of_two(block)


def block_of_states(sizes: Sizes, numbers: dict[str, Any]) -> int:
    """Numbers of a state that one program passes from segment to segment."""
    return min(numbers.get("block", 512), next_power_of_two(sizes.names["state_size"]))


def can_specialise(sizes: Sizes, operands: tuple[str, ...]) -> bool:
    """Whether a kernel of these operands may have its warps specialised: that is Hopper's alone."""
    names, tensors = sizes.names, sizes.tensors
    x = tensors["x"]
    return (
        x.element_size() == 2
        and names["CHUNK"] == CONSUMER_ROWS
        and names["HEADDIM"] >= CONSUMER_ROWS
        and names["DSTATE"] <= LARGEST
        and all(can_describe(tensors[name]) for name in operands)
        and (x.is_meta or x.is_cuda and not torch.version.hip and torch.cuda.get_device_capability(x.device)[0] == 9)
    )


def left_out(names: dict[str, Any], kind: str = "kernel") -> str:
    """What to say where the kernels for some sizes were left out of the package."""
    sizes = f"headdim {names['HEADDIM']} and dstate {names['DSTATE']}"
    return f"this package has no {kind} for {sizes}: emit it for them, or for all sizes"
