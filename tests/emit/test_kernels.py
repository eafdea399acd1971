"""Emitted kernels: formatted as ruff would, valid Python, and the same bytes every time."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ssdgen.emit import fingerprint
from ssdgen.pack import templates
from ssdgen.plan import catalogue, ir
from ssdgen.spec.layer import Layer
from ssdgen.spec.layouts import MULTI_HEAD
from ssdgen.spec.masks import CONSTANT, NONE
from tests.emit import sources

ROOT = Path(__file__).resolve().parents[2]
LAYERS = {
    "ssd": Layer(),
    "constant": Layer(family=CONSTANT),
    "none": Layer(family=NONE),
    "multi-head": Layer(layout=MULTI_HEAD),
}
EACH = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)


@EACH
def test_every_kernel_of_the_catalogue_is_emitted(layer: Layer) -> None:
    every = (kernel for _, each in catalogue.everything(layer) for kernel in each)
    assert sorted(sources.kernels(layer)) == sorted(kernel.name for kernel in every)


@EACH
def test_ruff_has_nothing_to_format(layer: Layer, tmp_path: Path) -> None:
    """Every Python file of the package, launchers included, as it stands."""
    texts = {path: text for path, text in sources.package(layer).items() if path.endswith(".py")}
    for path, text in texts.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    ruff = [sys.executable, "-m", "ruff", "format", "--isolated", "--line-length=120", "--diff", str(tmp_path)]
    done = subprocess.run(ruff, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[:4000] + done.stderr[-500:]


@EACH
def test_ruff_has_nothing_to_say(layer: Layer, tmp_path: Path) -> None:
    """Nothing unused, nothing undefined, no line too long, imports in order: as the project's own rules have it."""
    for name, text in sources.package(layer).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    ruff = [sys.executable, "-m", "ruff", "check", f"--config={ROOT / 'pyproject.toml'}", "--no-cache", str(tmp_path)]
    done = subprocess.run([*ruff, "--output-format=concise"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[:4000] + done.stderr[-500:]


def compiled(module: ast.Module) -> list[ast.FunctionDef]:
    """The functions that Triton compiles, the kernel last."""
    return [node for node in module.body if isinstance(node, ast.FunctionDef) and node.decorator_list]


@EACH
def test_one_kernel_a_file_with_all_its_names(layer: Layer) -> None:
    """The file's name is the kernel's; every name in it is a parameter, a variable, an import or a built-in."""
    for name, text in sources.kernels(layer).items():
        module = ast.parse(text)
        functions = compiled(module)
        *roles, kernel = functions
        assert kernel.name == name
        in_roles = name.startswith(("chunk_gradients", "group_gradients"))
        computing = ["compute_rows", "compute_columns"] if in_roles else ["compute"]
        computing += ["compute_states"] if "_3consumers" in name else []
        computing = ["make_steps", *computing] if "_inline" in name else computing
        assert [role.name for role in roles] == (["load_tiles", *computing] if "consumer" in name else [])
        # of a program that is specialised by warps each role is a function, and the kernel starts them
        assert {ast.unparse(role.decorator_list[0]) for role in roles} <= {"gluon.jit"}
        jit = "gluon.jit(do_not_specialize=['nheads'])" if roles else "triton.jit"
        assert ast.unparse(kernel.decorator_list[0]) == jit
        assert ast.get_docstring(module), f"{name} says nothing of itself"
        assert all(ast.get_docstring(role) for role in roles)
        imported = {alias.asname or alias.name for node in module.body for alias in getattr(node, "names", ())}
        for function in functions:
            parameters = {argument.arg for argument in function.args.args}
            known = parameters | imported | {"range", "float"}
            known |= {role.name for role in roles} if function is kernel else set()
            read = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
            made = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
            assert not read - known - made, (name, function.name)
            # a parameter that nothing reads is a parameter too many, options of other variants aside
            unused = parameters - read
            assert not {u for u in unused if not u.startswith(("stride_", "HAS_"))}, (name, function.name, unused)


@EACH
def test_offsets_are_64_bit(layer: Layer) -> None:
    """Strides are passed as int64, and every program index that meets one is widened first."""
    for name, text in sources.kernels(layer).items():
        language = "gl" if "consumer" in name else "tl"
        for function in compiled(ast.parse(text)):
            for argument in function.args.args:
                if argument.arg.startswith("stride_"):
                    assert argument.annotation is not None, name
                    assert ast.unparse(argument.annotation) == f"{language}.int64", name
        for line in text.splitlines():
            found = re.match(r"\s+(b|group|head|head_0|segment|chunk) = (.*)", line)
            # consumers have their head from the number of a walk, which is not widened, or from their group, which is
            of_a_walk = found and found[1] == "head" and language == "gl" and not found[2].startswith("group * ")
            if found and ("program_id" in found[2] or of_a_walk):
                widened = found[2].startswith(f"{language}.cast(") and found[2].endswith(f"{language}.int64)")
                assert widened, (name, line)


def test_no_place_date_or_machine_is_named() -> None:
    for path, text in sources.package().items():
        assert not re.search(r"/home/|/tmp/|/root/|\b20[2-9]\d-\d\d-\d\d\b", text), path


SAME_BYTES = """
import hashlib, sys
sys.path.insert(0, {root!r})
from ssdgen.emit import package
from ssdgen.pack import templates
from ssdgen.spec.layer import Layer
from ssdgen.spec.layouts import LAYOUTS
from ssdgen.spec.masks import FAMILIES
templates.load()
for layer in (Layer(), Layer(FAMILIES["constant"], LAYOUTS["multi-head"])):
    texts = package.package(layer, runtime=templates.runtime_sources())
    for path, text in texts.items():
        print(path, hashlib.sha256(text.encode()).hexdigest())
"""


def test_same_bytes_in_any_process() -> None:
    """Nothing depends on the order of a set or a dict of hashes, nor on what ran before."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SAME_BYTES.format(root=str(ROOT))],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2", "77")
    ]
    printed = [process.communicate()[0] for process in running]
    assert all(process.returncode == 0 for process in running)
    assert len(printed[0].splitlines()) > 60
    assert printed[0] == printed[1] == printed[2]


def shared_functions() -> dict[str, str]:
    """The modules that kernels import."""
    return {name: sources.package()[f"kernels/{name}.py"] for name in fingerprint.FUNCTIONS}


def test_fingerprints_are_of_the_meaning() -> None:
    """Comments, docstrings and line breaks change nothing; a number, a name or a shared function does."""
    kernels = sources.every()
    text, specialised = kernels["single_pass"], kernels["single_pass_2terms_2consumers"]
    same = text.replace('"""One program', '"""A program').replace(
        "    CB = tl.dot(", "    # note\n        CB = tl.dot(\n"
    )
    assert same != text

    def of(source: str, **changed: str) -> str:
        return fingerprint.of_kernels({"name": source}, shared_functions() | changed)["name"]

    assert of(same) == of(text)
    assert of(specialised.replace("One consumer:", "A consumer:").replace("    # ", "    # note: ")) == of(specialised)
    assert len({of(source) for source in (text, text.replace("0.0", "1.0"), specialised)}) == 3
    # functions are part of the kernels that have them, and of no others
    for module, name in (
        ("functions", "single_pass"),
        ("warpgroup_functions", "single_pass_2terms_2consumers"),
        ("storage_functions", "state_step"),
        ("gate_functions", "conv_walk_4w"),
        ("word_functions", "conv_walk_4w"),
        ("layout_functions", "single_pass_2terms_2consumers_keeping"),
        ("loop_functions", "reverse_walk_2n_blocks_2consumers"),
    ):
        other = {module: f"{shared_functions()[module]}\nother = 1\n"}
        for source in (text, specialised, kernels[name]):
            assert (of(source, **other) != of(source)) == (f".{module} import" in source)


def test_functions_of_angles_are_part_of_kernels_that_have_them() -> None:
    for source, same in (("from .angle_functions import cos", False), ("from .functions import decay", True)):
        found = [
            fingerprint.of_kernels({"name": source}, {**shared_functions(), "angle_functions": angles})
            for angles in ("a = 1", "a = 2")
        ]
        assert (found[0] == found[1]) is same


def test_fingerprints_of_the_package_are_those_of_its_texts() -> None:
    templates.load()
    found = fingerprint.of_package()
    assert found == fingerprint.of_kernels(sources.every(), shared_functions())
    assert len(set(found.values())) == len(found)


def test_a_descriptor_kernel_moves_its_operands_by_descriptor_only() -> None:
    for kernel in catalogue.kernels(Layer()):
        moved = [
            s for s in ir.walk(kernel.body) if isinstance(s, (ir.Load, ir.Store)) and s.tensor in ("x", "B", "C", "y")
        ]
        described = kernel.name.endswith("_tma") or kernel.consumers > 0
        assert {s.descriptor for s in moved} <= {described}, kernel.name
