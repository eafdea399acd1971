"""A language model of Mamba-2 layers, small enough to read.  token ids -> logits; checkpoint -> language_model

model = Mamba2LMHeadModel.from_pretrained("path/to/folder", device="cuda", dtype=torch.bfloat16)
tokens = model.generate(input_ids, max_new_tokens=64)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from . import checkpoint, generation
from .inference import InferenceParams
from .mamba2 import Mamba2
from .norm import RMSNorm


@dataclass(frozen=True)
class Mamba2LMConfig:
    """Sizes of a model.

    d_model: width of the stream.  n_layer: layers, each a norm and a `Mamba2`.  vocab_size: tokens that there are.
    ssm_cfg: arguments of each `Mamba2`.  norm_epsilon: of the norms between layers.  residual_in_fp32: the sum of the
    layers' outputs is kept in fp32.  pad_vocab_size_multiple: the vocabulary is rounded up to a multiple of it.
    tie_embeddings: logits come from the embedding's weight.  eos_token_id: ends a generated row; None: nothing does.
    """

    d_model: int
    n_layer: int
    vocab_size: int
    ssm_cfg: Mapping[str, Any] = field(default_factory=dict)
    norm_epsilon: float = 1e-5
    residual_in_fp32: bool = True
    pad_vocab_size_multiple: int = 1
    tie_embeddings: bool = True
    eos_token_id: int | None = None

    @property
    def embeddings(self) -> int:
        """Rows of the embedding."""
        multiple = self.pad_vocab_size_multiple
        return -(-self.vocab_size // multiple) * multiple


class LMOutput(NamedTuple):
    """logits: [batch, seqlen or num_last_tokens, embeddings]."""

    logits: Tensor


class Block(nn.Module):
    """norm, then the layer, on a stream that every layer adds to."""

    def __init__(self, config: Mamba2LMConfig, layer_idx: int, device=None, dtype=None) -> None:
        super().__init__()
        self.residual_in_fp32 = config.residual_in_fp32
        self.norm = RMSNorm(config.d_model, eps=config.norm_epsilon, device=device, dtype=dtype)
        self.mixer = Mamba2(config.d_model, **config.ssm_cfg, layer_idx=layer_idx, device=device, dtype=dtype)

    def forward(self, stream: Tensor, inference_params=None, **options) -> Tensor:
        """stream: [batch, seqlen, d_model].  options: as in `Mamba2.forward`."""
        normed = _normed(self.norm, stream)
        if self.residual_in_fp32:
            stream = stream.float()
        return stream + self.mixer(normed, inference_params=inference_params, **options)


def _normed(norm: RMSNorm, stream: Tensor) -> Tensor:
    """In the dtype of the projection that reads it: under autocast nobody casts it afterwards."""
    dtype, device = norm.weight.dtype, stream.device.type
    low = torch.is_autocast_enabled(device) and dtype is not torch.float64
    return norm(stream.to(dtype), out_dtype=torch.get_autocast_dtype(device) if low else None)


class Backbone(nn.Module):
    """Embedding, layers, the last norm."""

    def __init__(self, config: Mamba2LMConfig, device=None, dtype=None) -> None:
        super().__init__()
        made = {"device": device, "dtype": dtype}
        self.embedding = nn.Embedding(config.embeddings, config.d_model, **made)
        self.layers = nn.ModuleList(Block(config, index, **made) for index in range(config.n_layer))
        self.norm_f = RMSNorm(config.d_model, eps=config.norm_epsilon, **made)

    def forward(self, input_ids: Tensor, inference_params=None, **options) -> Tensor:
        stream = self.embedding(input_ids)
        for layer in self.layers:
            stream = layer(stream, inference_params, **options)
        return _normed(self.norm_f, stream)


class Mamba2LMHeadModel(nn.Module):
    """An embedding, layers of `Mamba2` with a norm before each, a norm, and logits; trains, and generates text.

    Its parameters have the names of mamba_ssm's MambaLMHeadModel, so that its checkpoints load (`from_pretrained`).

    config: the sizes.  device, dtype: of the parameters.
    """

    def __init__(self, config: Mamba2LMConfig, device=None, dtype=None) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config, device, dtype)
        self.lm_head = nn.Linear(config.d_model, config.embeddings, bias=False, device=device, dtype=dtype)
        nn.init.normal_(self.backbone.embedding.weight, std=0.02)
        with torch.no_grad():
            for layer in self.backbone.layers:
                # as GPT-2: the stream's variance does not grow with the number of layers
                layer.mixer.out_proj.weight /= config.n_layer**0.5
        self.tie_weights()

    @classmethod
    def from_pretrained(cls, folder: str | Path, device=None, dtype=None) -> Mamba2LMHeadModel:
        """A model from a local folder: config.json and safetensors, as transformers or mamba_ssm write them.

        dtype: of the parameters; None: that of the embedding in the checkpoint.
        Errors: CheckpointError: files that are not there, a config that is not of such a model, parameters that are
        missing, misshapen or left over, each named.  ModuleNotFoundError without safetensors.
        """
        config, tensors = checkpoint.read(Path(folder), device)
        model = cls(Mamba2LMConfig(**config), device="meta", dtype=dtype or checkpoint.dtype_of(tensors))
        checkpoint.fill(model, tensors, tied={"lm_head.weight"} if model.config.tie_embeddings else set())
        model.tie_weights()
        return model.eval()

    def tie_weights(self) -> None:
        """Where the config says so, logits come from the embedding's weight."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.backbone.embedding.weight

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        inference_params: InferenceParams | None = None,
        num_last_tokens: int = 0,
        *,
        seq_idx: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> LMOutput:
        """Logits of the last num_last_tokens positions, of all with 0.

        input_ids: [batch, seqlen].  position_ids: not used.  The others as in `Mamba2.forward`.
        """
        hidden = self.backbone(
            input_ids, inference_params, seq_idx=seq_idx, cu_seqlens=cu_seqlens, attention_mask=attention_mask
        )
        return LMOutput(self.lm_head(hidden[:, -num_last_tokens:]))

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **options
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """{layer_idx: states}, zero, as in `Mamba2.allocate_inference_cache`."""
        return {
            index: layer.mixer.allocate_inference_cache(batch_size, max_seqlen, dtype, **options)
            for index, layer in enumerate(self.backbone.layers)
        }

    def generate(self, input_ids: Tensor, max_new_tokens: int, **options: Any) -> Tensor:
        """The prompts and what follows them, [batch, seqlen + new tokens]; options as in `generation.generate`."""
        return generation.generate(self, input_ids, max_new_tokens, **options)
