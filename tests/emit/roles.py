"""Text of kernels specialised by warps, read back: its functions, and what is under way where.  For the tests of these.

A walk over a consumer's statements in the order in which they run finds what is touched too early.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field


def functions(text: str) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}


def computing(text: str) -> dict[str, ast.FunctionDef]:
    """What consumers do: one function for all of them, or one for each role."""
    return {name: node for name, node in functions(text).items() if name.startswith("compute")}


def in_order(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements without statements of their own, as they are written."""
    for stmt in body:
        if isinstance(stmt, ast.For | ast.If):
            yield from in_order(stmt.body)
            yield from in_order(stmt.orelse)
        else:
            yield stmt


def stage_loop(role: ast.FunctionDef) -> ast.For:
    """The loop whose tiles are moved ahead."""
    (loop,) = [n for n in role.body if isinstance(n, ast.For) and calls(n, "mbarrier.wait")]
    return loop


def calls(node: ast.AST, name: str) -> list[ast.Call]:
    """Calls of a function by the name that it is written with."""
    return [n for n in ast.walk(node) if isinstance(n, ast.Call) and ast.unparse(n.func) == name]


def reads(node: ast.AST | None) -> set[str]:
    found = ast.walk(node) if node else ()
    return {n.id for n in found if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def made(stmt: ast.stmt) -> set[str]:
    return {n.id for n in ast.walk(stmt) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


# ---- products


class TooEarly(AssertionError):
    """A product's result or operand is touched while it may be under way."""


@dataclass
class UnderWay:
    """What is under way at a consumer's statements.

    products: those not waited for, oldest first: the result, and the registers that they read; finished: results of
    the others; copying: how many of the products read the tile through which copies go.
    """

    products: list[tuple[str, frozenset[str]]] = field(default_factory=list)
    finished: set[str] = field(default_factory=set)
    copying: int = 0
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
                    self.branch(stmt)
                case ast.Assign(targets=[target], value=ast.Call(func=ast.Name("warpgroup_mma")) as call):
                    self.issue(ast.unparse(target), call)
                case ast.Assign(targets=[target], value=ast.Call(func=ast.Name("warpgroup_mma_wait")) as call):
                    self.wait(ast.unparse(target), call)
                case ast.Expr(value=ast.Call(func=ast.Attribute(ast.Name("outgoing_tile"), "store"))) if self.copying:
                    raise TooEarly(f"a product may still read what is overwritten at: {ast.unparse(stmt)}")
                case _:
                    self.check(reads(stmt) | made(stmt), stmt)

    def branch(self, stmt: ast.If) -> None:
        """It may end what was under way before it, the oldest first, and leaves nothing of its own under way.

        Afterwards all is under way that is so in one of the two cases.
        """
        before, ways = [*self.products], []
        for body in (stmt.body, stmt.orelse):
            self.products = [*before]
            self.run(body)
            if self.products != before[len(before) - len(self.products) :]:
                raise TooEarly(f"a branch leaves something under way: {ast.unparse(stmt)}")
            ways.append(self.products)
        self.products = max(ways, key=len)

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
        if "outgoing_tile" in reads(right):
            # it and all before it
            self.copying = len(self.products)

    def wait(self, targets: str, call: ast.Call) -> None:
        (pending,) = (argument.value for argument in call.args if isinstance(argument, ast.Constant))
        (values,) = (word.value for word in call.keywords if word.arg == "deps")
        assert isinstance(pending, int) and isinstance(values, ast.Tuple)
        waited = [ast.unparse(value) for value in values.elts]
        assert targets.strip("()") == ", ".join(waited), "a wait gives back what it was given"
        assert pending < len(self.products), f"nothing to wait for: {ast.unparse(call)}"
        self.copying = max(0, self.copying - (len(self.products) - pending))
        done, self.products = self.products[: len(self.products) - pending], self.products[-pending:] if pending else []
        busy = {result for result, _ in self.products}
        wanted = {result for result, _ in done} - busy | {name for _, kept in done for name in kept}
        self.finished |= wanted
        # a result that an option has waited for may pass through the wait for what it has not
        assert wanted <= set(waited) <= self.finished, "what comes out of a product passes through the wait for it"


def products(text: str) -> dict[str, UnderWay]:
    """By role, once it has run."""
    found = {}
    for name, role in computing(text).items():
        found[name] = UnderWay()
        found[name].run(role.body)
    return found


# ---- tiles in shared memory


class NotSeen(AssertionError):
    """The matrix unit or the copy engine reads a tile that was stored to and not fenced."""


def check_fences(role: ast.FunctionDef) -> None:
    """Raise NotSeen unless a fence stands between each store into a tile and what reads it in another way.

    A tile may go by two names: then it is either of those that it was last made of.
    """
    unfenced: set[str] = set()
    names: dict[str, set[str]] = {}
    for stmt in in_order(role.body):
        text = ast.unparse(stmt)
        alias = re.fullmatch(r"(\w+_tile) = (\w+_tile)", text)
        if text == "fence_async_shared()":
            unfenced = set()
        elif stored := re.match(r"(\w+_tile)\b.*\.store\(", text):
            unfenced.add(stored[1])
        elif alias:
            names.setdefault(alias[1], set()).add(alias[2])
        elif "warpgroup_mma(" in text or "async_copy_shared_to_global" in text:
            read = reads(stmt)
            if unfenced & read.union(*(names.get(name, set()) for name in read)):
                raise NotSeen(text)


@dataclass(frozen=True)
class Allocated:
    """dtype, shape and layout of a buffer in shared memory, as they are written."""

    dtype: str
    shape: str
    layout: str


def allocated(kernel: ast.FunctionDef) -> dict[str, Allocated]:
    return {
        ast.unparse(stmt.targets[0]): Allocated(*(ast.unparse(argument) for argument in stmt.value.args))
        for stmt in kernel.body
        if isinstance(stmt, ast.Assign)
        and isinstance(stmt.value, ast.Call)
        and ast.unparse(stmt.value.func) == "gl.allocate_shared_memory"
    }
