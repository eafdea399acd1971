"""The repository for Hugging Face's `kernels`: loaded by that package from a folder, and put into a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

kernels = pytest.importorskip("kernels")
pytest.importorskip("transformers")

from ssdgen.commands.pack_hub import hub  # noqa: E402
from ssdgen.runtime import compat_transformers, layers  # noqa: E402
from ssdgen.runtime.interface import mamba_chunk_scan_combined  # noqa: E402
from tests.layer import families  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
# names under which transformers looks for a layer, and that of the layer
FUNCTIONS = (
    "causal_conv1d_fn",
    "causal_conv1d_update",
    "mamba_chunk_scan_combined",
    "mamba_split_conv1d_scan_combined",
    "selective_state_update",
)


def package() -> dict[str, str]:
    """The package that is checked in, which is the one that is emitted (tests/emit)."""
    folder = ROOT / "ssdgen" / "mamba2_ops"
    paths = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in paths}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "mamba2-ops"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssdgen.emit.package.package", lambda *, runtime: package())
        done = CliRunner().invoke(hub, ["--out", str(folder)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        again = CliRunner().invoke(hub, ["--out", str(folder)], catch_exceptions=False)
        assert "0 files new or changed" in again.output
        refused = CliRunner().invoke(hub, ["--out", str(folder.parent)])
        assert refused.exit_code and not (folder.parent / "build").exists()
    return folder


def test_what_is_in_it(repository: Path) -> None:
    variants = sorted(path.name for path in (repository / "build").iterdir())
    assert variants == ["torch-cpu", "torch-cuda"]
    texts = [
        {
            path.relative_to(variant): path.read_bytes()
            for path in variant.rglob("*")
            if path.is_file() and path.name != "metadata.json" and "__pycache__" not in path.parts
        }
        for variant in (repository / "build").iterdir()
    ]
    assert texts[0] == texts[1]
    assert Path("mamba2_ops/tuned/sm90_h100/ssd_forward.json") in texts[0]
    ids = {json.loads(path.read_text())["id"] for path in repository.rglob("metadata.json")}
    assert len(ids) == 2 and all(name.isidentifier() for name in ids)
    readme = (repository / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in FUNCTIONS)


def test_kernels_loads_it(repository: Path) -> None:
    """Under a name of its own, with operators of its own: beside the package that is here."""
    loaded = kernels.get_local_kernel(repository, backend="cpu")
    assert loaded.mamba_chunk_scan_combined is not mamba_chunk_scan_combined
    x, dt = torch.randn(1, 20, 2, 8), torch.rand(1, 20, 2)
    B, C, A = torch.randn(1, 20, 1, 4), torch.randn(1, 20, 1, 4), -torch.rand(2)
    given = (x.requires_grad_(), dt, A, B, C, 16)
    torch.testing.assert_close(loaded.mamba_chunk_scan_combined(*given), mamba_chunk_scan_combined(*given))
    loaded.mamba_chunk_scan_combined(*given).sum().backward()
    assert {name for name in dir(loaded.layers) if name in FUNCTIONS} == set(FUNCTIONS)
    assert set(FUNCTIONS) < set(loaded.__all__) | {"layers"}
    with pytest.raises(loaded.ShapeError):
        loaded.mamba_chunk_scan_combined(x[0], dt, A, B, C, 16)


def replaceable(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.nn.Module]:
    """The model's functions as `kernels` replaces them: as transformers does where it knows the installed version."""
    from transformers.models.mamba2 import modeling_mamba2

    found = {}
    for name in FUNCTIONS:
        local = compat_transformers._NEW_NAMES.get(name, name)
        function = getattr(modeling_mamba2, local)
        if not isinstance(function, torch.nn.Module):
            function = kernels.use_kernel_forward_from_hub(name)(function)
            monkeypatch.setattr(modeling_mamba2, local, function)
        found[name] = function
    for layer in families.mixers(model):
        layer._kernel_funcs = found
    return found


@pytest.mark.parametrize("training", [False, True])
def test_its_layers_go_into_a_model(repository: Path, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of transformers: `kernelize` compares signatures and modes, and the model says the same."""
    model = families.model("mamba2").train(training)
    functions = replaceable(model, monkeypatch)
    input_ids = torch.randint(2, families.VOCABULARY, (2, 13))

    def run() -> tuple[torch.Tensor, ...]:
        if not training:
            generated = model.generate(input_ids, max_new_tokens=4, do_sample=False, output_logits=True,
                                       return_dict_in_generate=True)  # fmt: skip
            return generated.logits
        model.zero_grad()
        logits = model(input_ids, use_cache=False).logits
        logits.square().mean().backward()
        return logits, *(parameter.grad.clone() for parameter in model.parameters())

    wanted = run()
    backward = [name for name in FUNCTIONS if not training or getattr(getattr(layers, name), "has_backward", True)]
    mapping = {
        name: {"cpu": {mode: kernels.LocalLayerRepository(repo_path=repository, layer_name=name)}}
        for name in backward
        for mode in [(kernels.Mode.TRAINING if training else kernels.Mode.INFERENCE) | kernels.Mode.TORCH_COMPILE]
    }
    with kernels.use_kernel_mapping(mapping, inherit_mapping=False):
        mode = kernels.Mode.TRAINING if training else kernels.Mode.INFERENCE
        kernels.kernelize(model, mode=mode | kernels.Mode.TORCH_COMPILE, device="cpu")
    replaced = [name for name, function in functions.items() if "mamba2_ops" in function.forward.__func__.__module__]
    assert replaced == backward
    for found, right in zip(run(), wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_layers_have_no_state(name: str) -> None:
    layer = getattr(layers, name)
    assert layer.__init__ is torch.nn.Module.__init__ and layer.can_torch_compile
    own = {member for member in vars(layer) if not member.startswith("__")}
    assert own <= {"forward", "can_torch_compile", "has_backward"}


def test_the_norm_between_layers() -> None:
    class Norm(torch.nn.Module):
        weight, variance_epsilon = torch.randn(12), 1e-6

    x = torch.randn(3, 12)
    found = layers.RMSNorm.forward(Norm(), x)
    wanted = torch.nn.functional.rms_norm(x, (12,), Norm.weight, 1e-6)
    torch.testing.assert_close(found, wanted)
