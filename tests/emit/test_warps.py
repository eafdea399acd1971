"""Kernels specialised by warps, as text: nothing is read before it is there, and all that is awaited is announced."""

from __future__ import annotations

import ast
import re
from collections import Counter

import pytest
import sympy

from ssdgen.emit import environment, stages
from ssdgen.emit import kernel as emission
from ssdgen.pack import templates
from ssdgen.plan import catalogue, ir
from ssdgen.plan.ir import Kernel
from ssdgen.plan.schedules import adjoint, reverse_tiles, walk
from ssdgen.spec import decompose
from ssdgen.spec import layer as formulas
from ssdgen.spec.decompose import decay
from ssdgen.spec.layer import Layer
from ssdgen.spec.layouts import LAYOUTS, MULTI_HEAD
from ssdgen.spec.masks import FAMILIES, NONE
from tests.emit import sources
from tests.emit.roles import (
    NotSeen,
    allocated,
    calls,
    check_fences,
    computing,
    functions,
    products,
    stage_loop,
)

WALKS = (*catalogue.walks(True), *catalogue.walks(False), *catalogue.keeping())
SHAPES = {shape.name: shape for shape in WALKS if shape.consumers}
NAMES = sorted((*SHAPES, *catalogue.SPECIALISED))
# with decays and B and C shared; without decays; with B and C per head, where the backward pass has no such kernels
CASES = [
    pytest.param(layer, name, id=f"{name}-{kind}")
    for kind, layer, names in (
        ("ssd", Layer(), NAMES),
        ("none", Layer(family=NONE), sorted((*SHAPES, *catalogue.specialised(Layer(family=NONE))))),
        ("multi-head", Layer(layout=MULTI_HEAD), sorted(SHAPES)),
    )
    for name in names
]
EACH = pytest.mark.parametrize(("layer", "name"), CASES)
EVERY = pytest.mark.parametrize("name", NAMES)
BARRIERS = ("full", "empty", "turn", "fixed")


def consumers_of(name: str) -> int:
    return int(re.findall(r"(\d)consumer", name)[0])


def has_roles(name: str) -> bool:
    return name.startswith(("chunk_gradients", "group_gradients"))


def products_of(name: str, layer: Layer) -> dict[str, int]:
    """Products of each function by its plan, those of the loop twice, as the walk over its text has them.

    Those that are issued ahead are issued before the loop too.
    """
    kernel = plan(name, layer)
    names = [f"compute_{role}" for role in kernel.roles] or ["compute"]
    every = [(sum(isinstance(s, ir.Dot) for s in ir.walk(part.body)), part) for part in stages.roles(kernel)]
    inside = [sum(isinstance(s, ir.Dot) for s in ir.walk(stages.stage_loop(part).body)) for _, part in every]
    ahead = len(stages.products_ahead(kernel))
    return {role: all_ + again + ahead for role, (all_, _), again in zip(names, every, inside, strict=True)}


def plan(name: str, layer: Layer) -> Kernel:
    return walk.kernel(layer, SHAPES[name]) if name in SHAPES else catalogue.SPECIALISED[name](layer)


# ---- products


@EACH
def test_products_are_waited_for_before_they_are_read(name: str, layer: Layer) -> None:
    found = products(sources.consumers(layer)[name])
    assert not any(role.products for role in found.values()), "products are under way at the end"
    assert {role: under_way.issued for role, under_way in found.items()} == products_of(name, layer)


@EVERY
def test_a_wait_that_is_missing_is_found(name: str) -> None:
    """The check above sees every wait that is left out, and every one that waits for too few.

    Of an operand in two terms the first may be waited for early, only so that it gives its registers back: without
    that wait all is waited for later.
    """
    lines = sources.consumers()[name].splitlines()
    waits = [at for at, line in enumerate(lines) if "= warpgroup_mma_wait(" in line]
    assert waits
    for at in waits:
        # some are broken over three lines
        pad = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
        stop = at if lines[at].endswith(")") else lines.index(f"{pad})", at)
        text = " ".join(line.strip() for line in lines[at : stop + 1])
        too_few = pad + re.sub(r"wait\(\s*(\d)", lambda match: f"wait({int(match[1]) + 1}", text)
        assert too_few.strip() != text
        for line in (f"{pad}pass", too_few):
            try:
                found = products("\n".join([*lines[:at], line, *lines[stop + 1 :]]))
                assert not any(role.products for role in found.values())
            except AssertionError:
                continue
            assert line is not too_few and re.match(r"\s*\w+_rest_left = gl.convert_layout", lines[stop + 1]), text


@pytest.mark.parametrize("name", [name for name in NAMES if "_ahead" in name])
def test_what_is_issued_ahead_is_of_the_next_stage(name: str) -> None:
    """At the end of a stage, from tiles of the one that was waited for; there before other products follow."""
    (compute,) = computing(sources.consumers()[name]).values()
    loop = stage_loop(compute)
    order = [ast.unparse(stmt) for stmt in loop.body]
    issued = [line.partition(" = ")[0] for line in order if " = warpgroup_mma(" in line]
    waits = [line for line in order if "warpgroup_mma_wait(" in line]
    assert issued[0] == "y" and issued[-2:] == ["state", "CB"] and waits[0].startswith("CB = warpgroup_mma_wait(0")
    following = order.index("following = (step + 1) % STAGES")
    assert order[following + 1].startswith("mbarrier.wait(full.index(following)")
    assert [line for line in order if ".index(following)" in line][1:] == order[following + 2 : following + 4]
    assert order[following + 4] == (
        "CB = warpgroup_mma(B_next_tile, C_next_tile.permute((1, 0)), "
        "gl.zeros([CHUNK, CHUNK], gl.float32, BY_CHUNK), use_acc=False, is_async=True)"
    )
    stored = next(at for at, stmt in enumerate(loop.body) if calls(stmt, "tma.async_copy_shared_to_global"))
    assert stored < following
    # the same product before the loop, from the first stage; two stages are in use at once
    before = [ast.unparse(stmt) for stmt in compute.body[: compute.body.index(loop)]]
    assert before[-1] == order[following + 4] and "gl.static_assert(STAGES > 1)" in before
    assert [line for line in before if "_tiles.index(0)" in line] == [
        f"{name}_next_tile = {name}_tiles.index(0).reshape([CHUNK, BLOCK_N])" for name in "CB"
    ]


# ---- barriers


def barrier_calls(node: ast.AST, what: str) -> list[tuple[str, str]]:
    """(barrier, the rest of the arguments) of calls of mbarrier.`what`, with the loading warp's name spelled out."""
    found = []
    for call in calls(node, f"mbarrier.{what}"):
        barrier, *rest = (ast.unparse(argument) for argument in call.args)
        barrier = "full.index(stage)" if barrier == "ready" else barrier
        found.append((barrier, ", ".join([*rest, *(ast.unparse(word) for word in call.keywords)])))
    return found


@EACH
def test_every_wait_has_its_arrival(name: str, layer: Layer) -> None:
    """Each barrier is made with the count of its arrivals; who waits for it waits for another's arrival."""
    text = sources.consumers(layer)[name]
    roles, consumers = functions(text), consumers_of(name)
    # in turns where a product multiplies what is made of the first, and all consumers do the same
    ahead, aside = "_ahead" in name, "_inline" in name
    turns = consumers == 2 and name.startswith(("single_pass", "reverse_walk"))
    fixed = [("fixed.index(0)", "0")] if has_roles(name) and "by_head" not in name else []
    inits = dict(barrier_calls(roles[name], "init"))
    # a stage is full when its tiles are there and, where they are made aside, the step sizes of each consumer
    filling = 1 + consumers if aside else 1
    wanted = {"full.index(stage)": f"count={filling}", "empty.index(stage)": f"count={consumers}"}
    wanted |= {"turn.index(consumer)": "count=1"} if turns else {}
    assert inits == wanted | ({"fixed.index(0)": "count=1"} if fixed else {})
    # the loading warp: empty -> tiles on their way, whose bytes are the one arrival of full
    load = roles["load_tiles"]
    assert "ready = full.index(stage)" in ast.unparse(load)
    assert barrier_calls(load, "wait") == [("empty.index(stage)", "step // STAGES & 1 ^ 1")]
    assert [barrier for barrier, _ in barrier_calls(load, "expect")] == [
        *(barrier for barrier, _ in fixed),
        "full.index(stage)",
    ]
    assert not barrier_calls(load, "arrive")
    if aside:
        # empty -> put there, which is an arrival of full: once a trip and as the last thing
        steps = stage_loop(roles["make_steps"])
        assert barrier_calls(steps, "wait") == [("empty.index(stage)", "step // STAGES & 1 ^ 1")]
        assert ast.unparse(steps.body[-1]) == "mbarrier.arrive(full.index(stage))"
    # a consumer: full -> done with the stage, once a trip and as the last thing
    in_turn = [("turn.index(consumer)", "step & 1 ^ 1 - consumer")] if turns else []
    for role, compute in computing(text).items():
        # B and C are not read by who adds up what is a sum over states
        waited = [] if role == "compute_states" else fixed
        full = [("full.index(stage)", "step // STAGES & 1")]
        if ahead:
            # every stage is waited for once, in order, and none that does not come
            after = ("full.index(following)", "(step + 1) // STAGES & 1, pred=step + 1 < chunks")
            full = [("full.index(0)", "0"), after]
            assert "following = (step + 1) % STAGES" in ast.unparse(compute)
        assert barrier_calls(compute, "wait") == [*waited, *full, *in_turn]
        given = [("turn.index(1 - consumer)", "")] if turns else []
        assert barrier_calls(compute, "arrive") == [*given, ("empty.index(stage)", "")]
        loop = stage_loop(compute)
        assert ast.unparse(loop.body[-1]) == "mbarrier.arrive(empty.index(stage))"
        # both go through the same stages: a wait or an arrival under a condition would keep the other waiting for ever
        assert ast.unparse(loop.iter) == ast.unparse(next(n for n in ast.walk(load) if isinstance(n, ast.For)).iter)
        for role in (load, compute, *([roles["make_steps"]] if aside else [])):
            for branch in (n for n in ast.walk(role) if isinstance(n, ast.If)):
                assert not any(calls(branch, f"mbarrier.{what}") for what in ("wait", "arrive", "expect"))
        if turns:
            order = [ast.unparse(stmt) for stmt in loop.body]
            first, wait = (
                next(at for at, line in enumerate(order) if f"= {call}(" in line)
                for call in ("warpgroup_mma", "warpgroup_mma_wait")
            )
            # its operands may be made in between
            waited = next(at for at, line in enumerate(order) if line.startswith("mbarrier.wait(turn."))
            assert first - 2 <= waited < first
            assert order[wait + 1].startswith("mbarrier.arrive(turn.")


@EACH
def test_every_tile_that_is_moved_is_allocated_and_expected(name: str, layer: Layer) -> None:
    """Its memory, its bytes in `expect`, its slot: by stage where consumers share it, else by stage and consumer.

    A tile that stays for the whole program has the one slot 0 and bytes of its own.
    """
    text, consumers = sources.consumers(layer)[name], consumers_of(name)
    roles = functions(text)
    load, computes = roles["load_tiles"], ast.unparse(ast.Module([*computing(text).values()], []))
    buffers = allocated(roles[name])
    moved: dict[str, Counter[str]] = {"0": Counter(), "stage": Counter(), "slot": Counter()}
    slots = {"0": "[1, ", "stage": "[STAGES, ", "slot": f"[STAGES * {consumers}, "}
    for call in calls(load, "tma.async_copy_global_to_shared"):
        descriptor, _, barrier, place = (ast.unparse(argument) for argument in call.args)
        tiles, slot = re.fullmatch(r"(\w+_tiles)\.index\((\w+)\)", place).groups()
        assert barrier == ("fixed.index(0)" if slot == "0" else "ready")
        moved[slot][descriptor] += 1
        assert buffers[tiles].dtype == f"{descriptor}.dtype" and buffers[tiles].layout == f"{descriptor}.layout"
        assert buffers[tiles].shape.startswith(slots[slot])
        # the consumers read it in the slot that it was put into
        assert f"{tiles}.index({slot})" in computes
    assert moved["stage"] if layer.layout.name == "multi-input" else moved["slot"]
    *of_fixed, expected = (amount for _, amount in barrier_calls(load, "expect"))
    assert expected == ("shared" if has_roles(name) else f"shared + {consumers} * own")
    amounts = {ast.unparse(n.target): ast.unparse(n.value) for n in ast.walk(load) if isinstance(n, ast.AnnAssign)}
    amounts |= {"fixed": "".join(of_fixed)}
    for amount, slot in (("shared", "stage"), ("own", "slot"), ("fixed", "0")):
        assert Counter(re.findall(r"(\w+)\.block_type\.nbytes", amounts.get(amount, ""))) == moved[slot]
    # what is per consumer is moved for each of them
    each = [n for n in ast.walk(load) if isinstance(n, ast.For) and ast.unparse(n.target) == "consumer"]
    assert [ast.unparse(loop.iter) for loop in each] == [f"gl.static_range({consumers})"] * bool(moved["slot"])
    copies = sum(len(calls(loop, "tma.async_copy_global_to_shared")) for loop in each)
    assert copies == sum(moved["slot"].values())
    # nothing is allocated in vain, and where all consumers do the same each has scratch of its own
    places = set(re.findall(r"(\w+_tiles)\.index", ast.unparse(load)))
    if "_inline" in name:
        # what is made aside has a slot of each stage for each consumer, where both find it
        made = re.findall(r"(\w+_tiles)\.index\(slot\)\.store", ast.unparse(roles["make_steps"]))
        assert made and all(buffers[tiles].shape.startswith(slots["slot"]) for tiles in made)
        assert all(f"{tiles}.index(slot)" in computes for tiles in made)
        places |= {*made}
    for tiles, buffer in buffers.items():
        if tiles not in (*places, *BARRIERS) and not has_roles(name):
            assert buffer.shape.startswith(f"[{consumers}, ") and f"{tiles}.index(consumer)" in computes
        assert tiles in BARRIERS or f"{tiles}.index(" in computes


@EACH
def test_products_read_what_was_put_into_shared_memory_after_a_fence(name: str, layer: Layer) -> None:
    """The matrix unit and the copy engine do not see a store before the fence."""
    for role in computing(sources.consumers(layer)[name]).values():
        check_fences(role)


@EVERY
def test_a_fence_that_is_missing_is_found(name: str) -> None:
    lines = sources.consumers()[name].splitlines()
    fences = [at for at, line in enumerate(lines) if line.strip() == "fence_async_shared()"]
    assert fences or name.startswith("segment")
    for at in fences:
        without = "\n".join([*lines[:at], lines[at].replace("fence_async_shared()", "pass"), *lines[at + 1 :]])
        with pytest.raises(NotSeen):
            for role in computing(without).values():
                check_fences(role)


@EACH
def test_roles_get_the_arguments_that_they_take(name: str, layer: Layer) -> None:
    """One `compute` per consumer, each with its own number, and one loading warp; registers that fit together.

    Where step sizes are made aside, a warp for each consumer has its number too.
    """
    text = sources.consumers(layer)[name]
    roles, consumers = functions(text), consumers_of(name)
    (start,) = calls(roles[name], "gl.warp_specialize")
    partitions = [(ast.unparse(p.elts[0]), [ast.unparse(a) for a in p.elts[1].elts]) for p in start.args[0].elts]
    computes = [*computing(text)] if has_roles(name) else ["compute"] * consumers
    aside = consumers if "_inline" in name else 0
    assert [role for role, _ in partitions] == [*computes, *["make_steps"] * aside, "load_tiles"]
    for at, (role, arguments) in enumerate(partitions):
        wanted = [argument.arg for argument in roles[role].args.args]
        number = str(at - consumers if role == "make_steps" else at)
        assert arguments == [number if argument == "consumer" else argument for argument in wanted]
    options = {word.arg: ast.literal_eval(word.value) for word in start.keywords}
    assert options["worker_num_warps"] == [4] * (consumers - 1) + [1] * (aside + 1)
    assert len(options["worker_num_regs"]) == consumers + aside
    # what the kernel before leaves is waited for before any role starts and the next kernel is let go; where a call may
    # do without, the last thing that the kernel does is to wait for its end
    order = [ast.unparse(stmt) for stmt in roles[name].body]
    at = next(index for index, stmt in enumerate(order) if stmt.startswith("gl.warp_specialize("))
    if "BESIDE" in [argument.arg for argument in roles[name].args.args]:
        assert order[at - 2 : at] == ["if not BESIDE:\n    gdc_wait()", "gdc_launch_dependents()"]
        assert order[at + 1 :] == ["if BESIDE:\n    gdc_wait()"]
    else:
        assert order[at - 2 : at] == ["gdc_wait()", "gdc_launch_dependents()"] and not order[at + 1 :]


# ---- the description


BREAKS = {
    "sign of a decay": (decompose, "decay", lambda log2_decay: decay(-log2_decay)),
    "no decay": (decompose, "decay", lambda log2_decay: sympy.Integer(1)),
    "twice the factor dt": (formulas, "input_weight", lambda dt: 2 * dt),
    "skip subtracted": (formulas, "skip", lambda y, d, x: y - d * x),
    "gate without its sigmoid": (formulas, "gate", lambda y, z: y * z),
}
# what each kernel has: how many consumers and tiles it has makes no difference to its formulas
OF_ALL = {"sign of a decay", "no decay"}
SEEN = {
    "single_pass_2terms_2consumers": {*BREAKS},
    "single_pass_2terms_1consumer_ahead": {*BREAKS},
    "segment_state_1consumer": {*OF_ALL, "twice the factor dt"},
    "chunk_states_1consumer": {*OF_ALL, "twice the factor dt"},
    "chunk_adjoints_1consumer": {*OF_ALL, "gate without its sigmoid"},
    "chunk_gradients_2consumers": {*BREAKS},
    "chunk_gradients_by_head_2consumers": {*BREAKS},
    # d_z and y are not theirs; the walk back runs without the gate
    "reverse_walk_4n_blocks_2consumers": {*BREAKS} - {"gate without its sigmoid"},
    "reverse_walk_4n_blocks_left_2consumers": {*BREAKS} - {"gate without its sigmoid"},
    "group_gradients_2p_blocks_2consumers": {*BREAKS} - {"skip subtracted"},
}


def bodies_of(name: str) -> list[str]:
    """What the consumers of a kernel do, as it is described now."""
    kernel = plan(name, Layer())
    templates.load()
    text = emission.module(kernel, catalogue.graph(kernel, Layer()))
    return [ast.unparse(role) for role in computing(text).values()]


@pytest.fixture
def adjoints_anew():
    """The graph of the adjoint is made once per process; here it is made of a description that is broken."""
    caches = (adjoint.graph, reverse_tiles.graph)
    for graph in caches:
        graph.cache_clear()
    yield
    for graph in caches:
        graph.cache_clear()


@pytest.mark.parametrize("broken", BREAKS)
@pytest.mark.parametrize("name", SEEN)
def test_a_broken_description_is_seen_in_the_source(
    name: str, broken: str, monkeypatch: pytest.MonkeyPatch, adjoints_anew: None
) -> None:
    """In the statements, not only in the equations above them."""
    before = [ast.unparse(role) for role in computing(sources.consumers()[name]).values()]
    monkeypatch.setattr(*BREAKS[broken])
    assert (bodies_of(name) != before) == (broken in SEEN[name])


# every family and every layout, each with one of the others
PAIRS = [*((name, "multi-input") for name in FAMILIES), *(("ssd", name) for name in LAYOUTS if name != "multi-input")]


@pytest.mark.parametrize(("family", "layout"), [*PAIRS, ("none", "multi-head")])
def test_every_family_and_layout_is_emitted_with_the_same_templates(family: str, layout: str) -> None:
    templates.load()
    before = dict(environment._sources)
    over = Layer(FAMILIES[family], LAYOUTS[layout])
    found = sources.consumers(over)
    assert environment._sources == before == templates.read()
    assert sorted(found) == sorted((*SHAPES, *catalogue.specialised(over)))
