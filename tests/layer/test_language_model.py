"""The language model: checkpoints of transformers and mamba_ssm, generation, and what is said of broken checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ssdgen.mamba2_ops import generation, language_model
from ssdgen.mamba2_ops.errors import CheckpointError, OptionError, ShapeError
from ssdgen.mamba2_ops.language_model import Mamba2LMConfig, Mamba2LMHeadModel
from tests.layer import families

safetensors = pytest.importorskip("safetensors.torch")

LAYER = {"d_state": 8, "headdim": 8, "ngroups": 2, "chunk_size": 8}
CONFIG = Mamba2LMConfig(d_model=32, n_layer=2, vocab_size=37, ssm_cfg=LAYER, pad_vocab_size_multiple=8)


def model(config: Mamba2LMConfig = CONFIG) -> Mamba2LMHeadModel:
    torch.manual_seed(0)
    return Mamba2LMHeadModel(config).eval()


def prompts() -> torch.Tensor:
    return torch.randint(2, 37, (2, 11), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_of_transformers_gives_the_same_logits(tied: bool, shards: bool, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    theirs = families.model("mamba2")
    theirs.config.tie_word_embeddings = tied
    theirs.tie_weights()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB" if shards else "1GB")
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 or shards
    ours = Mamba2LMHeadModel.from_pretrained(tmp_path)
    assert not ours.training and (ours.lm_head.weight is ours.backbone.embedding.weight) == tied
    input_ids = prompts()
    torch.testing.assert_close(ours(input_ids).logits, theirs(input_ids).logits, rtol=1e-4, atol=1e-4)
    mask = torch.ones_like(input_ids)
    mask[1, :4] = 0
    wanted = theirs.generate(input_ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert torch.equal(ours.generate(input_ids, 6, attention_mask=mask), wanted)
    half = Mamba2LMHeadModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.lm_head.weight.dtype is torch.bfloat16
    assert half.backbone.layers[0].mixer.D.dtype is torch.float32
    assert half(input_ids).logits.isfinite().all()


def test_a_folder_of_mamba_ssm(tmp_path: Path) -> None:
    """Its names are ours, in a file of torch's; the vocabulary is padded."""
    made = model()
    config = {
        "d_model": 32, "n_layer": 2, "vocab_size": 37, "ssm_cfg": {"layer": "Mamba2", **LAYER}, "rms_norm": True,
        "attn_layer_idx": [], "d_intermediate": 0, "pad_vocab_size_multiple": 8, "residual_in_fp32": True,
        "fused_add_norm": True, "tie_embeddings": True,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(made.state_dict(), tmp_path / "pytorch_model.bin")
    read = Mamba2LMHeadModel.from_pretrained(tmp_path)
    assert read.backbone.embedding.weight.shape == (40, 32)
    assert torch.equal(read(prompts()).logits, made(prompts()).logits)
    (tmp_path / "config.json").write_text(json.dumps(config | {"ssm_cfg": {"layer": "Mamba1"}}))
    with pytest.raises(CheckpointError, match="only Mamba2 layers"):
        Mamba2LMHeadModel.from_pretrained(tmp_path)


def test_under_autocast_projections_read_what_norms_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody casts it, and every bit is as if somebody had."""
    made, results, read = model().train(), [], []
    for layer in made.backbone.layers:
        layer.mixer.in_proj.register_forward_pre_hook(lambda _, given: read.append(given[0].dtype))
    for casting in (False, True):
        if casting:
            monkeypatch.setattr(language_model, "_normed", lambda norm, stream: norm(stream.to(norm.weight.dtype)))
        made.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = made(prompts()).logits
        logits.float().square().sum().backward()
        results.append([logits, *(parameter.grad for parameter in made.parameters())])
    assert read == [torch.bfloat16] * 2 + [torch.float32] * 2
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("residual_in_fp32", [True, False])
def test_generation_is_what_the_whole_sequence_says(residual_in_fp32: bool) -> None:
    made = model(Mamba2LMConfig(**{**vars(CONFIG), "residual_in_fp32": residual_in_fp32, "tie_embeddings": False}))
    tokens = made.generate(prompts(), 8)
    assert tokens.shape == (2, 19) and torch.equal(tokens[:, :11], prompts())
    for length in range(11, 19):
        logits = made(tokens[:, :length]).logits[:, -1, :37]
        assert torch.equal(logits.argmax(-1), tokens[:, length])
    assert made(prompts(), num_last_tokens=2).logits.shape == (2, 2, 40)


def test_parameters_may_change_between_generations(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made of them once for a generation is not kept, also where that ends in an error."""
    made = model(Mamba2LMConfig(**{**vars(CONFIG), "tie_embeddings": False}))
    before = made.generate(prompts(), 6)
    with torch.no_grad():
        for layer in made.backbone.layers:
            layer.mixer.A_log += 3
            layer.mixer.D.neg_()
    after = made.generate(prompts(), 6)
    assert not torch.equal(after, before)
    assert torch.equal(made(after[:, :-1]).logits[:, -1, :37].argmax(-1), after[:, -1])
    monkeypatch.setattr(generation, "sample", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        made.generate(prompts(), 6, do_sample=True)
    assert all(layer.mixer._fixed_A is None for layer in made.backbone.layers)


def test_the_padded_vocabulary_is_never_generated() -> None:
    made = model(Mamba2LMConfig(**{**vars(CONFIG), "tie_embeddings": False}))
    with torch.no_grad():
        made.lm_head.weight[37:] = 1e3 * made.lm_head.weight[:3]
    assert made(prompts()).logits.argmax(-1).max() >= 37
    assert made.generate(prompts(), 4).max() < 37


def test_a_row_that_has_ended_stays_ended() -> None:
    made = model()
    free = made.generate(prompts(), 8)[:, 11:]
    end = int(free[0, 2])
    found = made.generate(prompts(), 8, eos_token_id=end)[:, 11:]
    for row in range(2):
        at = (free[row] == end).nonzero()
        stop = int(at[0]) if len(at) else 8
        assert torch.equal(found[row, :stop], free[row, :stop][: found.shape[1]])
        assert found[row, stop:].eq(end).all()
    one = made.generate(prompts()[:1], 8, eos_token_id=end)
    assert one.shape[1] == 11 + int((free[0] == end).nonzero()[0]) + 1


def test_sampling() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).expand(4000, 4)
    generator = torch.Generator().manual_seed(0)

    def shares(**options) -> torch.Tensor:
        return generation.sample(logits, generator=generator, **options).bincount(minlength=4) / 4000

    exact = logits[0].softmax(-1)
    torch.testing.assert_close(shares(), exact, atol=0.03, rtol=0)
    torch.testing.assert_close(shares(temperature=2.0), (logits[0] / 2).softmax(-1), atol=0.03, rtol=0)
    two = exact.clone()
    two[:2] = 0
    torch.testing.assert_close(shares(top_k=2), two / two.sum(), atol=0.03, rtol=0)
    # 0.64 and 0.24 have 0.88 together: the third is still needed for 0.9
    assert shares(top_p=0.6)[3] == 1
    assert (shares(top_p=0.9) > 0).tolist() == [False, True, True, True]
    made = model()
    seeded = [made.generate(prompts(), 5, do_sample=True, generator=torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(*seeded) and not torch.equal(seeded[0], made.generate(prompts(), 5))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"max_new_tokens": 0}, OptionError, "max_new_tokens is 0"),
        ({"temperature": 0.0}, OptionError, "temperature is 0.0"),
        ({"top_k": 0}, OptionError, "top_k is 0"),
        ({"top_p": 1.5}, OptionError, "top_p is 1.5"),
        ({"input_ids": torch.tensor([1, 2])}, ShapeError, "input_ids has shape"),
        ({"attention_mask": torch.tensor([[1] * 11, [1] * 8 + [0] * 3])}, OptionError, "padding behind tokens"),
    ],
)
def test_options_that_are_not_allowed(options: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        model().generate(**{"input_ids": prompts(), "max_new_tokens": 2, **options})


def broken(folder: Path, change) -> None:
    """A checkpoint of transformers' form after `change(config, tensors)`."""
    config = {
        "model_type": "mamba2", "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 37, "num_heads": 8,
        "head_dim": 8, "state_size": 8, "n_groups": 2, "tie_word_embeddings": True,
    }  # fmt: skip
    tensors = {name: t.clone() for name, t in model(Mamba2LMConfig(32, 2, 37, LAYER)).state_dict().items()}
    del tensors["lm_head.weight"]
    change(config, tensors)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.save_file(tensors, folder / "model.safetensors")


def test_an_unbroken_checkpoint_loads(tmp_path: Path) -> None:
    broken(tmp_path, lambda config, tensors: None)
    assert Mamba2LMHeadModel.from_pretrained(tmp_path)(prompts()).logits.shape == (2, 11, 37)


IN_PROJ = "backbone.layers.1.mixer.in_proj.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c, t: t.pop(IN_PROJ), f"missing: {IN_PROJ}"),
        (lambda c, t: t.update({IN_PROJ: torch.ones(3, 32)}), f"misshapen: {IN_PROJ} is \\[3, 32\\] and should be"),
        (lambda c, t: t.update({"backbone.extra": torch.ones(1)}), "not of this model: backbone.extra"),
        (lambda c, t: c.update(num_hidden_layers=3), "missing: backbone.layers.2.*and 1 more"),
        (lambda c, t: c.update(tie_word_embeddings=False), "missing: lm_head.weight"),
        (lambda c, t: c.update(model_type="bamba"), "model_type 'bamba'"),
        (lambda c, t: c.update(num_heads=4), "num_heads 4 and head_dim 8; their product"),
        (lambda c, t: c.update(hidden_act="gelu"), "hidden_act 'gelu'"),
        (lambda c, t: c.pop("state_size"), "has no 'state_size'"),
    ],
)
def test_broken_checkpoints_are_described(change, words: str, tmp_path: Path) -> None:
    broken(tmp_path, change)
    with pytest.raises(CheckpointError, match=words):
        Mamba2LMHeadModel.from_pretrained(tmp_path)


def test_files_that_are_missing_or_broken(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="config.json cannot be read"):
        Mamba2LMHeadModel.from_pretrained(tmp_path)
    broken(tmp_path, lambda config, tensors: None)
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="model.safetensors cannot be read"):
        Mamba2LMHeadModel.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no model.safetensors"):
        Mamba2LMHeadModel.from_pretrained(tmp_path)
    index = {"weight_map": {"a": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="lacks model-1.safetensors"):
        Mamba2LMHeadModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds a list"):
        Mamba2LMHeadModel.from_pretrained(tmp_path)


@pytest.mark.gpu
def test_a_graph_gives_the_same_tokens() -> None:
    made = model().cuda()
    plain = made.generate(prompts().cuda(), 12, cuda_graph=False)
    assert torch.equal(made.generate(prompts().cuda(), 12), plain)
    assert torch.equal(plain.cpu(), model().generate(prompts(), 12))
