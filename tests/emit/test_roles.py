"""The kernel in which consumers have roles, as text: whose tiles are whose, what stays, what an option alone needs."""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from functools import cache

import pytest

from ssdgen.emit import kernel as emission
from ssdgen.emit.stages import fixed_loads, moved_loads, roles
from ssdgen.pack import templates
from ssdgen.plan import catalogue, ir
from ssdgen.plan.schedules import gradients, groups
from ssdgen.plan.schedules.gradients import ROLES, Gradients
from ssdgen.plan.schedules.groups import Groups
from ssdgen.spec.layer import Layer
from tests.emit import sources
from tests.emit.roles import (
    TooEarly,
    allocated,
    calls,
    computing,
    functions,
    in_order,
    made,
    products,
    reads,
    stage_loop,
)

NAME = "chunk_gradients_2consumers"
EACH_ROLE = pytest.mark.parametrize("role", [f"compute_{role}" for role in ROLES])
# of the tensors that a role writes, those that it is there for
WRITES = {
    "compute_rows": {"d_C", "d_z", "d_dA_cs_scores_rows", "d_left_decay"},
    "compute_columns": {"d_B", "d_x", "d_dt_scores"},
}


def text() -> str:
    return sources.consumers()[NAME]


@cache
def parsed() -> dict[str, ast.FunctionDef]:
    return functions(text())


@cache
def plan() -> ir.Kernel:
    return gradients.kernel(Layer(), Gradients(specialised=True))


def lines_of(role: str) -> list[str]:
    return [ast.unparse(stmt) for stmt in in_order(parsed()[role].body)]


def parameters(role: str) -> set[str]:
    return {argument.arg for argument in parsed()[role].args.args}


# ---- roles


def test_each_role_is_a_function_of_its_own() -> None:
    assert [*computing(text())] == [*WRITES]
    # a role knows which it is: nothing depends on a number
    assert "consumer" not in {name for role in (*WRITES, "load_tiles") for name in parameters(role)}
    for role in WRITES:
        assert ast.get_docstring(parsed()[role]).startswith(f"The consumer that has the {role[8:]}")


def test_every_gradient_is_one_roles() -> None:
    outs = {tensor.name for tensor in plan().tensors if tensor.out}
    stored = [{s.tensor for s in ir.walk(part.body) if isinstance(s, ir.Store)} for part in roles(plan())]
    assert stored[0] | stored[1] == outs and not stored[0] & stored[1]
    for role, mine in zip(WRITES, stored, strict=True):
        assert WRITES[role] <= mine
        assert mine == {name for name in outs for kind in ("ptr", "desc") if f"{name}_{kind}" in parameters(role)}


@pytest.mark.parametrize("role", [*WRITES, "load_tiles"])
def test_parameters_are_those_that_the_role_reads(role: str) -> None:
    node = parsed()[role]
    assert parameters(role) == reads(ast.Module(node.body, [])) & parameters(role)
    # and all that it reads and does not make is there
    there = parameters(role) | {name for stmt in ast.walk(node) if isinstance(stmt, ast.stmt) for name in made(stmt)}
    names = {n.id for stmt in node.body for n in ast.walk(stmt) if isinstance(n, ast.Name)}
    assert names - there <= {
        "gl", "tma", "mbarrier", "range", "decay", "sigmoid", "fence_async_shared", "warpgroup_mma",
        "warpgroup_mma_wait",
    }  # fmt: skip


def test_a_role_has_its_own_branch_of_the_plan() -> None:
    whole = plan()
    assert whole.roles == ROLES and whole.consumers == len(ROLES)
    conditions = [s.condition for part in roles(whole) for s in ir.walk(part.body) if isinstance(s, ir.When)]
    assert conditions and not [condition for condition in conditions if "consumer" in condition]
    # where all consumers do the same there is one part, the kernel itself
    plain = catalogue.SPECIALISED["chunk_states_2consumers"](Layer())
    assert roles(plain) == (plain,)


def test_the_loading_warp_moves_what_either_role_reads_once() -> None:
    moved = {load.out.name for load in moved_loads(plan())}
    each = [{load.out.name for load in moved_loads(part)} for part in roles(plan())]
    assert moved == each[0] | each[1] and "state" in each[0] - each[1]
    copies = calls(parsed()["load_tiles"], "tma.async_copy_global_to_shared")
    fixed = {load.out.name for load in fixed_loads(plan())}
    assert sorted(ast.unparse(call.args[3]).split("_tiles")[0] for call in copies) == sorted(moved | fixed)


def test_what_a_role_stores_to_shared_memory_is_its_own() -> None:
    """Roles go through the stages each at its own pace: one would overwrite what the other still reads."""
    buffers = allocated(parsed()[NAME])
    written: dict[tuple[str, str], set[str]] = {}
    for role in WRITES:
        order = lines_of(role)
        places = dict(
            m.groups() for line in order if (m := re.fullmatch(r"(\w+_tile) = (\w+_tiles\.index\(.*\))", line))
        )
        stored = {m[1] for line in order if (m := re.match(r"(\w+_tile)\.store\(", line))}
        # C B^T, the adjoint of y with the gate, and d_z or d_x
        assert len(stored) == 3 and stored <= places.keys()
        for tile in stored:
            tiles, slot = re.fullmatch(r"(\w+)\.index\((\d)\)", places[tile]).groups()
            assert int(slot) < int(re.match(r"\[(\d), ", buffers[tiles].shape)[1])
            written.setdefault((tiles, slot), set()).add(role)
    assert {place: roles_ for place, roles_ in written.items() if len(roles_) > 1} == {}


# ---- tiles that stay


@EACH_ROLE
def test_fixed_tiles_are_waited_for_once_and_before_they_are_read(role: str) -> None:
    assert [load.out.name for load in fixed_loads(plan())] == ["C", "B"]
    node, order = parsed()[role], lines_of(role)
    waits = [at for at, line in enumerate(order) if line.startswith("mbarrier.wait(fixed.")]
    assert len(waits) == 1 and order[waits[0]] == "mbarrier.wait(fixed.index(0), 0)"
    assert "fixed" not in reads(stage_loop(node))
    for name in ("C", "B"):
        touching = [at for at, line in enumerate(order) if re.search(rf"\b{name}_tiles?\b", line)]
        assert touching and min(touching) > waits[0]
        # it is found once: the loop reads what was found before
        assert sum(line.startswith(f"{name}_tile = ") for line in order) == 1


def test_fixed_tiles_are_moved_before_the_loop_and_never_given_back() -> None:
    load = parsed()["load_tiles"]
    (loop,) = [n for n in load.body if isinstance(n, ast.For)]
    before = load.body[: load.body.index(loop)]
    copies = [call for stmt in before for call in calls(stmt, "tma.async_copy_global_to_shared")]
    assert [ast.unparse(call.args[2]) for call in copies] == ["fixed.index(0)"] * 2
    assert "fixed" not in reads(loop)
    expects = [at for at, stmt in enumerate(before) if calls(stmt, "mbarrier.expect")]
    first = min(at for at, stmt in enumerate(before) if calls(stmt, "tma.async_copy_global_to_shared"))
    assert len(expects) == 1 and expects[0] < first


def test_without_roles_nothing_is_fixed() -> None:
    for name, source in sources.consumers().items():
        # where a stage is a chunk nothing is there for all of them
        assert ("fixed" in source) == ("gradients" in name and "by_head" not in name)


# ---- parked values


@EACH_ROLE
def test_what_all_heads_share_is_parked_before_the_loop(role: str) -> None:
    """C B^T waits in shared memory, in float32, and is in registers only where it is read."""
    node = parsed()[role]
    buffer = allocated(parsed()[NAME])[f"{role[8:]}_CB_tiles"]
    assert (buffer.dtype, buffer.shape) == ("gl.float32", "[1, CHUNK, CHUNK]")
    order = lines_of(role)
    assert order.count("CB_tile.store(CB)") == 1
    stored, waited = order.index("CB_tile.store(CB)"), order.index("CB = warpgroup_mma_wait(0, deps=(CB,))")
    assert waited < stored < len(order) - len([*in_order(stage_loop(node).body)])
    # in the loop it is loaded anew for every statement that reads it, and never stored
    inside = [*in_order(stage_loop(node).body)]
    assert "CB_tile.store" not in " ".join(map(ast.unparse, inside))
    read = [at for at, stmt in enumerate(inside) if "CB" in reads(stmt)]
    assert read and all(ast.unparse(inside[at - 1]) == "CB = CB_tile.load(BY_CHUNK)" for at in read)


def test_what_is_added_up_over_heads_is_not_parked() -> None:
    for name in ("d_CB", "d_C_heads", "d_B_heads"):
        assert f"{name}_tile" not in text()


# ---- a moved tile but for an option


@EACH_ROLE
def test_the_adjoint_of_y_has_a_tile_of_its_own_only_with_the_gate(role: str) -> None:
    loop = stage_loop(parsed()[role])
    body = [ast.unparse(stmt).splitlines()[0] for stmt in loop.body]
    at = body.index("d_y_skip_tile = d_y_tile")
    branch = loop.body[at + 1]
    assert isinstance(branch, ast.If) and ast.unparse(branch.test) == "HAS_Z" and not branch.orelse
    inside = [ast.unparse(stmt) for stmt in branch.body]
    assert inside[-2:] == ["d_y_skip_own_tile.store(d_y_skip.to(DOT))", "d_y_skip_tile = d_y_skip_own_tile"]
    # nowhere else is it touched, but where its place is looked up
    touching = [line for line in lines_of(role) if "own_tile" in line]
    assert touching[1:] == inside[-2:] and re.fullmatch(
        r"d_y_skip_own_tile = \w*d_y_skip_own_tiles\.index\(\d\)", touching[0]
    )
    # products take it from there, and what reads it in registers loads it first, whichever tile it is
    rest = [stmt for top in loop.body[at + 2 :] for stmt in in_order([top])]
    assert not [stmt for stmt in rest if calls(stmt, "warpgroup_mma") and "d_y_tile" in reads(stmt)]
    first = next(n for n, stmt in enumerate(rest) if "d_y_skip" in reads(stmt))
    loads = [n for n, stmt in enumerate(rest) if ast.unparse(stmt) == "d_y_skip = d_y_skip_tile.load(BY_BLOCK_P)"]
    assert len(loads) == 1 and loads[0] < first


def test_a_value_with_two_options_is_in_registers() -> None:
    """Only one option may make it another than the tile: else there is no telling which tile it is.

    Of a kernel that does not read it turned as well, which only a tile can be.
    """
    whole = groups.kernel(Layer(), Groups(blocks=True, specialised=True))

    def doubled(body: tuple[ir.Stmt, ...]) -> tuple[ir.Stmt, ...]:
        found: list[ir.Stmt] = []
        for stmt in body:
            if isinstance(stmt, ir.For):
                stmt = replace(stmt, body=doubled(stmt.body))
            elif isinstance(stmt, ir.When) and stmt.condition.startswith("consumer"):
                stmt = replace(stmt, body=doubled(stmt.body))
            found.append(stmt)
            if isinstance(stmt, ir.When) and any(isinstance(s, ir.Let) and s.out.name == "d_y_skip" for s in stmt.body):
                found.append(replace(stmt, condition="HAS_D"))
        return tuple(found)

    templates.load()
    source = emission.module(replace(whole, body=doubled(whole.body)), catalogue.graph(whole, Layer()))
    assert "d_y_skip_own" not in source and "if HAS_D:\n            d_y_skip = " in source


# ---- products that only an option needs


def test_products_of_an_option_are_waited_for_inside_it() -> None:
    """And what was under way before it still is waited for after it, since the option may be off."""
    with_products = [
        branch
        for role in WRITES
        for branch in ast.walk(parsed()[role])
        if isinstance(branch, ast.If) and calls(branch, "warpgroup_mma")
    ]
    (branch,) = with_products
    assert ast.unparse(branch.test) == "NEEDS_Z"
    (product,) = calls(branch, "warpgroup_mma")
    assert product in [call for stmt in branch.body for call in calls(stmt, "warpgroup_mma")]
    waits = [ast.unparse(call) for call in calls(branch, "warpgroup_mma_wait")]
    assert len(waits) == 1 and waits[0].startswith("warpgroup_mma_wait(0, ") and "d_C_heads" in waits[0]
    loop = stage_loop(parsed()["compute_rows"])
    after = loop.body[loop.body.index(branch) + 1 :]
    (wait,) = [ast.unparse(call) for stmt in after for call in calls(stmt, "warpgroup_mma_wait")]
    assert wait == "warpgroup_mma_wait(0, deps=(d_C_heads, d_y_state_left))"


def test_a_wait_left_to_an_option_is_found() -> None:
    """The walk over statements sees that a product is still under way where the option is off."""
    wait = re.compile(r"^        d_C_heads, d_y_state_left = warpgroup_mma_wait\(0, .*\n", re.MULTILINE)
    assert len(wait.findall(text())) == 1
    with pytest.raises(AssertionError):
        products(wait.sub("", text()))


def test_a_product_that_outlives_its_option_is_found() -> None:
    branch = "if HAS_Z:\n        a = warpgroup_mma(x_tile, y_tile, gl.zeros([1]), use_acc=False, is_async=True)\n"
    waited = "        a = warpgroup_mma_wait(0, deps=(a,))\n"
    source = f"def compute():\n    {branch}"
    assert not products(source + waited)["compute"].products
    with pytest.raises(TooEarly, match="a branch leaves something under way"):
        products(source)
