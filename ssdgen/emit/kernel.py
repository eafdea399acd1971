"""One kernel as a Python module.  plan.Kernel -> text"""

from __future__ import annotations

import re
import textwrap

import sympy

from ..plan import ir
from ..spec.graph import Contract, Cumsum, Graph, Last, Map, Sum
from .environment import render
from .layout import WIDTH
from .statements import StatementPrinter, block_sizes, descriptor_order

FUNCTIONS = ("decay", "maximum", "minimum", "softplus")


def body(kernel: ir.Kernel) -> str:
    """The statements of the kernel as source, at the indentation of a function body."""
    return "\n".join(StatementPrinter(kernel).lines(kernel.body, 4))


def parameters(kernel: ir.Kernel, source: str) -> list[tuple[str, str]]:
    """(parameter, comment) in order: tensors, strides, sizes, reals, constants, flags.

    Sizes that `source` never reads are left out.
    """
    described = {
        s.tensor: descriptor_order(s.index)
        for s in ir.walk(kernel.body)
        if isinstance(s, (ir.Load, ir.Store)) and s.descriptor
    }
    found: list[tuple[str, str]] = []
    for tensor in kernel.tensors:
        kind = "desc" if tensor.name in described else "ptr"
        dims = [tensor.dims[axis] for axis in described.get(tensor.name, range(len(tensor.dims)))]
        shape = f"[{', '.join(dim.lower() for dim in dims)}]"
        found.append((f"{tensor.name}_{kind}", shape + (f", if {tensor.flag}" if tensor.flag else "")))
    for tensor in kernel.tensors:
        if tensor.name not in described:
            found += [(f"{name}: tl.int64", "") for name in tensor.stride_parameters()]
    used = set(re.findall(r"\w+", source))
    found += [(name, "") for name in (*kernel.sizes, *kernel.reals) if name in used]
    dots = ("DOT", "PRECISION") if "tl.dot(" in source else ()
    found += [(f"{name}: tl.constexpr", "") for name in (*kernel.constants, *dots, *kernel.flags)]
    return found


def equation(graph: Graph, name: str) -> str:
    """The value's definition as one line of mathematics."""
    node = graph[name]
    left = f"{name}[{', '.join(node.axes)}]"
    if isinstance(node, Map):
        formula = sympy.sstr(node.formula)
        return f"{left} = {formula}" + (f"    if {node.option}" if node.option else "")
    if isinstance(node, Contract):
        return f"{left} = sum over {node.over} of {node.left} * {node.right}"
    if isinstance(node, Cumsum):
        return f"{left} = running sum of {node.of} over {node.along}" + (" from its end" if node.reverse else "")
    if isinstance(node, Sum):
        return f"{left} = sum over {', '.join(node.over)} of {node.of}"
    if isinstance(node, Last):
        return f"{left} = last {node.of}"
    return f"{left}: {node.what}"


def module(kernel: ir.Kernel, graph: Graph) -> str:
    """The kernel's module: docstring with its equations, imports, the kernel."""
    source = body(kernel)
    used = [name for name in FUNCTIONS if re.search(rf"(?<![\w.]){name}\(", source)]
    available = frozenset(_materialised(kernel))
    nodes = [n for n in graph.closure(kernel.equations, available) if not hasattr(n, "what")]
    return render(
        "kernels/kernel.py.jinja",
        about="\n".join(textwrap.wrap(kernel.about, WIDTH - 3)),
        equations="\n".join(equation(graph, node.name) for node in nodes),
        functions=used,
        name=kernel.name,
        parameters=parameters(kernel, source),
        body=source,
        grid=grid(kernel),
        blocks=blocks(kernel),
        block_names=[name for name in kernel.constants if any(name in shape for *_, shape in blocks(kernel))],
    )


def grid(kernel: ir.Kernel) -> tuple[str, str]:
    """(parameters, expression) of the function that gives the programs along each axis."""
    text = ", ".join(re.sub(r"\bcdiv\(", "triton.cdiv(", axis) for axis in kernel.grid)
    known = (*kernel.sizes, "sequences", *kernel.constants)
    return ", ".join(name for name in known if re.search(rf"\b{name}\b", text)), text


def blocks(kernel: ir.Kernel) -> list[tuple[str, str, str]]:
    """(tensor, order of its dimensions, block shape) of each tensor that is moved by descriptor."""
    found: dict[str, tuple[str, str]] = {}
    for stmt in ir.walk(kernel.body):
        if isinstance(stmt, (ir.Load, ir.Store)) and stmt.descriptor:
            order = ", ".join(map(str, descriptor_order(stmt.index)))
            found[stmt.tensor] = order, ", ".join(block_sizes(stmt.index))
    return [(tensor, *described) for tensor, described in found.items()]


def _materialised(kernel: ir.Kernel) -> set[str]:
    """Values that the kernel loads and so does not compute."""
    loaded = {t.name for t in kernel.tensors if not t.out}
    names = {
        name for name in ("dt", "dA_cs", "dA_last") if "dA_cs" in loaded or "padded" in kernel.sizes and name == "dt"
    }
    if kernel.name == "dt_cumsum":
        return set()
    return names | ({"local_state", "centre_decay"} if kernel.name == "state_passing" else set())
