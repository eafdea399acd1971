"""One kernel as a Python module.  plan.Kernel -> text"""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import sympy

from ..plan import catalogue, ir
from ..plan.schedules.consumers import BESIDE
from ..spec.graph import Contract, Cumsum, Graph, Largest, Last, Map, Shift, Sum
from ..spec.layer import Layer
from .aside import aside as aside_lines
from .environment import render
from .layout import WIDTH, fit
from .loader import loader as loader_lines
from .stages import aside_of, depends, fixed_loads, moved_loads, of_consumers, roles, stage_loop
from .statements import StatementPrinter, block_sizes, descriptor_order
from .tiles import definition, layout
from .warps import ConsumerPrinter

FUNCTIONS = ("decay", "leading", "maximum", "minimum", "running_sum", "sigmoid", "softplus")
STORAGE_FUNCTIONS = ("narrow", "widen")
GATE_FUNCTIONS = ("sigmoid", "silu2_slope")
LAYOUT_FUNCTIONS = ("in_vectors",)
ANGLE_FUNCTIONS = ("cos", "sin")
WORD_FUNCTIONS = ("from_words", "in_words")
LOOP_FUNCTIONS = ("hidden",)
HOPPER = ("fence_async_shared", "mbarrier", "tma", "warpgroup_mma", "warpgroup_mma_wait")
# of a thread: a multiprocessor's 65536, shared out between the consumers, so that the loading warp has the least
REGISTERS, LOADER_REGISTERS, ASIDE_REGISTERS = {1: 240, 2: 240, 3: 160}, 24, 32


def modules(kernels: Iterable[ir.Kernel], layer: Layer) -> dict[str, str]:
    """{name: text} of kernels of `layer`."""
    return {kernel.name: module(kernel, catalogue.graph(kernel, layer)) for kernel in kernels}


def body(kernel: ir.Kernel) -> str:
    """The statements of the kernel as source, at the indentation of a function body."""
    return "\n".join(StatementPrinter(kernel).lines(kernel.body, 4))


def parameters(kernel: ir.Kernel, source: str) -> list[tuple[str, str]]:
    """(parameter, comment) in order: tensors, strides, sizes, reals, constants, flags.

    Sizes that `source` never reads are left out.
    """
    language = "gl" if kernel.consumers else "tl"
    accesses = [stmt for stmt in ir.walk(kernel.body) if isinstance(stmt, (ir.Load, ir.Store))]
    described = {stmt.tensor: descriptor_order(stmt.index) for stmt in accesses if stmt.descriptor}
    pointed = {stmt.tensor for stmt in accesses if not (stmt.descriptor or isinstance(stmt, ir.Load) and stmt.near)}
    found: list[tuple[str, str]] = []
    for tensor in kernel.tensors:
        flag = f", if {tensor.flag}" if tensor.flag else ""
        orders = {
            "desc": described.get(tensor.name),
            "ptr": range(len(tensor.dims)) if tensor.name in pointed else None,
        }
        for kind, order in orders.items():
            if order is not None:
                dims = ", ".join(tensor.dims[axis].lower() for axis in order)
                found.append((f"{tensor.name}_{kind}", f"[{dims}]{flag}"))
    for tensor in kernel.tensors:
        if tensor.name in pointed:
            found += [(f"{name}: {language}.int64", "") for name in tensor.stride_parameters()]
    used = set(re.findall(r"\w+", source))
    found += [(name, "") for name in (*kernel.sizes, *kernel.reals) if name in used]
    dots = ("DOT", "PRECISION") if "tl.dot(" in source else ("STAGES", "DOT") if kernel.consumers else ()
    found += [(f"{name}: {language}.constexpr", "") for name in (*kernel.constants, *dots, *kernel.flags)]
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
    if isinstance(node, Largest):
        return f"{left} = largest over {', '.join(node.over)} of |{node.of}|"
    if isinstance(node, Last):
        return f"{left} = last {node.of}"
    if isinstance(node, Shift):
        way = "before" if node.by > 0 else "after"
        return f"{left} = {node.of}, {abs(node.by)} {way} along {node.along}"
    return f"{left}: {node.what}"


def _wrapped(line: str) -> str:
    """An equation on as many lines as it needs."""
    if len(line) <= WIDTH:
        return line
    # not between the axes of a value
    whole = re.sub(r"(?<=\w), (?=\w+[\],])", ",\0", line)
    text = textwrap.fill(whole, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return text.replace("\0", " ")


def module(kernel: ir.Kernel, graph: Graph) -> str:
    """The kernel's module: docstring with its equations, imports, the kernel."""
    if kernel.consumers:
        return _warpgroups(kernel, graph)
    source = body(kernel)
    return render(
        "kernels/kernel.py.jinja",
        parameters=parameters(kernel, source),
        body=source,
        **_common(kernel, graph, source),
    )


def _common(kernel: ir.Kernel, graph: Graph, source: str) -> dict[str, Any]:
    """What the templates of kernels share."""
    available = frozenset(_materialised(kernel))
    nodes = [n for n in graph.closure(kernel.equations, available) if not hasattr(n, "what")]
    return {
        "about": "\n".join(textwrap.wrap(kernel.about, WIDTH - 3)),
        "equations": "\n".join(_wrapped(equation(graph, node.name)) for node in nodes),
        "functions": [
            name
            for name in FUNCTIONS
            if re.search(rf"(?<![\w.]){name}\b(?! =)", source) and not (kernel.gates and name in GATE_FUNCTIONS)
        ],
        "gate_functions": [
            name for name in GATE_FUNCTIONS if kernel.gates and re.search(rf"(?<![\w.]){name}\(", source)
        ],
        "layout_functions": [name for name in LAYOUT_FUNCTIONS if re.search(rf"(?<![\w.]){name}\(", source)],
        "angle_functions": [name for name in ANGLE_FUNCTIONS if re.search(rf"(?<![\w.]){name}\(", source)],
        "loop_functions": [name for name in LOOP_FUNCTIONS if re.search(rf"(?<![\w.]){name}\(", source)],
        "word_functions": [name for name in WORD_FUNCTIONS if re.search(rf"(?<![\w.]){name}\(", source)],
        "storage_functions": [name for name in STORAGE_FUNCTIONS if re.search(rf"(?<![\w.]){name}\(", source)],
        "name": kernel.name,
        "grid": grid(kernel),
        "blocks": blocks(kernel),
        "block_names": [name for name in kernel.constants if any(name in shape for *_, shape in blocks(kernel))],
    }


def _warpgroups(kernel: ir.Kernel, graph: Graph) -> str:
    """The module of a kernel that is specialised by warps: its two roles, and the program that starts them."""
    whole, made, beside = kernel, aside_of(kernel), "\n".join(aside_lines(kernel))
    kernel = of_consumers(kernel)
    loader = "\n".join(loader_lines(kernel))
    printed = [_role(role, number) for number, role in enumerate(roles(kernel))]
    scratch = {f"{role['prefix']}{name}": extents for role in printed for name, extents in role["scratch"].items()}
    parked = {f"{role['prefix']}{name}": extents for role in printed for name, extents in role["parked"].items()}
    moved = []
    for load in (*fixed_loads(kernel), *moved_loads(kernel)):
        count = f"STAGES * {kernel.consumers}" if depends(kernel, load, "consumer") else "STAGES"
        count = "1" if load in fixed_loads(kernel) else count
        desc = f"{load.tensor}_desc"
        moved.append(
            (f"{load.out.name}_tiles", f"{desc}.dtype", f"{count}, {', '.join(block_sizes(load.index))}", desc)
        )
    vectors = list(zip(made.values, made.sizes, strict=True)) if made else []
    source = "\n".join((*(role["body"] for role in printed), loader, beside))
    given = parameters(whole, source)
    shared = [
        *(name for name, *_ in moved),
        *(f"{value.name}_tiles" for value, _ in vectors),
        *(f"{name}s" for name in (*scratch, *parked)),
        "full",
        "empty",
        "turn",
        "fixed",
    ]
    named = [*(parameter for parameter, _ in given if "constexpr" not in parameter), *shared]
    named += ["consumer: gl.constexpr", *(parameter for parameter, _ in given if "constexpr" in parameter)]

    def used_in(text: str, *without: str) -> list[str]:
        words = set(re.findall(r"\w+", text)) - {*without}
        return [parameter for parameter in named if parameter.partition(":")[0] in words]

    for role in printed:
        role["parameters"] = used_in(role["body"])
        role["arguments"] = [name.partition(":")[0] for name in role["parameters"]]
    loader_parameters, aside_parameters = used_in(loader, "consumer"), used_in(beside)
    together = len(printed) == 1
    return render(
        "kernels/warpgroups.py.jinja",
        parameters=given,
        overlaps=BESIDE in kernel.flags,
        roles=printed,
        loader=loader,
        ahead="chunks" if together or stage_loop(kernel).trips == "chunks" else "heads",
        loader_parameters=loader_parameters,
        loader_arguments=[name.partition(":")[0] for name in loader_parameters],
        aside=beside,
        made=" and ".join(", ".join(value.name for value, _ in vectors).rsplit(", ", 1)),
        aside_parameters=aside_parameters,
        aside_arguments=[name.partition(":")[0] for name in aside_parameters],
        moved=[
            line
            for name, dtype, shape, desc in moved
            for line in fit(f"{name} = gl.allocate_shared_memory({dtype}, [{shape}], {desc}.layout)", 4)
        ]
        + [
            line
            for value, extents in vectors
            for line in fit(
                f"{value.name}_tiles = gl.allocate_shared_memory(gl.float32, [STAGES * {kernel.consumers}, "
                f"{', '.join(extents) or '1'}], gl.SwizzledSharedLayout(1, 1, 1, [0]))",
                4,
            )
        ],
        scratch=[
            (f"{name}s", kernel.consumers if together else 1, ", ".join(shape)) for name, shape in scratch.items()
        ],
        parked=[
            line
            for name, shape in parked.items()
            for line in fit(
                f"{name}s = gl.allocate_shared_memory(gl.float32, [1, {', '.join(shape)}], "
                "gl.SwizzledSharedLayout(8, 1, 8, [1, 0]))",
                4,
            )
        ],
        consumers=kernel.consumers,
        turns=any(role["turns"] for role in printed),
        fixed=bool(fixed_loads(kernel)),
        worker_warps=[4] * (kernel.consumers - 1) + [1] * (kernel.consumers + 1 if made else 1),
        worker_registers=[
            *(kernel.registers or [REGISTERS[kernel.consumers]] * (kernel.consumers - 1)),
            *([ASIDE_REGISTERS] * kernel.consumers if made else []),
            LOADER_REGISTERS,
        ],
        hopper=[name for name in HOPPER if re.search(rf"\b{name}\b", source)],
        **_common(kernel, graph, source),
    )


def _role(kernel: ir.Kernel, number: int) -> dict[str, Any]:
    """What one consumer does, as text, and the tiles in shared memory that it has for itself."""
    printer = ConsumerPrinter(kernel)
    statements = "\n".join(printer.lines(kernel.body, 4))
    if kernel.roles and (needed := _without_idle_scalars(kernel, statements)) != kernel:
        return _role(needed, number)
    lead = [f"    {layout(columns)}: gl.constexpr = {definition(columns)}" for columns in printer.used]
    place = "0" if kernel.roles else "consumer"
    # roles go through the trips each at its own pace: no tile is of two
    prefix = f"{kernel.roles[number]}_" if kernel.roles else ""
    lead += [f"    {name} = {prefix}{name}s.index({place})" for name in printer.scratch]
    lead += [f"    {name} = {prefix}{name}s.index(0)" for name in printer.parked]
    stores = any(isinstance(stmt, ir.Store) and stmt.descriptor for stmt in ir.walk(kernel.body))
    return {
        "name": f"compute_{kernel.roles[number]}" if kernel.roles else "compute",
        "about": f"The consumer that has the {kernel.roles[number]}: four warps that multiply together."
        if kernel.roles
        else "One consumer: four warps that multiply together.",
        "body": "\n".join([*lead, statements, *(["    tma.store_wait(0)"] if stores else [])]),
        "scratch": printer.scratch,
        "parked": printer.parked,
        "prefix": prefix,
        "turns": bool(printer.turns),
    }


def _without_idle_scalars(kernel: ir.Kernel, text: str) -> ir.Kernel:
    """The kernel without the scalars that its text names once only: a role does not read all of them."""
    names = Counter(re.findall(r"\w+", text))
    body = tuple(s for s in kernel.body if not isinstance(s, ir.Scalar) or names[s.name] > 1)
    loops = {
        s: tuple(t for t in s.body if not isinstance(t, ir.Scalar) or names[t.name] > 1)
        for s in body
        if isinstance(s, ir.For)
    }
    return replace(kernel, body=tuple(replace(s, body=loops[s]) if isinstance(s, ir.For) else s for s in body))


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
    if kernel.given:
        return {*kernel.given}
    loaded = {t.name for t in kernel.tensors if not t.out}
    names = {
        name for name in ("dt", "dA_cs", "dA_last") if "dA_cs" in loaded or "padded" in kernel.sizes and name == "dt"
    }
    if kernel.name == "dt_cumsum":
        return set()
    return names | ({"local_state", "centre_decay"} if kernel.name == "state_passing" else set())
