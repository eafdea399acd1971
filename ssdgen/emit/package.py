"""The generated package as text.  Layer -> {path: text}

Kernels and launchers are rendered from plans; what runs under them (checks, choice of config, PyTorch path) is copied.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import sympy

from ..plan import catalogue, ir, parts, space
from ..plan.ir import Kernel
from ..plan.schedules import adjoint, common, diagonal, mirror, prepare, step_tiles, sum_heads, sum_parts
from ..plan.schedules.decode import Step
from ..plan.schedules.gradients import Gradients
from ..plan.schedules.groups import Groups
from ..plan.schedules.replay import Replay
from ..plan.schedules.reverse import Reverse
from ..plan.schedules.states import States
from ..plan.schedules.steps import Steps
from ..plan.schedules.walk import Walk
from ..plan.tiles import (
    CONSUMER_ROWS,
    LARGEST,
    SMALLEST,
    consumer_tiles,
    cut,
    next_power_of_two,
    power_tiles,
)
from ..spec import chain
from ..spec.derivative import decay_exponent
from ..spec.layer import Layer
from ..spec.layouts import HeadLayout
from . import fingerprint, specialised
from . import kernel as kernels
from .environment import render
from .fingerprint import FUNCTIONS
from .parts import conv_launcher, norm_launcher

# kernels that read neither x, B nor C: all head layouts share them
SHARED = (
    *("dt_cumsum", "state_passing", "adjoint_passing", "both_passing"),
    *(Steps(blocks).name for blocks in (False, True)),
)
# of operands that are cut into slices, as launchers name their axes
AXES = {"batch": "b", "nheads": "h", "ngroups": "g"}

GATED_NAMES = frozenset(map(catalogue.gated_name, SHARED))


def package(
    layer: Layer | None = None,
    *,
    runtime: Mapping[str, str],
    chunk: int | None = None,
    headdim: int | None = None,
    dstate: int | None = None,
) -> dict[str, str]:
    """{path: text} of a package for `layer` (default: Mamba-2's) that needs torch and triton only.

    runtime: {file name: text} of what is copied.  chunk: that of the built-in default config.  headdim, dstate: leave
    out the kernels that these sizes do not need.  Raises ValueError for sizes that no kernel takes, and for a family
    with decays per token, which every package has.
    """
    layer = layer or Layer()
    if layer.family.per_token:
        raise ValueError(
            f"the {layer.family.name} family has no package of its own: `ssd` of a package for a family that decays, "
            "such as the default one, takes a decay for every token"
        )
    chosen = [kernel for kernel in catalogue.kernels(layer) if _needed(kernel, headdim, dstate)]
    backward = [kernel for kernel in catalogue.backward(layer) if _needed(kernel, headdim, dstate)]
    decoding = [kernel for kernel in catalogue.decoding(layer) if _decodes(kernel, dstate)]
    gated = [kernel for kernel in catalogue.gated(layer) if _needed(kernel, headdim, dstate)]
    mirrors = [kernel for kernel in catalogue.mirrors(layer) if _needed(kernel, headdim, dstate)]
    modules = kernels.modules((*chosen, *backward, *decoding, *gated, *mirrors), layer)
    launchers: dict[str, str] = {}
    for layout in catalogue.variants(layer):
        other = replace(layer, layout=layout)
        forwards, backwards = (
            [kernel for kernel in each if _needed(kernel, headdim, dstate)] for each in catalogue.variant(layer, layout)
        )
        made = _variant(layer, layout)
        modules |= {kernel.name: made[kernel.name] for kernel in (*forwards, *backwards)}
        forwards += [kernel for kernel in chosen if kernel.name in SHARED]
        backwards += [kernel for kernel in backward if kernel.name in SHARED]
        suffix = catalogue.variant_name("", layout)
        launchers[f"forward{suffix}"] = _launchers(other, forwards, gated, suffix)
        launchers[f"backward{suffix}"] = _backward_launcher(other, forwards, backwards, gated, suffix)
    modules |= {name: kernels.module(kernel, graph) for name, (kernel, graph) in parts.kernels().items()}
    functions = fingerprint.functions_of(FUNCTIONS)
    texts = {name: text for name, text in runtime.items() if name != "__init__.py"}
    texts |= {f"kernels/{name}.py": text for name, text in modules.items()}
    texts |= {
        "settings.py": _settings(layer, chunk),
        "__init__.py": render("pack/__init__.py.jinja", layer=layer),
        "kernels/__init__.py": render("kernels/__init__.py.jinja", names=sorted(modules)),
        **{f"kernels/{name}.py": text for name, text in functions.items()},
        "launchers/__init__.py": render("launchers/__init__.py.jinja"),
        "launchers/backward.py": _backward_launcher(layer, chosen, backward, gated),
        "launchers/conv.py": conv_launcher(),
        "launchers/decode.py": _decode_launcher(decoding),
        "launchers/forward.py": _launchers(layer, [*chosen, *mirrors], gated),
        **{f"launchers/{name}.py": text for name, text in launchers.items()},
        "launchers/norm.py": norm_launcher(),
        "manifest.json": _manifest(layer, fingerprint.of_kernels(modules, functions)),
    }
    return dict(sorted(texts.items()))


@cache
def _variant(layer: Layer, layout: HeadLayout) -> dict[str, str]:
    """The kernels of another layout as text, by name: made once for packages of several sizes."""
    forward, backward = catalogue.variant(layer, layout)
    return kernels.modules((*forward, *backward), replace(layer, layout=layout))


def _needed(kernel: Kernel, headdim: int | None, dstate: int | None) -> bool:
    """Whether sizes that are fixed leave a kernel in use."""
    tiles = {"n": dstate, "p": headdim}
    if any(extent is not None and extent < 1 for extent in tiles.values()):
        raise ValueError(f"headdim {headdim} and dstate {dstate} must be at least 1")
    if dstate is not None:
        cut(dstate)  # refuses what is too large
    for axis, extent in tiles.items():
        count = sum(name.startswith(f"BLOCK_{axis.upper()}") for name in kernel.constants)
        # one tile of headdim is always of use: programs share larger ones out
        wanted = {len(cut(extent))} | ({1} if axis == "p" or kernel.shares("DSTATE") else set()) if extent else {1, 2}
        if kernel.consumers:
            # equal tiles of one extent, however many: each has its load
            loads = [stmt for stmt in ir.walk(kernel.body) if isinstance(stmt, ir.Load)]
            operands = {"n": ("B", "C"), "p": ("x", "d_y")}[axis]
            count = max(len({load.out.name for load in loads if load.tensor == name}) for name in operands)
        if axis == "p" and kernel.consumers and kernel.shares("DSTATE"):
            wanted = {-(-extent // CONSUMER_ROWS)} if extent else {count}
        if axis == "n" and kernel.consumers:
            wanted = _equal_tiles(kernel, extent) if extent else {count}
        if count and count not in wanted:
            return False
    return True


def _equal_tiles(kernel: Kernel, dstate: int) -> set[int]:
    """How many equal tiles of dstate a kernel that is specialised by warps has where it is of use."""
    if kernel.shares("DSTATE"):
        return {1}
    # what goes through one tile is cut once more
    return {consumer_tiles(dstate)[1] * (2 if kernel.spare else 1)}


def _decodes(kernel: Kernel, dstate: int | None) -> bool:
    """Whether a dstate that is fixed leaves a kernel of a decode step in use."""
    tiles = sum(name.startswith("BLOCK_N") for name in kernel.constants)
    return dstate is None or tiles in (0, len(power_tiles(dstate)))


def _launchers(layer: Layer, chosen: list[Kernel], gated: list[Kernel], suffix: str = "") -> str:
    """The launcher of the forward pass.

    gated: the kernels for a decay per token; suffix: of the names of kernels of another layout than the package's.
    """
    own = {"dt_cumsum_gated"} | {f"{shape.name}_gated" for shape in catalogue.walks(True) if not suffix}
    chosen = [*chosen, *(kernel for kernel in gated if kernel.name in own)]
    names = {kernel.name for kernel in chosen}

    def key(shape: Walk) -> str:
        return (
            f"({shape.heads}, {shape.n_tiles}, {shape.p_tiles}, "
            f'"{shape.state_major}", {shape.prepared}, {shape.descriptors})'
        )

    def terms(shape: Walk) -> str:
        return f'"{space.APART}"' if shape.apart else "2" if shape.two_terms else "1"

    def of_consumers(shape: Walk) -> str:
        return f"({shape.consumers}, {shape.n_tiles}, {terms(shape)}, {shape.ahead}, {not shape.prepared})"

    walks = [
        (
            table,
            [
                (key(shape), f"{shape.name}{suffix}")
                for shape in catalogue.walks(outputs)
                if f"{shape.name}{suffix}" in names and not shape.consumers and (shape.prepared or not suffix)
            ],
        )
        for table, outputs in (("SINGLE_PASS", True), ("SEGMENT_STATE", False))
    ]
    consumers = [
        (
            table,
            [
                (of_consumers(shape), shape.name)
                for shape in catalogue.walks(outputs)
                if shape.name in names and shape.consumers
            ],
        )
        for table, outputs in (("SINGLE_PASS_CONSUMERS", True), ("SEGMENT_STATE_CONSUMERS", False))
    ]
    keeping = [
        (of_consumers(shape) if shape.consumers else key(shape), shape.name)
        for shape in catalogue.keeping()
        if shape.name in names
    ]
    scans = [(f"({s.n_tiles}, {s.p_tiles})", s.name) for s in catalogue.scans() if s.name in names]
    strided = {tensor.name: tensor.dims for kernel in chosen for tensor in kernel.tensors if tensor.stride_parameters()}
    buffers = [tensor.name for tensor in prepare.kernel(layer).tensors if tensor.out]
    return render(
        "launchers/forward.py.jinja",
        modules=sorted(names),
        dims=[(name, _literal_names(dims)) for name, dims in sorted(strided.items())],
        walks=walks,
        consumers=consumers,
        keeping=keeping,
        scans=scans,
        diagonal=common.diagonal_owner(layer)[1] if diagonal.NAME in names else "",
        mirrors=[(f"{n}", name) for n in (1, 2) if (name := f"{mirror.name_of(n)}{suffix}") in names],
        gated=[
            (key(shape), name)
            for shape in catalogue.walks(outputs=True)
            if not shape.prepared and (name := f"{shape.name}{suffix or '_gated'}") in names and gated
        ],
        buffers=["dt_ready" if name == "dt" else name for name in buffers],
        minimal=_literal(space.smallest()),
        most_states=2 * LARGEST,
    )


def _backward_launcher(
    layer: Layer, forward: list[Kernel], backward: list[Kernel], gated: list[Kernel], suffix: str = ""
) -> str:
    """The launcher of the backward pass, with the kernels of both passes that are there; gated, suffix: see above."""
    backward = [*backward, *(kernel for kernel in gated if kernel.name in GATED_NAMES)]
    names = {kernel.name for kernel in (*forward, *backward)}
    tables = {
        "segment_state": [(f"{n}", Walk(outputs=False, n_tiles=n).name) for n in (1, 2)],
        "chunk_states": [(f"{n}", States(n_tiles=n).name) for n in (1, 2)],
        "chunk_adjoints": [(f"{n}", States(True, n_tiles=n).name) for n in (1, 2)],
        "segment_adjoint": [(f"{n}", States(True, False, n).name) for n in (1, 2)],
        "reverse_walk": [(f"({n}, {p})", Reverse(n, p).name) for n, p in catalogue.TILES],
        "group_gradients": [(f"({n}, {p})", Groups(n, p).name) for n, p in catalogue.TILES],
        "reverse_walk_blocks": [(f"{n}", Reverse(n, blocks=True).name) for n in (1, 2)],
        "group_gradients_blocks": [(f"{p}", Groups(p_tiles=p, blocks=True).name) for p in (1, 2)],
        "chunk_gradients": [(f"({n}, {p})", Gradients(n, p).name) for n, p in catalogue.TILES],
    }
    there = {
        table: [(key, name) for key, shape in rows if (name := f"{shape}{suffix}") in names]
        for table, rows in tables.items()
    }
    consumers = {kernel: [row for row in rows if row[1] in names] for kernel, rows in specialised.backward().items()}
    used = {name for rows in (*there.values(), *consumers.values()) for _, name in rows}
    used |= {*SHARED} - {"state_passing"} | {*(kernel.name for kernel in gated if kernel.name in GATED_NAMES)}
    strided = {
        t.name: t.dims for k in (*forward, *backward) if k.name in used for t in k.tensors if t.stride_parameters()
    }
    buffers = [tensor.name for tensor in prepare.kernel(layer).tensors if tensor.out]
    loops = adjoint.loops(layer)
    used |= {sum_heads.NAME, *([sum_parts.NAME] if loops else [])}
    return render(
        "launchers/backward.py.jinja",
        modules=sorted(used),
        dims=[(name, _literal_names(dims)) for name, dims in sorted(strided.items())],
        axes=[(name, "".join(AXES.get(dim, ".") for dim in dims)) for name, dims in sorted(strided.items())],
        tables=[(kernel, rows) for kernel, rows in there.items() if rows],
        consumers=[(kernel, rows) for kernel, rows in consumers.items() if rows],
        buffers=["dt_ready" if name == "dt" else name for name in buffers],
        walk_vectors=adjoint.there(layer, *adjoint.WALK_VECTORS),
        group_vectors=adjoint.there(layer, *adjoint.GROUP_VECTORS),
        vectors=adjoint.there(layer, *adjoint.VECTORS),
        numbers=adjoint.there(layer, *adjoint.NUMBERS),
        owner="ngroups" if loops else "nheads",
        # heads that share an operand leave a part each, in fp32
        parts=[name for name in ("x", "B", "C") if _in_parts(layer, name)],
        uses_a=layer.family.uses_a,
        gated=bool(gated),
        forward=f"forward{suffix}",
        most=2 * LARGEST,
    )


def _decode_launcher(decoding: list[Kernel]) -> str:
    """The launcher of a decode step, with the shapes of it that are there."""
    names = {kernel.name for kernel in decoding}
    steps = [(f"({tied}, {n})", Step(n, tied).name) for tied, n in product((True, False), (1, 2))]
    replays = [(f"{n}", Replay(n).name) for n in (1, 2)]
    of_heads = [("False", Step(heads=True).name), ("True", Replay(heads=True).name)]
    shapes = step_tiles.shapes()
    tiled = [(f"({each.replay}, {each.p_tiles}, {each.ahead})", each.name) for each in shapes if not each.units]
    in_units = [(f"({each.p_tiles}, {each.ahead})", each.name) for each in shapes if each.units]
    tensors = sorted((t for k in decoding for t in k.tensors if t.stride_parameters()), key=lambda t: len(t.dims))
    strided = {t.name: t.dims for t in tensors}
    return render(
        "launchers/decode.py.jinja",
        modules=sorted(names),
        dims=[(name, _literal_names(dims)) for name, dims in sorted(strided.items())],
        steps=[row for row in steps if row[1] in names],
        replays=[row for row in replays if row[1] in names],
        of_heads=[row for row in of_heads if row[1] in names],
        tiled=[row for row in tiled if row[1] in names],
        in_units=[row for row in in_units if row[1] in names],
    )


def _in_parts(layer: Layer, name: str) -> bool:
    """Whether the heads that share an operand each leave a part of its gradient."""
    return not layer.layout.per_head(name) and (name == "x" or not adjoint.loops(layer))


def _settings(layer: Layer, chunk: int | None) -> str:
    if chunk is not None and (chunk < SMALLEST or chunk != next_power_of_two(chunk)):
        raise ValueError(f"chunk is {chunk}; it must be a power of two, of at least {SMALLEST}")
    plain = layer == Layer()
    return render(
        "pack/settings.py.jinja",
        about="Mamba-2's" if plain else f"the {layer.family.name} family in the {layer.layout.name} layout",
        chunk=chunk,
        layout=layer.layout,
        layouts=catalogue.variants(layer),
        gated=layer.family.decays,
        log_decay=_torch(layer.family.log_decay),
        **_combined(),
    )


def _combined() -> dict[str, str]:
    """What two runs of tokens do together, as expressions on tensors: `total`, `kept` and `state`."""
    first, second = (
        chain.Summary(sympy.Symbol(f"{run}_total"), sympy.Matrix([[sympy.Symbol(f"{run}_state")]]))
        for run in ("first", "second")
    )
    both = chain.combine(first, second)
    state: Any = both.state[0, 0]
    (decay,) = state.atoms(sympy.Pow)
    # over all of a state; the exponent is limited as everywhere
    kept = f"torch.exp2(({decay_exponent(decay)}).clamp(max=0))[..., None, None]"
    state = state.xreplace({decay: sympy.Symbol("kept")})
    return {"total": _torch(both.total), "kept": _torch_text(kept), "state": _torch(state)}


def _torch(expr: sympy.Expr) -> str:
    """A formula as an expression on tensors; only operators mean the same to sympy and to torch."""
    if functions := expr.atoms(sympy.Function):
        names = ", ".join(sorted(str(function.func) for function in functions))
        raise ValueError(f"the PyTorch path has no form for {names} in {expr}; add one to emit/package.py")
    return _torch_text(str(expr))


def _torch_text(source: str) -> str:
    return ast.unparse(ast.parse(source))


def _literal_names(names: tuple[str, ...]) -> str:
    """What stands between the parentheses of a tuple of strings."""
    return ", ".join(f'"{name}"' for name in names) + ("," if len(names) == 1 else "")


def _literal(value: dict) -> str:
    """A dict as source, one entry a line."""
    entries = (f"    {json.dumps(name)}: {_entry(entry)}," for name, entry in value.items())
    return "\n".join(("{", *entries, "}"))


def _entry(value: object) -> str:
    """A number, word or dict as source, on one line and in double quotes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)}: {_entry(entry)}" for name, entry in value.items()) + "}"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _manifest(layer: Layer, fingerprints: dict[str, str]) -> str:
    """What the package holds, for the check of records at run time."""
    content = {
        "layer": {"family": layer.family.name, "layout": layer.layout.name},
        "fingerprint": fingerprints,
        "space": space.fingerprint(),
    }
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


__all__ = ["package"]
