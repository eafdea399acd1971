"""The ladder: the first step with a fitting record wins, and one warning says which it was."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from ssdgen.runtime import ladder, select
from ssdgen.runtime.backward_defaults import default_backward
from ssdgen.runtime.defaults import default_config
from ssdgen.runtime.errors import RecordError, SsdWarning, UntunedError
from ssdgen.runtime.match import Gpu
from ssdgen.runtime.part_problem import of_conv, of_norm
from ssdgen.runtime.problem import Problem
from ssdgen.runtime.records import DIRECTIONS, PARTS

H200 = Gpu("NVIDIA H200", "sm90", 132)
PROBLEM = Problem(8, 2048, 80, 64, 128, 1, "bfloat16")


def record(label: str, problem: Problem = PROBLEM, **changes) -> dict:
    sizes = ("batch", "seqlen", "nheads", "headdim", "dstate", "ngroups", "dtype")
    heads = changes.pop("heads", 1)
    return {
        "problem": {name: getattr(problem, name) for name in sizes},
        "config": {"schedule": label, "kernels": {"single_pass": {"heads": heads}}},
        "provenance": "measured",
        "time_us": 100.0,
    } | changes


def put(root: Path, records: list[dict], name: str = "NVIDIA H200", arch: str = "sm90") -> None:
    folder = root / f"{arch}_{name.replace(' ', '_')}"
    folder.mkdir(parents=True)
    (folder / "gpu.json").write_text(json.dumps({"arch": arch, "name": name, "schema": 1}))
    for direction in DIRECTIONS:
        own = [entry for entry in records if entry.get("direction", "forward") == direction]
        (folder / f"ssd_{direction}.json").write_text(json.dumps({"schema": 1, "records": own}))


def of_backward(label: str, problem: Problem = PROBLEM, consumers: int = 0, **changes) -> dict:
    made = record(label, problem, direction="backward", **changes)
    made["config"]["kernels"] = {"chunk_gradients": {"consumers": consumers} if consumers else {}}
    return made


class Pack:
    """An installed pack, whose digests are another test's (test_packs)."""

    name = "a_pack"

    def __init__(self, records: Path) -> None:
        self.records, self.manifest = records, {}

    def check_records(self) -> None: ...


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The four places of the ladder, empty and away from this machine's own."""
    places = {name: tmp_path / name for name in ("own", "cache/ssdgen/tuned", "pack", "package/tuned")}
    for place in places.values():
        place.mkdir(parents=True)
    for name in ("SSDGEN_NO_TUNE", "SSDGEN_ASSERT_TUNED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SSDGEN_TUNED", str(places["own"]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(ladder, "PACKAGE", tmp_path / "package")
    monkeypatch.setattr(ladder.packs, "installed", cache(lambda: (Pack(places["pack"]),)))
    select.forget()
    yield dict(zip(("own", "cache", "pack", "bundled"), places.values(), strict=True))
    select.forget()


def chosen(problem: Problem = PROBLEM, gpu: Gpu = H200, direction: str = "forward") -> str:
    """The label of the record, quietly."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SsdWarning)
        return select.choose(problem, gpu, direction).config["schedule"]


def test_each_step_stands_above_the_next(roots: dict[str, Path]) -> None:
    assert select.choose(PROBLEM, Gpu("cpu", "cpu", 1)).record is None
    for place in reversed(roots):
        put(roots[place], [record(place)])
        select.forget()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert select.choose(PROBLEM, H200).config["schedule"] == place


def test_another_gpu_of_the_architecture_comes_after_every_place(roots: dict[str, Path]) -> None:
    put(roots["own"], [record("h100")], name="NVIDIA H100")
    put(roots["cache"], [record("a100")], name="NVIDIA A100", arch="sm80")
    with pytest.warns(SsdWarning, match=r"NVIDIA H200.*a record of NVIDIA H100 from SSDGEN_TUNED"):
        assert select.choose(PROBLEM, H200).config["schedule"] == "h100"
    put(roots["bundled"], [record("h200")])
    select.forget()
    assert chosen() == "h200"


def test_without_records_the_default_and_one_warning(roots: dict[str, Path]) -> None:
    put(roots["own"], [record("other dtype", replace(PROBLEM, dtype="float32"))])
    with pytest.warns(SsdWarning, match="built-in default"):
        choice = select.choose(PROBLEM, H200)
    assert choice.config == default_config(PROBLEM, 132) and choice.record is None and not choice.exact
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        select.choose(replace(PROBLEM, seqlen=4096), H200)


def test_no_tune_means_the_default_without_a_word(roots, monkeypatch: pytest.MonkeyPatch) -> None:
    put(roots["own"], [record("own")])
    monkeypatch.setenv("SSDGEN_NO_TUNE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert select.choose(PROBLEM, H200).config == default_config(PROBLEM, 132)
    monkeypatch.setenv("SSDGEN_ASSERT_TUNED", "1")
    with pytest.raises(UntunedError, match="both set"):
        select.choose(PROBLEM, H200)


def test_assert_tuned(roots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSDGEN_ASSERT_TUNED", "1")
    with pytest.raises(UntunedError, match=r"no tuned record for batch 8, seqlen 2048.*on NVIDIA H200.*ssdgen tune"):
        select.choose(PROBLEM, H200)
    put(roots["pack"], [record("pack")])
    select.forget()
    assert select.choose(PROBLEM, H200).config["schedule"] == "pack"


def test_measured_beats_predicted(roots: dict[str, Path]) -> None:
    put(roots["own"], [record("predicted", provenance="predicted", time_us=1.0)])
    assert chosen() == "predicted"
    put(roots["bundled"], [record("measured", replace(PROBLEM, batch=1))])
    select.forget()
    assert chosen() == "measured"


def test_measured_on_a_related_gpu_beats_predicted_where_the_problem_is_near(roots: dict[str, Path]) -> None:
    far = replace(PROBLEM, batch=1)
    put(
        roots["own"],
        [record("predicted", provenance="predicted"), record("predicted far", far, provenance="predicted")],
    )
    put(roots["bundled"], [record("h100", replace(PROBLEM, seqlen=3072))], name="NVIDIA H100")
    with pytest.warns(SsdWarning, match=r"NVIDIA H200.*a record of NVIDIA H100"):
        assert not select.choose(PROBLEM, H200).exact
    assert chosen() == "h100" and chosen(far) == "predicted far"
    # without a prediction it need not be near, and what was measured on this GPU always comes first
    assert chosen(replace(far, dtype="bfloat16"), Gpu("NVIDIA GH200 480GB", "sm90", 132)) == "h100"
    put(roots["cache"], [record("h200", far)])
    select.forget()
    assert chosen() == "h200"


def test_the_nearest_problem(roots: dict[str, Path]) -> None:
    put(
        roots["own"],
        [
            record("short", replace(PROBLEM, seqlen=512)),
            record("same", PROBLEM),
            record("long", replace(PROBLEM, seqlen=65536, batch=1)),
            record("wide", replace(PROBLEM, headdim=128)),
            record("heads in fours", replace(PROBLEM, nheads=24), heads=4),
        ],
    )
    assert chosen(replace(PROBLEM, seqlen=2500)) == "same"
    assert chosen(replace(PROBLEM, seqlen=300)) == "short"
    assert chosen(replace(PROBLEM, seqlen=131072, batch=1)) == "long"
    assert chosen(replace(PROBLEM, headdim=80)) == "wide"
    assert chosen(replace(PROBLEM, nheads=28)) == "heads in fours"
    # four heads at a time do not go into 30
    assert chosen(replace(PROBLEM, nheads=30)) == "same"
    # four packed sequences are like four rows
    assert chosen(replace(PROBLEM, batch=1, seqlen=8 * 512, sequences=8)) == "short"
    # tiles made for fewer states may not fit
    assert chosen(replace(PROBLEM, dstate=256)) == default_config(replace(PROBLEM, dstate=256), 132)["schedule"]


def test_a_stale_fingerprint_warns_once(roots: dict[str, Path]) -> None:
    (ladder.PACKAGE / "manifest.json").write_text(json.dumps({"fingerprint": {"single_pass": "new", "other": "x"}}))
    put(roots["own"], [record("fresh", fingerprint={"single_pass": "new"})])
    put(roots["cache"], [record("stale", replace(PROBLEM, dtype="float16"), fingerprint={"single_pass": "old"})])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        select.choose(PROBLEM, H200)
    with pytest.warns(SsdWarning, match=r"cache.*stale fingerprint"):
        select.choose(replace(PROBLEM, dtype="float16"), H200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        select.choose(replace(PROBLEM, dtype="float16", batch=1), H200)


def test_mistakes_on_the_ladder_are_named(roots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSDGEN_TUNED", str(tmp_path / "typo"))
    with pytest.raises(RecordError, match=r"SSDGEN_TUNED is .*typo.* no folder"):
        ladder.steps()


@pytest.mark.parametrize("place", ["ssdgen/mamba2_ops/tuned", "ssdgen/tuned", "ssdgen/_data/tuned", "tuned"])
def test_where_bundled_records_are_found(tmp_path: Path, place: str) -> None:
    package = tmp_path / "ssdgen" / "mamba2_ops"
    assert ladder.bundled_root(package) is None
    put(tmp_path / place, [])
    assert ladder.bundled_root(package) == tmp_path / place


def test_a_look_up_is_resolved_once_per_bucket(roots: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = select.choose
    monkeypatch.setattr(select, "choose", lambda *args: calls.append(args) or real(*args))
    device = torch.device("cpu")
    first = select.config_for(PROBLEM, device)
    assert all(select.config_for(replace(PROBLEM, seqlen=n), device) is first for n in range(2000, 2100))
    assert len(calls) == 1
    select.config_for(replace(PROBLEM, seqlen=8192), device)
    assert len(calls) == 2


def test_the_default_rule() -> None:
    assert default_config(PROBLEM, 132)["schedule"] == "single_pass"
    long = default_config(replace(PROBLEM, batch=1, seqlen=131072), 132)
    assert long["schedule"] == "segments" and long["segment"] % long["chunk"] == 0
    assert set(long["kernels"]) == {"dt_cumsum", "segment_state", "state_passing", "single_pass"}
    assert default_config(replace(PROBLEM, batch=1, seqlen=64), 132)["schedule"] == "single_pass"
    narrow = default_config(replace(PROBLEM, headdim=8), 132)["kernels"]["single_pass"]
    assert narrow["block_p"] == 16
    big = default_config(replace(PROBLEM, dstate=256, dtype="float32"), 132)
    assert big["chunk"] == 32 and big["kernels"]["single_pass"]["num_stages"] == 1
    assert json.loads(json.dumps(long)) == long


def test_a_pass_never_takes_a_record_of_the_other(roots: dict[str, Path]) -> None:
    put(roots["own"], [record("forward")])
    put(roots["bundled"], [of_backward("backward", replace(PROBLEM, batch=1))])
    assert chosen() == "forward" and chosen(direction="backward") == "backward"
    # however near it is
    put(roots["cache"], [of_backward("same")])
    select.forget()
    assert chosen() == "forward" and chosen(direction="backward") == "same"


def test_the_ladder_of_the_backward_pass_is_the_same(roots: dict[str, Path]) -> None:
    put(roots["own"], [of_backward("h100")], name="NVIDIA H100")
    with pytest.warns(SsdWarning, match=r"NVIDIA H200 for the backward pass of batch 8.*a record of NVIDIA H100"):
        assert select.choose(PROBLEM, H200, "backward").config["schedule"] == "h100"
    put(
        roots["cache"],
        [of_backward("predicted", provenance="predicted"), of_backward("near", replace(PROBLEM, batch=4))],
    )
    select.forget()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert select.choose(PROBLEM, H200, "backward").config["schedule"] == "near"


def test_without_records_each_pass_has_its_rule_and_one_warning(roots: dict[str, Path]) -> None:
    for direction, rule in (
        ("forward", default_config(PROBLEM, 132)),
        ("backward", default_backward(PROBLEM, 132, "sm90")),
    ):
        with pytest.warns(SsdWarning, match="built-in default"):
            choice = select.choose(PROBLEM, H200, direction)
        assert choice.config == rule and choice.record is None
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            select.choose(replace(PROBLEM, seqlen=4096), H200, direction)


def test_the_environment_counts_for_the_backward_pass_too(roots, monkeypatch: pytest.MonkeyPatch) -> None:
    put(roots["own"], [record("forward")])
    monkeypatch.setenv("SSDGEN_ASSERT_TUNED", "1")
    # a forward record is no tuning of the gradients
    with pytest.raises(UntunedError, match=r"no tuned record for the backward pass of batch 8.*ssdgen tune"):
        select.choose(PROBLEM, H200, "backward")
    put(roots["pack"], [of_backward("backward")])
    select.forget()
    assert select.choose(PROBLEM, H200, "backward").config["schedule"] == "backward"
    monkeypatch.delenv("SSDGEN_ASSERT_TUNED")
    monkeypatch.setenv("SSDGEN_NO_TUNE", "1")
    assert select.choose(PROBLEM, H200, "backward").config == default_backward(PROBLEM, 132, "sm90")


def test_gradients_specialised_for_one_headdim_are_not_for_another(roots: dict[str, Path]) -> None:
    """The launcher would take a plain kernel with such a config, and that is slower than the rule."""
    narrow = replace(PROBLEM, headdim=32)
    put(roots["own"], [of_backward("specialised", consumers=2)])
    assert chosen(direction="backward") == "specialised"
    assert chosen(replace(PROBLEM, dstate=64), direction="backward") == "specialised"
    assert chosen(narrow, direction="backward") == default_backward(narrow, 132, "sm90")["schedule"]
    put(roots["cache"], [of_backward("plain")])
    select.forget()
    assert chosen(narrow, direction="backward") == "plain"


def test_a_backward_look_up_is_resolved_once_and_may_be_replaced(
    roots: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = select.choose
    monkeypatch.setattr(select, "choose", lambda *args: calls.append(args) or real(*args))
    device = torch.device("cpu")
    first = select.backward_config_for(PROBLEM, device)
    assert select.backward_config_for(replace(PROBLEM, seqlen=2100), device) is first is not None
    assert len(calls) == 1
    # neither pass is in the way of the other
    forward = select.config_for(PROBLEM, device)
    select.replace_backward(PROBLEM, device, None)
    assert select.backward_config_for(PROBLEM, device) is None and select.config_for(PROBLEM, device) is forward
    select.forget()
    assert select.backward_config_for(PROBLEM, device) == first and len(calls) == 3


CONV = of_conv(8, 2048, 5376, 4, torch.bfloat16)
NORM = of_norm(16384, 8, 640, torch.bfloat16)


def of_part(direction: str, problem: Problem, **numbers: int) -> dict:
    made = record(direction, problem, direction=direction)
    made["config"]["kernels"] = {"kernel": numbers}
    return made


@pytest.mark.parametrize("direction", PARTS)
def test_every_part_goes_down_the_same_ladder(direction: str, roots: dict[str, Path]) -> None:
    problem = NORM if direction.startswith("norm") else CONV
    with pytest.warns(SsdWarning, match="no config was tuned on NVIDIA H200 for .*built-in default.*--pass layer"):
        default = select.choose(problem, H200, direction)
    assert default.record is None and len(default.config["kernels"]) == 1
    put(roots["bundled"], [of_part(direction, problem, block_d=256)])
    select.forget()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choice = select.choose(problem, H200, direction)
        found = select.part_config_for(direction, problem, torch.device("cpu"))
    assert choice.config["kernels"] == {"kernel": {"block_d": 256}} and choice.exact
    # there is no GPU here; what a look-up has found stays the same object
    assert found is select.part_config_for(direction, problem, torch.device("cpu"))
    other = next(each for each in PARTS if each != direction)
    assert chosen(problem, H200, other) != direction


def test_one_warning_for_all_parts(roots: dict[str, Path]) -> None:
    with pytest.warns(SsdWarning) as heard:
        for direction in PARTS:
            select.choose(NORM if direction.startswith("norm") else CONV, H200, direction)
    assert len(heard) == 1


def test_a_convolution_of_other_sizes_has_as_many_programs(roots: dict[str, Path]) -> None:
    """8 rows x 21 tiles of channels x 16 parts were tuned."""
    put(roots["own"], [of_part("conv_forward", CONV, block_d=256, part=128, num_warps=1)])
    for rows, length, parts in ((8, 2048, 16), (4, 4096, 32), (1, 2048, 64), (64, 2048, 2), (4096, 2048, 1)):
        found = select.choose(of_conv(rows, length, 5376, 4, torch.float16), H200, "conv_forward").config
        assert found["schedule"] == "conv_forward"
        assert -(-length // found["kernels"]["kernel"]["part"]) == parts, (rows, length)


def test_rows_of_other_lengths_have_as_many_walks(roots: dict[str, Path]) -> None:
    """80 heads in three segments were tuned, which fill the GPU: 240 walks, whatever the length."""
    tuned = Problem(1, 16384, 80, 64, 128, 1, "bfloat16")
    cut = record("segments", tuned)
    cut["config"] |= {"chunk": 64, "segment": 5504}
    put(roots["own"], [cut])
    for batch, length, nheads, segments in ((1, 16384, 80, 3), (1, 2**20, 80, 3), (2, 65536, 60, 2), (4, 16384, 80, 1)):
        found = select.choose(replace(tuned, batch=batch, seqlen=length, nheads=nheads), H200).config
        assert found["segment"] % 64 == 0 and -(-length // found["segment"]) == segments, (batch, length)
    # a short row is not cut into many pieces, each with a state to write and to read
    assert select.choose(replace(tuned, seqlen=1024), H200).config["segment"] == 512


def test_a_norm_of_few_rows_has_no_more_of_them_in_a_program(roots: dict[str, Path]) -> None:
    put(roots["own"], [of_part("norm_forward", NORM, block_t=4, num_warps=8)])
    for rows, block_t in ((1, 1), (2, 2), (3, 4), (4096, 4)):
        found = select.choose(of_norm(rows, 8, 640, torch.bfloat16), H200, "norm_forward").config["kernels"]
        assert found == {"kernel": {"block_t": block_t, "num_warps": 8}}


def test_a_norm_takes_no_record_of_rows_of_another_width(roots: dict[str, Path]) -> None:
    put(roots["own"], [of_part("norm_backward", NORM, block_t=4, programs=33)])
    near, wider, narrower = (of_norm(4096, 16, size, torch.bfloat16) for size in (600, 1280, 320))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SsdWarning)
        found = select.choose(near, H200, "norm_backward").config["kernels"]
        # twice as many groups share the programs
        assert found == {"kernel": {"block_t": 4, "programs": 16}}
        for problem in (wider, narrower):
            assert select.choose(problem, H200, "norm_backward").record is None
