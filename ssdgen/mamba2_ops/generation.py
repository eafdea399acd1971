"""Text from a model, token by token, on a GPU by replaying one CUDA graph.  language_model -> generation"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import OptionError, ShapeError
from .inference import InferenceParams
from .mamba2 import fixed_parameters

if TYPE_CHECKING:
    from .language_model import Mamba2LMHeadModel


@torch.no_grad()
def generate(
    model: Mamba2LMHeadModel,
    input_ids: Tensor,
    max_new_tokens: int,
    *,
    attention_mask: Tensor | None = None,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_token_id: int | None = None,
    generator: torch.Generator | None = None,
    state_dtype: torch.dtype | None = None,
    cuda_graph: bool | None = None,
) -> Tensor:
    """The prompts and what follows them.

    input_ids: [batch, seqlen].  attention_mask: [batch, seqlen], 0 for padding to the left of a shorter prompt.
    max_new_tokens: at least 1.
    do_sample: draw from the distribution; False: the likeliest token, and the four options after it say nothing.
    temperature: > 0.  top_k: only the likeliest so many.  top_p: only the likeliest that together have this share.
    eos_token_id: ends a row, which goes on with this token until all have ended; None: that of the model's config.
    generator: random numbers.  state_dtype: of the states; None: that of the parameters.
    cuda_graph: decode by replaying one graph; None: on a CUDA GPU.

    Returns: [batch, seqlen + at most max_new_tokens].
    Errors: OptionError, ShapeError.
    """
    if input_ids.dim() != 2 or not input_ids.shape[1]:
        raise ShapeError(f"input_ids has shape {list(input_ids.shape)}; it must be [batch, seqlen], at least one token")
    if max_new_tokens < 1:
        raise OptionError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    if attention_mask is not None and (attention_mask.ne(0).int().diff(dim=1) < 0).any():
        raise OptionError("attention_mask has padding behind tokens; padding must be to the left of the prompts")
    _check_sampling(temperature, top_k, top_p)
    batch, seqlen = input_ids.shape
    end = model.config.eos_token_id if eos_token_id is None else eos_token_id
    params = InferenceParams(seqlen + max_new_tokens, batch)
    params.key_value_memory_dict = model.allocate_inference_cache(batch, params.max_seqlen, state_dtype=state_dtype)

    def next_of(logits: Tensor) -> Tensor:
        logits = logits[:, -1, : model.config.vocab_size]
        return sample(logits, temperature, top_k, top_p, generator) if do_sample else logits.argmax(-1)

    with fixed_parameters(model):
        # recorded before the prompt is read, which then writes all states anew
        wants_graph = input_ids.is_cuda if cuda_graph is None else cuda_graph
        step = Graph(model, params, input_ids[:, :1]) if wants_graph and max_new_tokens > 1 else None
        logits = model(input_ids, inference_params=params, num_last_tokens=1, attention_mask=attention_mask).logits
        tokens = [input_ids, next_of(logits)[:, None]]
        params.seqlen_offset = seqlen
        ended = None if end is None else tokens[-1] == end
        for _ in range(max_new_tokens - 1):
            # one wait for the device a token, and only where a token may end a row
            if ended is not None and ended.all():
                break
            if step is not None:
                logits = step(tokens[-1])
            else:
                logits = model(tokens[-1], inference_params=params, num_last_tokens=1).logits
            params.seqlen_offset += 1
            token = next_of(logits)[:, None]
            if ended is not None:
                token = token.masked_fill(ended, end)
                ended = ended | (token == end)
            tokens.append(token)
    return torch.cat(tokens, dim=1)


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A token for each row, [batch], drawn from its logits, [batch, vocabulary]; options as in `generate`."""
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], float("-inf"))
    shares = logits.softmax(-1)
    if top_p is not None and top_p < 1:
        ordered, order = shares.sort(descending=True)
        # those before which the likelier ones already have the share; never the first
        beyond = ordered.cumsum(-1) - ordered >= top_p
        shares = shares.masked_fill(beyond.scatter(-1, order, beyond), 0)
    return torch.multinomial(shares, 1, generator=generator)[:, 0]


class Graph:
    """One step of decoding, recorded.  Its states are those of `params`, which it changes while it is recorded."""

    def __init__(self, model: Mamba2LMHeadModel, params: InferenceParams, tokens: Tensor) -> None:
        self.tokens = tokens.clone()
        params.seqlen_offset = 1
        side = torch.cuda.Stream(tokens.device)
        side.wait_stream(torch.cuda.current_stream(tokens.device))
        with torch.cuda.device(tokens.device), torch.cuda.stream(side):
            for _ in range(2):
                # what compiles or is looked up must not be recorded
                model(self.tokens, inference_params=params, num_last_tokens=1)
        torch.cuda.current_stream(tokens.device).wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(tokens.device), torch.cuda.graph(self.graph):
            self.logits = model(self.tokens, inference_params=params, num_last_tokens=1).logits
        params.seqlen_offset = 0

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits of one token for each row, [batch, 1, vocabulary]; overwritten by the next step."""
        self.tokens.copy_(tokens)
        self.graph.replay()
        return self.logits


def _check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Errors: OptionError."""
    if temperature <= 0:
        raise OptionError(f"temperature is {temperature}; it must be above 0 (do_sample=False takes the likeliest)")
    if top_k is not None and top_k < 1:
        raise OptionError(f"top_k is {top_k}; it must be at least 1, or None for all")
    if top_p is not None and not 0 < top_p <= 1:
        raise OptionError(f"top_p is {top_p}; it must be above 0 and at most 1, or None for all")
