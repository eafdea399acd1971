"""A backward pass in slices of rows and heads: the gradients of the whole, the parts that kernels get, what is kept."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache
from math import prod
from typing import Any

import numpy as np
import pytest
import torch

from ssdgen.mamba2_ops import memory
from ssdgen.mamba2_ops.backward_defaults import default_backward
from ssdgen.mamba2_ops.errors import SsdWarning
from ssdgen.mamba2_ops.launchers import backward as launcher
from ssdgen.mamba2_ops.launching import Plan
from ssdgen.mamba2_ops.problem import Problem
from ssdgen.plan import catalogue, interpret, ir, parts
from ssdgen.spec.layer import Layer
from tests.parity.cases import Case, draw
from tests.parity.test_backward import CHUNKS, EVERYTHING, NAMES, WALK, adjoints, arguments, on_devices, run, verify
from tests.parity.test_backward_consumers import BASE, config, walked

SMALL = Case(batch=3, seqlen=37, nheads=4, headdim=16, dstate=16, options=EVERYTHING)
CONFIGS = {
    "chunks": {**CHUNKS, "parts": 2},
    "chunks-segments": {**CHUNKS, "segment": 32},
    "walk": WALK,
    "walk-segments": {**WALK, "segment": 32},
    "blocks": {**WALK, "kernels": {kernel: {"share": 8} for kernel in ("reverse_walk", "group_gradients")}},
}
# rows alone; heads of one group, of which slices leave parts; groups, then the heads of each
CASES = {
    "rows": (SMALL, 2),
    "rows and heads": (replace(SMALL, batch=2), 4),
    "heads": (replace(SMALL, batch=1, nheads=6), 4),
    "groups": (replace(SMALL, batch=1, ngroups=2), 2),
    "heads of groups": (replace(SMALL, batch=1, nheads=6, ngroups=2), 4),
}


@on_devices
@pytest.mark.parametrize("how", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize(("case", "slices"), CASES.values(), ids=CASES)
def test_every_gradient(case: Case, slices: int, how: dict[str, Any], device: str) -> None:
    verify({**how, "slices": slices}, case, device)


@on_devices
@pytest.mark.parametrize("how", [CHUNKS, WALK], ids=["chunks", "walk"])
@pytest.mark.parametrize("needs", [{"x"}, {"B"}, {"C", "z"}, {"dt"}, {"D"}, {"initial_states"}])
def test_only_what_is_asked_for(needs: set[str], how: dict[str, Any], device: str) -> None:
    verify({**how, "slices": 4}, replace(SMALL, batch=2), device, needs=frozenset(needs))


@on_devices
@pytest.mark.parametrize("how", [CHUNKS, WALK], ids=["chunks", "walk"])
@pytest.mark.parametrize("needs", [{"B"}, {"C", "z"}])
def test_one_operand_of_several_groups(needs: set[str], how: dict[str, Any], device: str) -> None:
    """Slices of the heads of each group leave parts of one gradient; the other is not wanted."""
    case, slices = CASES["heads of groups"]
    verify({**how, "slices": slices}, case, device, needs=frozenset(needs))


@on_devices
@pytest.mark.parametrize("slices", [1, 2, 8])
@pytest.mark.parametrize("how", [CHUNKS, WALK], ids=["chunks", "walk"])
def test_the_same_bits_from_call_to_call(how: dict[str, Any], slices: int, device: str) -> None:
    case = replace(SMALL, batch=2)
    first, second = (run({**how, "slices": slices}, case, device)[1] for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@on_devices
def test_rows_alone_give_the_bits_of_the_whole(device: str) -> None:
    whole, cut = (run({**CHUNKS, "slices": slices}, SMALL, device)[1] for slices in (1, 3))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


# ---- under a limit


@on_devices
@pytest.mark.parametrize("how", [CHUNKS, WALK], ids=["chunks", "walk"])
def test_a_limit_cuts_rows(how: dict[str, Any], device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(SMALL, seqlen=20)
    # two chunks of four heads and 16 by 16 states, in float32, kept twice: rows of 16 KiB
    monkeypatch.setenv("SSDGEN_MEMORY_LIMIT", "17K")
    verify(how, case, device)
    plan = launches(how, case, limit=17 << 10)
    assert kept(plan) <= 17 << 10 and count(plan, "chunk_states") == 3


def test_a_limit_cuts_the_heads_of_one_row() -> None:
    """Where kernels have descriptors; of others a slice holds the heads of all."""
    case = Case(1, 4096, 80, 64, 128, 1, "bfloat16", ("D",))
    how = default_backward(Problem(1, 4096, 80, 64, 128, 1, "bfloat16"), 132, "sm90")
    whole = launches(how, case)
    for limit in (80 << 20, 60 << 20, 40 << 20):
        plan = launches(how, case, limit=limit)
        assert kept(plan) <= limit < kept(whole)
        assert count(plan, "chunk_states") == count(plan, "chunk_adjoints") == count(plan, "chunk_gradients") > 1
    # walks that a config has in plain form take the other, which it needs
    mixed = {**how, "kernels": {"chunk_gradients": how["kernels"]["chunk_gradients"]}}
    plan = launches(mixed, case, limit=60 << 20)
    assert kept(plan) <= 60 << 20 and count(plan, "chunk_states_1consumer") > 1
    assert count(launches({**mixed, "slices": 4}, case), "chunk_states_1consumer") == 0
    plain = {**how, "chunk": 32, "kernels": {}}
    with pytest.warns(SsdWarning, match="the smallest slices of this backward pass keep"):
        memory.warn.cache_clear()
        launches(plain, case, limit=80 << 20)


def test_slices_are_as_few_as_fit() -> None:
    case = Case(8, 2048, 80, 64, 128, 1, "bfloat16", ("D",))
    how = default_backward(Problem(8, 2048, 80, 64, 128, 1, "bfloat16"), 132, "sm90")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [count(launches(how, case, limit=limit << 20), "chunk_states") for limit in (700, 400, 170, 90, 60)]
    assert found == [1, 2, 4, 8, 16]
    # what a config asks for is the least
    assert count(launches({**how, "slices": 4}, case, limit=400 << 20), "chunk_states") == 4


def test_launches_and_memory_of_a_model() -> None:
    """Walks and gradients of each slice, one that adds up parts of one row's heads, three for all."""
    case = Case(8, 2048, 80, 64, 128, 1, "bfloat16", ("D",))
    how = default_backward(Problem(8, 2048, 80, 64, 128, 1, "bfloat16"), 132, "sm90")
    whole = launches(how, case)
    for slices, added in ((1, 0), (2, 0), (4, 0), (8, 0), (16, 8)):
        plan = launches({**how, "slices": slices}, case)
        assert len(plan.launches) == 3 + 3 * slices + added
        # two parts of d_B and d_C of a row beside them
        assert kept(plan) == kept(whole) // slices + (2 * 2 * 2048 * 128 * 4 if added else 0)


# ---- kernels specialised by warps, of which the launches are looked at

SPECIALISED = {
    "chunks": config(2),
    "chunks-segments": config(1, segment=128, parts=2),
    "walk": walked(),
    "walk-segments": walked(segment=128),
}
LARGE = {
    "rows": (BASE, 2),
    "heads": (replace(BASE, batch=1, nheads=8), 4),
    "groups": (replace(BASE, batch=3, ngroups=2), 6),
    "heads of groups": (replace(BASE, batch=1, nheads=8, ngroups=2), 4),
    "odd heads": (replace(BASE, batch=1, nheads=6), 2),
}


@pytest.mark.parametrize("how", SPECIALISED.values(), ids=SPECIALISED)
@pytest.mark.parametrize(("case", "slices"), LARGE.values(), ids=LARGE)
def test_parts_of_tensors_lie_where_kernels_look_for_them(case: Case, slices: int, how: dict[str, Any]) -> None:
    """Kernels step over what is not strided by the extents that they are told: those of all slices together."""
    plan = launches({**how, "slices": slices}, case)
    checked = 0
    for launch in plan.launches:
        for tensor in kernels()[launch.kernel.__name__].tensors:
            given = launch.args.get(f"{tensor.name}_ptr")
            if given is None or tensor.stride_parameters() or given.dim() != len(tensor.dims):
                continue
            step = 1
            for axis in range(given.dim() - 1, -1, -1):
                assert given.stride(axis) == step or given.shape[axis] == 1, f"{launch.kernel.__name__}: {tensor.name}"
                checked += 1
                extent = launch.args.get(tensor.dims[axis])
                if extent is None:
                    break
                step *= extent
    assert checked > 40


@pytest.mark.parametrize("how", SPECIALISED.values(), ids=SPECIALISED)
@pytest.mark.parametrize(("case", "slices"), LARGE.values(), ids=LARGE)
def test_their_plans_interpreted_with_these_parts(case: Case, slices: int, how: dict[str, Any]) -> None:
    """Every launch in float64, on the parts of tensors that it would get: the gradients of the whole."""
    case = replace(case, seqlen=129 if "segment" in how else 65, dstate=16)
    whole, cut = (interpreted({**how, "slices": count}, case) for count in (1, slices))
    assert whole.keys() == cut.keys()
    for name, value in whole.items():
        assert torch.isfinite(value).all(), name
        torch.testing.assert_close(cut[name], value, rtol=1e-9, atol=1e-9, msg=name)


def interpreted(how: dict[str, Any], case: Case) -> dict[str, torch.Tensor]:
    plan = launches(how, case)
    call = draw(case)
    d_y, d_final = adjoints(case, True)
    given = arguments(call, d_y, d_final)
    tensors: dict[str, Any] = {}
    for name, tensor in plan.tensors.items():
        if name in given:
            tensors[name] = None if tensor is None else given[name].double()
    for name, (shape, _) in {**plan.buffers, **plan.scratch}.items():
        tensors[name] = torch.full(shape, np.nan, dtype=torch.float64)
        if "+" in name:
            tensors |= dict(zip(name.split("+"), tensors[name].unbind(), strict=True))
    for name, (slot, cuts) in plan.views.items():
        tensors[name] = tensors[slot]
        for axis, first, extent in cuts:
            tensors[name] = tensors[name].narrow(axis, first, extent)
    for launch in plan.launches:
        shares = {"p_blocks": len(tensors["d_dt_scores"]), "n_blocks": len(tensors["d_left_decay"])}
        _interpret(launch, tensors, case, shares)
    return launcher._results({**given, **tensors}, launcher._left_as(given, needs(given)))


def _interpret(launch: Any, tensors: dict[str, Any], case: Case, shares: dict[str, int]) -> None:
    """Run a launch by its plan.  What it is told of extents is that of the parts that it gets.

    shares: programs that share out headdim and dstate.
    """
    kernel = kernels()[launch.kernel.__name__]
    names = {"batch": case.batch, "nheads": case.nheads, "ngroups": case.ngroups, "nchunks": -(-case.seqlen // 64)}
    names |= {"nsegments": -(-case.seqlen // launch.args.get("segment_len", case.seqlen)), **launch.args}
    names |= {"columns": launch.grid[1], **shares}
    arrays: dict[str, Any] = {}
    slots = {argument.rpartition("_")[0]: slot for argument, slot in launch.slots.items()}
    found = {name: tensors[slot] for name, slot in slots.items()}
    x = next((found[name] for name in ("x", "d_y") if found.get(name) is not None), None)
    if x is not None and "nheads" in kernel.sizes:
        batch, heads, groups = x.shape[0], x.shape[2], found.get("B", found.get("C")).shape[2]
        if "d_B" in found and found["d_B"].dim() == 1:
            # parts one after the other, of twice as many rows to the kernel
            rows = (batch, names["seqlen"], names["ngroups"], names["DSTATE"])
            size = prod(rows)
            shared = names["parts"]
            each = launch.grid[0] // groups
            for name in ("d_B", "d_C"):
                begin = found[name].storage_offset()
                steps = (2 * size, *torch.empty(rows, device="meta").stride())
                shape = (each, *rows[:2], groups, rows[3])
                found[name] = found[name].as_strided(shape, steps, begin)
            names["parts"] = each
            assert shared % each == 0
        elif "parts" in names:
            names["parts"] = launch.grid[0] // groups
        names |= {"batch": batch, "nheads": heads, "ngroups": groups}
    for tensor in kernel.tensors:
        value = found.get(tensor.name)
        if value is not None:
            extents = tuple(names.get(dim) if dim in names else int(dim) for dim in tensor.dims)
            if tensor.name == "D":
                value = value.view(len(value), -1).expand(extents)
            elif tensor.name == "parts":
                value = value[: prod(extents)]
            elif tensor.name in ("states", "d_states"):
                # of kernels without descriptors, with room for the heads of all slices
                value = value.narrow(2, 0, extents[2])
            # axes of one entry, and states as one number after the other, come and go
            value = value.view(extents)
        arrays[tensor.name] = None if value is None else value.numpy()
    flags = {name: bool(names[name]) for name in kernel.flags}
    reals = {name: float(names[name]) for name in kernel.reals}
    interpret.run(kernel, arrays, names, {name: names[name] for name in kernel.constants}, flags, reals)


# ---- what they share


def launches(how: dict[str, Any], case: Case, limit: int = 0) -> Plan:
    meta = draw(replace(case, seqlen=min(case.seqlen, 300))).on("meta") if case.seqlen > 300 else draw(case).on("meta")
    given = arguments(meta, *(t.to("meta") for t in _adjoints(meta, case)))
    if case.seqlen > 300:
        for name, value in given.items():
            if isinstance(value, torch.Tensor) and value.dim() > 1 and value.shape[1] == 300:
                shape = (value.shape[0], case.seqlen, *value.shape[2:])
                given[name] = torch.empty(shape, dtype=value.dtype, device="meta")
    tensors = launcher._tensors(**{name: given[name] for name in TENSORS})
    return launcher._plan(how, tensors, given.get("dt_softplus", False), given["dt_limit"], needs(given), limit)


TENSORS = ("x", "dt", "A", "B", "C", "d_y", "d_final_states", "D", "z", "dt_bias", "initial_states", "seq_idx")


def _adjoints(meta: Any, case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    x = meta.operands["x"]
    return torch.empty_like(x), torch.empty(case.batch, case.nheads, case.headdim, case.dstate, device="meta")


def needs(given: dict[str, Any]) -> frozenset[str]:
    return frozenset(name for name in NAMES if given.get(name) is not None)


def kept(plan: Plan) -> int:
    names = ("states", "d_states", "summary", "d_summary", "parts_of_groups")
    return sum(prod(shape) * dtype.itemsize for name, (shape, dtype) in plan.scratch.items() if name in names)


def count(plan: Plan, kernel: str) -> int:
    return sum(launch.kernel.__name__.startswith(kernel) for launch in plan.launches)


@cache
def kernels() -> dict[str, ir.Kernel]:
    layer = Layer()
    every = (*catalogue.kernels(layer), *catalogue.backward(layer))
    return {kernel.name: kernel for kernel in every} | {name: kernel for name, (kernel, _) in parts.kernels().items()}
