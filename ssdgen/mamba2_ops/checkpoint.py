"""Checkpoints of language models in a local folder.  config.json, safetensors -> checkpoint -> language_model

Two kinds are known by their config: that of transformers (`model_type` mamba2) and that of mamba_ssm (`d_model`), whose
weights may also lie in pytorch_model.bin.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import CheckpointError

# beginnings of names in transformers' checkpoints, old ones too, and what they are here
_RENAMED = (("backbone.embeddings.", "backbone.embedding."),)
_NAMED_AT_MOST = 8


def read(folder: Path, device: torch.device | str | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Fields of `Mamba2LMConfig`, and {name as in `Mamba2LMHeadModel`: tensor}.

    Errors: CheckpointError.
    """
    config = _config(_json(folder / "config.json"), folder)
    tensors = {}
    for path in _files(folder):
        for name, tensor in _load(path, device).items():
            for old, new in _RENAMED:
                name = new + name.removeprefix(old) if name.startswith(old) else name
            tensors[name] = tensor
    return config, tensors


def fill(model: nn.Module, tensors: Mapping[str, Tensor], tied: set[str]) -> None:
    """Put the tensors in the place of a model's parameters, in the parameters' dtypes.

    tied: names that may be missing, since they are another parameter's.
    Errors: CheckpointError, before anything is changed: what is missing, misshapen or left over, by name.
    """
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in tensors and name not in tied]
    left_over = [name for name in tensors if name not in wanted]
    misshapen = [
        f"{name} is {list(tensor.shape)} and should be {list(wanted[name].shape)}"
        for name, tensor in tensors.items()
        if name in wanted and tensor.shape != wanted[name].shape
    ]
    wrong = [
        f"{what}: {_some(names)}"
        for what, names in (("missing", missing), ("misshapen", misshapen), ("not of this model", left_over))
        if names
    ]
    if wrong:
        raise CheckpointError(f"the checkpoint does not fit the config; {'; '.join(wrong)}")
    given = {name: tensor.to(wanted[name].dtype) for name, tensor in tensors.items()}
    model.load_state_dict(given, strict=False, assign=True)


def dtype_of(tensors: Mapping[str, Tensor]) -> torch.dtype | None:
    """That of the embedding, or None where there is none."""
    embedding = tensors.get("backbone.embedding.weight")
    return None if embedding is None else embedding.dtype


def _config(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    try:
        if given.get("model_type") == "mamba2":
            return _of_transformers(given)
        if "d_model" in given and "n_layer" in given:
            return _of_mamba_ssm(given, folder)
    except KeyError as error:
        raise CheckpointError(f"config.json in {folder} has no {error.args[0]!r}") from None
    raise CheckpointError(
        f"config.json in {folder} has model_type {given.get('model_type')!r} and is of no Mamba-2 language model; "
        "known are transformers' mamba2 and mamba_ssm's (d_model, n_layer)"
    )


def _of_transformers(given: dict[str, Any]) -> dict[str, Any]:
    hidden, expand = given["hidden_size"], given.get("expand", 2)
    if given["num_heads"] * given["head_dim"] != int(expand * hidden):
        raise CheckpointError(
            f"config.json has num_heads {given['num_heads']} and head_dim {given['head_dim']}; their product must be "
            f"expand hidden_size = {int(expand * hidden)}"
        )
    if given.get("hidden_act", "silu") not in ("silu", "swish"):
        raise CheckpointError(f"config.json has hidden_act {given['hidden_act']!r}; allowed are 'silu' and 'swish'")
    epsilon = given.get("layer_norm_epsilon", 1e-5)
    end = given.get("eos_token_id")
    return {
        "d_model": hidden,
        "n_layer": given["num_hidden_layers"],
        "vocab_size": given["vocab_size"],
        "norm_epsilon": epsilon,
        "residual_in_fp32": given.get("residual_in_fp32", True),
        "tie_embeddings": given.get("tie_word_embeddings", False),
        "eos_token_id": end[0] if isinstance(end, list) else end,
        "ssm_cfg": {
            "d_state": given["state_size"],
            "d_conv": given.get("conv_kernel", 4),
            "expand": expand,
            "headdim": given["head_dim"],
            "ngroups": given["n_groups"],
            "dt_limit": tuple(_number(limit) for limit in given.get("time_step_limit", (0.0, inf))),
            "bias": given.get("use_bias", False),
            "conv_bias": given.get("use_conv_bias", True),
            "chunk_size": given.get("chunk_size", 256),
            "norm_eps": epsilon,
        },
    }


def _of_mamba_ssm(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    layer = dict(given.get("ssm_cfg") or {})
    kind = layer.pop("layer", "Mamba1")
    if (
        kind != "Mamba2"
        or given.get("attn_layer_idx")
        or given.get("d_intermediate")
        or not given.get("rms_norm", True)
    ):
        raise CheckpointError(
            f"config.json in {folder} is of layers {kind!r}, of attention, MLPs or LayerNorm; only Mamba2 layers with "
            "RMSNorm between them are known"
        )
    names = ("d_model", "n_layer", "vocab_size")
    optional = ("residual_in_fp32", "pad_vocab_size_multiple", "tie_embeddings")
    defaults = {"residual_in_fp32": True, "pad_vocab_size_multiple": 8, "tie_embeddings": True}
    return {name: given[name] for name in names} | defaults | _chosen(given, optional) | {"ssm_cfg": layer}


def _chosen(given: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: given[name] for name in names if name in given}


def _number(value: Any) -> float:
    """JSON has no infinity: transformers writes {"__float__": "Infinity"}."""
    return float(value["__float__"] if isinstance(value, dict) else value)


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted({folder / name for name in _json(index).get("weight_map", {}).values()})
        absent = [path.name for path in shards if not path.is_file()]
        if absent:
            raise CheckpointError(f"{folder} lacks {_some(absent)}, which {index.name} names")
        return shards
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
    raise CheckpointError(f"{folder} has no model.safetensors, no {index.name} and no pytorch_model.bin")


def _load(path: Path, device: torch.device | str | None) -> dict[str, Tensor]:
    where = str(device or "cpu")
    if path.suffix == ".bin":
        return torch.load(path, map_location=where, weights_only=True)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device=where)
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}; it must be an object")
    return found


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
