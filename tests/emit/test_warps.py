"""Kernels specialised by warps, as text: nothing is read before it is there, and all that is awaited is announced."""

from __future__ import annotations

import ast
import re
from collections import Counter
from dataclasses import dataclass, field

import pytest
import sympy

from ssdgen.emit import environment
from ssdgen.emit import kernel as emission
from ssdgen.pack import templates
from ssdgen.plan import catalogue
from ssdgen.plan.schedules import walk
from ssdgen.spec import decompose
from ssdgen.spec import layer as formulas
from ssdgen.spec.decompose import decay
from ssdgen.spec.layer import Layer
from ssdgen.spec.layouts import LAYOUTS, MULTI_HEAD, HeadLayout
from ssdgen.spec.masks import CONSTANT, FAMILIES, NONE, MaskFamily
from tests.emit import sources

LAYERS = {
    "ssd": Layer(),
    "constant": Layer(family=CONSTANT),
    "none": Layer(family=NONE),
    "multi-head": Layer(layout=MULTI_HEAD),
}
SHAPES = {shape.name: shape for outputs in (True, False) for shape in catalogue.walks(outputs) if shape.consumers}
NAMES = sorted(SHAPES)
EACH = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
EVERY = pytest.mark.parametrize("name", NAMES)
BARRIERS = ("full", "empty", "turn")


def functions(text: str) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}


def calls(node: ast.AST, name: str) -> list[ast.Call]:
    """Calls of a function by the name that it is written with."""
    return [n for n in ast.walk(node) if isinstance(n, ast.Call) and ast.unparse(n.func) == name]


def reads(node: ast.AST | None) -> set[str]:
    found = ast.walk(node) if node else ()
    return {n.id for n in found if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


# ---- products


class TooEarly(AssertionError):
    """A product's result or operand is touched while it may be under way."""


@dataclass
class UnderWay:
    """A walk over a consumer's statements in the order in which they run.

    products: those not waited for, oldest first: the result, and the registers that they read.
    """

    products: list[tuple[str, frozenset[str]]] = field(default_factory=list)
    issued: int = 0

    def run(self, body: list[ast.stmt]) -> None:
        for stmt in body:
            match stmt:
                case ast.For():
                    self.check(reads(stmt.iter), stmt)
                    # twice: what a trip leaves under way is there in the next
                    self.run(stmt.body)
                    self.run(stmt.body)
                case ast.If():
                    self.check(reads(stmt.test), stmt)
                    before = [*self.products]
                    self.run(stmt.body)
                    after, self.products = self.products, before
                    self.run(stmt.orelse)
                    if self.products != after:
                        raise TooEarly(f"a branch changes what is under way: {ast.unparse(stmt)}")
                case ast.Assign(targets=[target], value=ast.Call(func=ast.Name("warpgroup_mma")) as call):
                    self.issue(ast.unparse(target), call)
                case ast.Assign(targets=[target], value=ast.Call(func=ast.Name("warpgroup_mma_wait")) as call):
                    self.wait(ast.unparse(target), call)
                case _:
                    self.check(reads(stmt) | made(stmt), stmt)

    def check(self, touched: set[str], stmt: ast.stmt) -> None:
        for result, kept in self.products:
            if touched & {result, *kept}:
                raise TooEarly(f"{result} is under way at: {ast.unparse(stmt)}")

    def issue(self, result: str, call: ast.Call) -> None:
        left, right, accumulator = call.args
        options = {word.arg: ast.unparse(word.value) for word in call.keywords}
        assert options.pop("is_async") == "True"
        if options == {"use_acc": "False"}:
            assert ast.unparse(accumulator).startswith("gl.zeros(")
        else:
            # adding to a product that is under way is what the matrix unit does in order
            assert ast.unparse(accumulator) == result and not options
        if pending := {name for name, _ in self.products} & (reads(left) | reads(right)):
            raise TooEarly(f"{pending} is an operand and under way: {ast.unparse(call)}")
        registers = frozenset({left.id} if isinstance(left, ast.Name) and not left.id.endswith("_tile") else ())
        self.products.append((result, registers))
        self.issued += 1

    def wait(self, targets: str, call: ast.Call) -> None:
        (pending,) = (argument.value for argument in call.args if isinstance(argument, ast.Constant))
        (values,) = (word.value for word in call.keywords if word.arg == "deps")
        assert isinstance(pending, int) and isinstance(values, ast.Tuple)
        waited = [ast.unparse(value) for value in values.elts]
        assert targets.strip("()") == ", ".join(waited), "a wait gives back what it was given"
        assert pending < len(self.products), f"nothing to wait for: {ast.unparse(call)}"
        done, self.products = self.products[: len(self.products) - pending], self.products[-pending:] if pending else []
        busy = {result for result, _ in self.products}
        wanted = {result for result, _ in done} - busy | {name for _, kept in done for name in kept}
        assert set(waited) == wanted, "what comes out of a product passes through the wait for it, and nothing else"


def made(stmt: ast.stmt) -> set[str]:
    return {n.id for n in ast.walk(stmt) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def products(text: str) -> UnderWay:
    found = UnderWay()
    found.run(functions(text)["compute"].body)
    return found


@EACH
@EVERY
def test_products_are_waited_for_before_they_are_read(name: str, layer: Layer) -> None:
    found = products(sources.kernels(layer)[name])
    assert not found.products, "products are under way at the end"
    # of each tile of dstate one into the state and, with outputs, two into y; two more of the scores' two terms
    tiles = 2 if "_2n_" in name else 1
    assert found.issued == 2 * (3 * tiles + 2 if name.startswith("single_pass") else tiles)


@EVERY
def test_a_wait_that_is_missing_is_found(name: str) -> None:
    """The check above sees every wait that is left out, and every one that waits for too few."""
    lines = sources.kernels()[name].splitlines()
    waits = [at for at, line in enumerate(lines) if "= warpgroup_mma_wait(" in line and line.endswith(")")]
    assert waits
    for at in waits:
        too_few = re.sub(r"wait\((\d)", lambda match: f"wait({int(match[1]) + 1}", lines[at])
        for line in ("", too_few):
            with pytest.raises(AssertionError):
                assert not products("\n".join([*lines[:at], line, *lines[at + 1 :]])).products


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
@EVERY
def test_every_wait_has_its_arrival(name: str, layer: Layer) -> None:
    """Each barrier is made with the count of its arrivals; who waits for it waits for another's arrival."""
    roles = functions(sources.kernels(layer)[name])
    consumers = int(re.findall(r"(\d)consumer", name)[0])
    # in turns where products of a stage have more than one result
    turns = consumers == 2 and name != "segment_state_2consumers"
    inits = dict(barrier_calls(roles[name], "init"))
    wanted = {"full.index(stage)": "count=1", "empty.index(stage)": f"count={consumers}"}
    assert inits == wanted | ({"turn.index(consumer)": "count=1"} if turns else {})
    # the loading warp: empty -> tiles on their way, whose bytes are the one arrival of full
    load, compute = roles["load_tiles"], roles["compute"]
    assert "ready = full.index(stage)" in ast.unparse(load)
    assert barrier_calls(load, "wait") == [("empty.index(stage)", "step // STAGES & 1 ^ 1")]
    assert [barrier for barrier, _ in barrier_calls(load, "expect")] == ["full.index(stage)"]
    assert not barrier_calls(load, "arrive")
    # a consumer: full -> done with the stage, once a trip and as the last thing
    in_turn = [("turn.index(consumer)", "step & 1 ^ 1 - consumer")] if turns else []
    assert barrier_calls(compute, "wait") == [("full.index(stage)", "step // STAGES & 1"), *in_turn]
    given = [("turn.index(1 - consumer)", "")] if turns else []
    assert barrier_calls(compute, "arrive") == [*given, ("empty.index(stage)", "")]
    (loop,) = [n for n in ast.walk(compute) if isinstance(n, ast.For) and calls(n, "mbarrier.wait")]
    assert ast.unparse(loop.body[-1]) == "mbarrier.arrive(empty.index(stage))"
    # both go through the same stages: a wait or an arrival under a condition would keep the other waiting for ever
    assert ast.unparse(loop.iter) == ast.unparse(next(n for n in ast.walk(load) if isinstance(n, ast.For)).iter)
    for role in (load, compute):
        for branch in (n for n in ast.walk(role) if isinstance(n, ast.If)):
            assert not any(calls(branch, f"mbarrier.{what}") for what in ("wait", "arrive", "expect"))
    if turns:
        order = [ast.unparse(stmt) for stmt in loop.body]
        first, wait = (
            next(at for at, line in enumerate(order) if f"= {call}(" in line)
            for call in ("warpgroup_mma", "warpgroup_mma_wait")
        )
        # its operands may be made in between
        assert first - 2 <= next(at for at, line in enumerate(order) if line.startswith("mbarrier.wait(turn.")) < first
        assert order[wait + 1].startswith("mbarrier.arrive(turn.")


@EACH
@EVERY
def test_every_tile_that_is_moved_is_allocated_and_expected(name: str, layer: Layer) -> None:
    """Its memory, its bytes in `expect`, its slot: by stage where consumers share it, else by stage and consumer."""
    roles = functions(sources.kernels(layer)[name])
    load, compute, kernel = roles["load_tiles"], roles["compute"], roles[name]
    consumers = int(re.findall(r"(\d)consumer", name)[0])
    allocated = {
        ast.unparse(stmt.targets[0]): [ast.unparse(argument) for argument in stmt.value.args]
        for stmt in kernel.body
        if isinstance(stmt, ast.Assign)
        and isinstance(stmt.value, ast.Call)
        and ast.unparse(stmt.value.func) == "gl.allocate_shared_memory"
    }
    moved: dict[str, Counter[str]] = {"stage": Counter(), "slot": Counter()}
    for call in calls(load, "tma.async_copy_global_to_shared"):
        descriptor, _, barrier, place = (ast.unparse(argument) for argument in call.args)
        tiles, slot = re.fullmatch(r"(\w+_tiles)\.index\((\w+)\)", place).groups()
        assert barrier == "ready"
        moved[slot][descriptor] += 1
        dtype, shape, layout = allocated[tiles]
        assert dtype == f"{descriptor}.dtype" and layout == f"{descriptor}.layout"
        assert shape.startswith("[STAGES, " if slot == "stage" else f"[STAGES * {consumers}, ")
        # the consumers read it in the slot that it was put into
        assert f"{tiles}.index({slot})" in ast.unparse(compute)
    assert moved["stage"] if layer.layout.name == "multi-input" else moved["slot"]
    (expected,) = (amount for _, amount in barrier_calls(load, "expect"))
    assert expected == f"shared + {consumers} * own"
    amounts = {ast.unparse(n.target): n.value for n in ast.walk(load) if isinstance(n, ast.AnnAssign)}
    for amount, slot in (("shared", "stage"), ("own", "slot")):
        assert Counter(re.findall(r"(\w+)\.block_type\.nbytes", ast.unparse(amounts[amount]))) == moved[slot]
    # what is per consumer is moved for each of them
    (loop,) = [n for n in ast.walk(load) if isinstance(n, ast.For) and ast.unparse(n.target) == "consumer"]
    assert ast.unparse(loop.iter) == f"gl.static_range({consumers})"
    assert len(calls(loop, "tma.async_copy_global_to_shared")) == sum(moved["slot"].values())
    # nothing is allocated in vain, and every consumer has scratch of its own
    places = set(re.findall(r"(\w+_tiles)\.index", ast.unparse(load)))
    for tiles, (_, shape, *_) in allocated.items():
        if tiles not in (*places, *BARRIERS):
            assert shape.startswith(f"[{consumers}, ") and f"{tiles}.index(consumer)" in ast.unparse(compute)
        assert tiles in BARRIERS or f"{tiles}.index(" in ast.unparse(compute)


@EACH
@EVERY
def test_products_read_what_was_put_into_shared_memory_after_a_fence(name: str, layer: Layer) -> None:
    """The matrix unit and the copy engine do not see a store before the fence."""
    (loop,) = [
        n
        for n in ast.walk(functions(sources.kernels(layer)[name])["compute"])
        if isinstance(n, ast.For) and calls(n, "mbarrier.wait")
    ]
    unfenced: set[str] = set()
    for stmt in (s for top in loop.body for s in ast.walk(top) if isinstance(s, ast.Assign | ast.Expr)):
        text = ast.unparse(stmt)
        if text == "fence_async_shared()":
            unfenced = set()
        elif stored := re.match(r"(\w+_tile)\b.*\.store\(", text):
            unfenced.add(stored[1])
        elif "warpgroup_mma(" in text or "async_copy_shared_to_global" in text:
            assert not unfenced & reads(stmt), text


@EACH
@EVERY
def test_roles_get_the_arguments_that_they_take(name: str, layer: Layer) -> None:
    """One `compute` per consumer, each with its own number, and one loading warp; registers that fit together."""
    roles = functions(sources.kernels(layer)[name])
    consumers = int(re.findall(r"(\d)consumer", name)[0])
    (start,) = calls(roles[name], "gl.warp_specialize")
    partitions = [(ast.unparse(p.elts[0]), [ast.unparse(a) for a in p.elts[1].elts]) for p in start.args[0].elts]
    assert [role for role, _ in partitions] == ["compute"] * consumers + ["load_tiles"]
    for at, (role, arguments) in enumerate(partitions):
        wanted = [argument.arg for argument in roles[role].args.args]
        assert arguments == [str(at) if argument == "consumer" else argument for argument in wanted]
    options = {word.arg: ast.literal_eval(word.value) for word in start.keywords}
    assert options["worker_num_warps"] == [4] * (consumers - 1) + [1]
    assert len(options["worker_num_regs"]) == consumers
    # what the kernel before leaves is waited for before any role starts, and after the next kernel is let go
    order = [ast.unparse(stmt) for stmt in roles[name].body]
    assert order[-3:-1] == ["gdc_launch_dependents()", "gdc_wait()"]


# ---- the description


BREAKS = {
    "sign of a decay": (decompose, "decay", lambda log2_decay: decay(-log2_decay)),
    "no decay": (decompose, "decay", lambda log2_decay: sympy.Integer(1)),
    "no factor dt": (formulas, "input_weight", lambda dt: sympy.Integer(1)),
    "skip subtracted": (formulas, "skip", lambda y, d, x: y - d * x),
    "gate without its sigmoid": (formulas, "gate", lambda y, z: y * z),
}


def body_of(name: str) -> str:
    """What a consumer of a kernel does, as it is described now."""
    kernel = walk.kernel(Layer(), SHAPES[name])
    templates.load()
    return ast.unparse(functions(emission.module(kernel, catalogue.graph(kernel, Layer())))["compute"])


@pytest.mark.parametrize("broken", BREAKS)
@EVERY
def test_a_broken_description_is_seen_in_the_source(name: str, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the statements, not only in the equations above them."""
    before = body_of(name)
    monkeypatch.setattr(*BREAKS[broken])
    # a segment's state has neither a skip nor a gate
    of_outputs = broken.startswith(("skip", "gate"))
    assert (body_of(name) == before) == (of_outputs and not name.startswith("single_pass"))


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_family_and_layout_is_emitted_with_the_same_templates(family: MaskFamily, layout: HeadLayout) -> None:
    templates.load()
    before = dict(environment._sources)
    found = sources.consumers(Layer(family, layout))
    assert environment._sources == before == templates.read()
    assert sorted(found) == NAMES
