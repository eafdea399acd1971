"""Every decode kernel compiles for every architecture, with no GPU; at a model's sizes nothing spills."""

from __future__ import annotations

import os
import re
import subprocess
from math import inf
from tempfile import NamedTemporaryFile
from typing import Any

import pytest

pytest.importorskip("triton")

import torch
import triton
from triton import knobs

from ssdgen import gpus
from ssdgen.mamba2_ops import storage
from ssdgen.mamba2_ops.decode_defaults import default_decode
from ssdgen.mamba2_ops.launchers import decode as launcher
from ssdgen.mamba2_ops.problem import Problem
from ssdgen.plan import catalogue
from ssdgen.tune import compile as compiling
from ssdgen.tune.compile import compile_launch

pytestmark = [
    pytest.mark.slow,
    # an interpreted kernel has no code to compile
    pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="kernels are interpreted in this process"),
]

# sm_80, sm_86, sm_90, sm_100, gfx942
GPUS = ("a100", "rtx3090", "h200", "b200", "mi300x")
STATES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8, "float8": torch.float8_e4m3fn}


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A cache of this run's own, so that everything is compiled, and once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def launches(
    state: str,
    dstate: int,
    *,
    batch: int = 4,
    tied: bool = True,
    kept: int = 0,
    everything: bool = True,
    rows: int = 8,
    heads: int = 1,
    tokens: int | None = None,
    D: torch.Tensor | None = None,
    **numbers: Any,
) -> list[Any]:
    """Of one step on tensors without contents.  D: None for one number for each head."""
    h, p, bf16 = 8, 64, torch.bfloat16

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    row = (batch,) if tokens is None else (batch, tokens)
    each, every = ((), ()) if tied else ((p,), (p, dstate))
    tensors: dict[str, torch.Tensor | None] = {
        "state": empty(batch, h, p, dstate, dtype=STATES[state]),
        "state_scale": empty(batch, h, p) if state in ("int8", "float8") else None,
        **{name: empty(*row, h, p, dtype=bf16) for name in ("x", "y")},
        **{name: empty(*row, 2, dstate, dtype=bf16) for name in ("B", "C")},
        "dt": empty(*row, h, *each, dtype=bf16),
        "A": empty(h, *every),
        "D": empty(h) if D is None else D,
        "dt_bias": empty(h, *each),
    }
    if everything:
        tensors["z"] = empty(batch, h, p, dtype=bf16)
        tensors["state_batch_indices"] = empty(batch, dtype=torch.int32)
        tensors["seed"] = empty(1, dtype=torch.int64) if state != "float32" else None
        if not kept and heads == 1 and not numbers.get("tiles"):
            tensors["step_states"] = empty(batch, 1, h, p, dstate, dtype=STATES[state])
            tensors["step_scales"] = empty(batch, 1, h, p) if tensors["state_scale"] is not None else None
    if kept:
        tensors |= {
            "kept_x": empty(batch, h, kept, p, dtype=bf16),
            "kept_dt": empty(batch, h, kept),
            "kept_B": empty(batch, 2, kept, dstate, dtype=bf16),
            "count": empty(batch, dtype=torch.int32),
        }
    config = {"kernels": {"state_step": {"block_p": rows, "num_warps": max(1, rows // 16), "heads": heads, **numbers}}}
    options = {"tied": tied, "tokens": tokens, "dt_softplus": True, "dt_limit": (0.0, inf), "pad_slot_id": -1}
    return launcher.launches(config, tensors, **options, update_state=True).launches


CALLS = {
    "state_step": launches("int8", 32),
    "state_step_2n": launches("bfloat16", 96),
    "state_step_untied": launches("float32", 16, tied=False),
    "state_step_untied_2n": launches("float32", 12, tied=False),
    "replay_step": launches("float8", 32, kept=3),
    "replay_step_2n": launches("bfloat16", 20, kept=5),
    "state_step_heads": launches("int8", 32, heads=2),
    "replay_step_heads": launches("bfloat16", 32, kept=3, heads=2),
    "state_step_1tile": launches("float32", 32, tiles=1),
    "state_step_2tiles": launches("bfloat16", 32, tiles=2, everything=False),
    "state_step_4tiles": launches("bfloat16", 32, tiles=4, everything=False),
    "state_step_4tiles_2ahead": launches("float32", 32, tiles=4, ahead=2),
    "state_step_8tiles_4ahead": launches("bfloat16", 32, tiles=8, ahead=4, everything=False),
    "state_step_1tile_units": launches("float8", 32, tiles=1),
    "state_step_2tiles_units": launches("float8", 32, tiles=2, everything=False),
    "state_step_4tiles_units": launches("int8", 32, tiles=4, everything=False),
    "state_step_4tiles_2ahead_units": launches("int8", 32, tiles=4, ahead=2, everything=False),
    "state_step_8tiles_4ahead_units": launches("float8", 32, tiles=8, ahead=4, everything=False),
    "replay_step_1tile": launches("float8", 32, kept=3, tiles=1),
    "replay_step_2tiles": launches("bfloat16", 32, kept=3, tiles=2),
    "replay_step_4tiles": launches("int8", 32, kept=17, tiles=4, everything=False),
    "replay_step_4tiles_2ahead": launches("bfloat16", 32, kept=3, tiles=4, ahead=2),
    "replay_step_8tiles_4ahead": launches("int8", 32, kept=3, tiles=8, ahead=4, everything=False),
}


def test_every_kernel_is_here() -> None:
    shipped = {*catalogue.DECODE, *catalogue.TILED}
    assert {launch.kernel.__name__ for each in CALLS.values() for launch in each} == shipped
    # what makes scores comes before a replay in tiles
    assert all(
        each[-1 if "replay" in name and "tile" in name else 0].kernel.__name__ == name for name, each in CALLS.items()
    )


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("name", CALLS)
def test_compiles(name: str, gpu: str) -> None:
    for launch in CALLS[name]:
        assert compile_launch(launch, gpus.find(gpu)).resources.registers > 0


@pytest.mark.parametrize(("state", "kept", "most"), [("int8", 0, 176), ("bfloat16", 0, 208), ("bfloat16", 15, 254)])
def test_heads_after_heads_keep_two_in_registers(state: str, kept: int, most: int) -> None:
    """The state that is computed and the next one's numbers, at the sizes of the 2.7B shape."""
    launch = launches(state, 128, batch=256, everything=False, rows=32, kept=kept, heads=4)[0]
    resources = compile_launch(launch, gpus.find("h200")).resources
    assert resources.spilled == 0 and resources.registers <= most


@pytest.mark.parametrize(
    ("state", "kept", "numbers", "loads", "most"),
    [
        ("int8", 0, {"rows": 16, "tiles": 4, "num_warps": 2}, 8, 136),
        ("int8", 0, {"rows": 8, "tiles": 4, "num_warps": 1, "maxnreg": 128}, 8, 128),
        ("bfloat16", 0, {"rows": 8, "tiles": 1, "num_warps": 1}, 4, 64),
        ("float32", 0, {"rows": 4, "tiles": 1, "num_warps": 1}, 4, 64),
        ("bfloat16", 15, {"rows": 16, "tiles": 4, "num_warps": 2, "early": True}, 16, 168),
        ("bfloat16", 15, {"rows": 8, "tiles": 2, "num_warps": 1, "early": True}, 8, 168),
    ],
)
def test_all_tiles_are_on_their_way_before_anything_is_waited_for(
    state: str, kept: int, numbers: dict[str, Any], loads: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the machine code: the assembler, too, would put a load behind arithmetic that waits for another."""
    made = compiled(monkeypatch)
    launch = launches(state, 128, batch=256, everything=False, kept=kept, **numbers)[-1]
    resources = compile_launch(launch, gpus.find("h200")).resources
    assert resources.spilled == 0 and resources.registers <= most
    code = instructions(made[0].asm["cubin"])
    assert [name for name in code[: code.index("BAR")] if name == "LDG.128"] == ["LDG.128"] * loads
    arithmetic = {"FFMA", "MUFU", "SHFL"}
    assert not arithmetic & set(code[: code.index("BAR")])


@pytest.mark.parametrize("kept", [0, 15])
def test_a_skip_weight_that_is_one_number_for_a_head_is_loaded_once(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = compiled(monkeypatch)
    of_channels = torch.empty(8, 64, device="meta")
    forms = {"of channels": of_channels, "of heads": of_channels[:, 0], "expanded": of_channels[:, :1].expand(8, 64)}
    for D in forms.values():
        launch = launches("bfloat16", 128, batch=256, everything=False, kept=kept, rows=16, tiles=4, D=D)[-1]
        compile_launch(launch, gpus.find("h200"))
    loads = dict(zip(forms, (instructions(each.asm["cubin"]).count("LDG") for each in made), strict=True))
    # each thread has eight rows of each of four tiles
    assert loads["of heads"] == loads["expanded"] == loads["of channels"] - 4 * 8 + 1


@pytest.mark.parametrize(("gpu", "most"), [("l40s", 0.6), ("h200", 0.6), ("b200", 0.7)])
def test_8_bit_floats_are_converted_by_instructions(gpu: str, most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the GPU has them, instead of by what takes their bits apart."""
    made = compiled(monkeypatch)
    for name in (storage.FORMATS[storage.FLOAT8], storage.NATIVE[storage.FLOAT8]):
        monkeypatch.setattr(launcher, "format_on", lambda *_, name=name: name)
        (launch,) = launches("float8", 128, everything=False, rows=16, tiles=4)
        compile_launch(launch, gpus.find(gpu))
    taken_apart, native = (len(instructions(each.asm["cubin"])) for each in made)
    assert native < most * taken_apart


@pytest.mark.parametrize("gpu", ["rtx3090", "h200", "b200"])
def test_bytes_do_not_become_numbers_by_slow_instructions(gpu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """I2F goes at an eighth of the rate, or a quarter; I2FP at half of it."""
    made, target = compiled(monkeypatch), gpus.find(gpu)
    for capability in (0, target.capability):
        with storage.planned_for(capability):
            (launch,) = launches("int8", 128, everything=False, rows=16, tiles=4)
        compile_launch(launch, target)
    portable, native = (instructions(each.asm["cubin"]) for each in made)
    rows_of_a_thread, numbers = 4, 16
    assert portable.count("I2F") >= rows_of_a_thread * numbers
    assert "I2F" not in native and len(native) < 1.05 * len(portable)


def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What Triton compiles from now on."""
    made: list[Any] = []
    compile_it = triton.compile
    monkeypatch.setattr(compiling.triton, "compile", lambda *a, **k: made.append(compile_it(*a, **k)) or made[-1])
    return made


def instructions(cubin: bytes) -> list[str]:
    """Names of a kernel's instructions in order, without what says how but for loads of 16 bytes."""
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-sass", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.findall(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", text)
    return ["LDG.128" if name.startswith("LDG.E.128") else name.partition(".")[0] for name in found]


@pytest.mark.parametrize(
    ("dstate", "options"),
    [
        # a group has four heads
        (32, {"heads": 8}),
        (96, {"heads": 2}),
        (32, {"heads": 2, "tied": False}),
        (32, {"heads": 2, "tokens": 3}),
        (96, {"early": True}),
    ],
)
def test_heads_that_do_not_go_together(dstate: int, options: dict[str, Any]) -> None:
    """Where a group has too few, or a call has what their kernel lacks, programs have one head each."""
    launch = launches("bfloat16", dstate, everything=False, **options)[0]
    assert "heads" not in launch.kernel.__name__ and not launch.early
    again = launches("bfloat16", 32, everything=False, heads=2, tokens=1)[0]
    assert again.kernel.__name__ == "state_step_heads" and again.args["HEADS"] == 2


@pytest.mark.parametrize("kept", [0, 3])
def test_one_that_starts_early_waits_before_it_reads(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launch says so to the driver, and the wait stands in front of every load."""
    made: list[Any] = []
    compile_it = triton.compile
    monkeypatch.setattr(compiling.triton, "compile", lambda *a, **k: made.append(compile_it(*a, **k)) or made[-1])
    launch = launches("int8", 32, kept=kept, everything=False, early=True)[0]
    assert launch.early and launch.options["launch_pdl"]
    compile_launch(launch, gpus.find("h200"))
    ptx = made[0].asm["ptx"]
    assert made[0].metadata.launch_pdl and 0 < ptx.index("griddepcontrol.wait") < ptx.index("ld.global")
    assert "griddepcontrol" not in compile_text(launches("int8", 32, kept=kept, heads=2)[0], made)


def test_one_that_starts_early_behind_its_scores_has_the_state_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for the scores alone: what a step before wrote is there when these start."""
    made: list[Any] = []
    compile_it = triton.compile
    monkeypatch.setattr(compiling.triton, "compile", lambda *a, **k: made.append(compile_it(*a, **k)) or made[-1])
    scores, step = launches("bfloat16", 32, kept=3, everything=False, tiles=2, early=True)
    assert not scores.early and step.early
    text, waiting = compile_text(scores, made), compile_text(step, made)
    assert 0 < text.index("griddepcontrol.launch_dependents") < text.index("ld.global")
    assert 0 < waiting.index("ld.global") < waiting.index("griddepcontrol.wait")
    (alone,) = launches("bfloat16", 32, everything=False, tiles=2, early=True)
    text = compile_text(alone, made)
    assert alone.early and 0 < text.index("griddepcontrol.wait") < text.index("ld.global")


def compile_text(launch: Any, made: list[Any]) -> str:
    compile_launch(launch, gpus.find("h200"))
    return made[-1].asm["ptx"]


@pytest.mark.parametrize("state", STATES)
def test_a_model_s_step_keeps_the_state_in_registers(state: str) -> None:
    """Whole heads of the 2.7B shape, one program for each: loads of 16 bytes, no mask, no spill."""
    (launch,) = launches(state, 128, batch=256, everything=False, rows=64)
    resources = compile_launch(launch, gpus.find("h200")).resources
    assert resources.spilled == 0 and resources.registers <= 168


@pytest.mark.parametrize("replay", [False, True])
@pytest.mark.parametrize("batch", [1, 256])
def test_the_default_divides_headdim(batch: int, replay: bool) -> None:
    for headdim, dstate in ((64, 128), (80, 16), (5, 100), (5120, 16)):
        for state in ("float32", "bfloat16", "int8"):
            problem = Problem(batch, 1, 8, headdim, dstate, 1, state)
            numbers = default_decode(problem, 132, "sm90", replay)["kernels"]["state_step"]
            assert headdim % numbers["block_p"] == 0 and numbers["num_warps"] in (1, 2, 4, 8)
