"""`ssdgen show`: any stage as text.  arguments -> spec, plan, emit, space, roofline -> the terminal"""

from __future__ import annotations

from typing import Any

import click

from .. import gpus
from ..emit import kernel as sources
from ..pack import templates
from ..pack.records import BACKWARD, DIRECTIONS, FORWARD, Direction
from ..plan import backward_space, catalogue, parts
from ..plan import space as forward_space
from ..plan.problem import Problem
from ..spec import counts
from ..spec import show as descriptions
from ..tune.shapes import SIZES
from . import kernels, plan_text
from .options import (
    gpu_option,
    layer_from,
    layer_options,
    problem_from,
    problem_options,
    refuse_options,
    variant_option,
)

_SCHEDULES = (*counts.SCHEDULES, *backward_space.SCHEDULES)
# passes whose schedules have one kernel, and go by the pass
PARTS: tuple[Direction, ...] = tuple(each for each in DIRECTIONS if each not in (FORWARD, BACKWARD))


@click.group()
def show() -> None:
    """Print a stage: spec, plan, kernel, space, roofline."""


@show.command()
@variant_option
@layer_options
@click.option("--chunk", type=click.IntRange(min=1), help="Positions per chunk.  [default: a symbol]")
@click.option("--latex", is_flag=True, help="For a document (amsmath).")
@click.option("--backward", is_flag=True, help="Its adjoint instead, the gradients.")
def spec(
    variant: str | None,
    family: str,
    layout: str,
    extras: tuple[str, ...],
    chunk: int | None,
    latex: bool,
    backward: bool,
) -> None:
    """The layer, cut into blocks: equations, ranks, FLOPs and bytes."""
    if variant:
        refuse_options(variant, **{"family": family, "layout": layout, "with": extras, "latex": latex})
        click.echo(descriptions.mamba3_text(backward, chunk), nl=False)
        return
    layer = layer_from(family, layout, extras)
    if backward:
        shown = descriptions.backward_latex if latex else descriptions.backward_text
    else:
        shown = descriptions.latex if latex else descriptions.text
    click.echo(shown(layer, chunk), nl=False)


@show.command()
@click.argument("name")
@layer_options
def plan(name: str, family: str, layout: str, extras: tuple[str, ...]) -> None:
    """One kernel as data: what it loads, contracts, scans and stores."""
    click.echo(plan_text.text(kernels.named(name, layer_from(family, layout, extras))), nl=False)


@show.command()
@click.argument("name")
@variant_option
@layer_options
def kernel(name: str, variant: str | None, family: str, layout: str, extras: tuple[str, ...]) -> None:
    """The source that is emitted for one kernel."""
    if variant:
        refuse_options(variant, **{"family": family, "layout": layout, "with": extras})
        templates.load()
        click.echo(sources.module(*kernels.of_variant(name)), nl=False)
        return
    layer = layer_from(family, layout, extras)
    made = kernels.named(name, layer)
    templates.load()
    graph = parts.kernels()[name][1] if name not in kernels.BY_NAME else catalogue.graph(made, layer)
    click.echo(sources.module(made, graph), nl=False)


@show.command()
@gpu_option
@problem_options
@layer_options
@click.option("--chunk", "chunks", type=click.IntRange(min=1), multiple=True, help="May be given several times.")
@click.option("--backward", is_flag=True, help="Of the backward pass; the least time alone.")
def roofline(
    gpu_name: str,
    family: str,
    layout: str,
    extras: tuple[str, ...],
    chunks: tuple[int, ...],
    backward: bool,
    **sizes: Any,
) -> None:
    """The least time of a call, what binds it, and what each schedule adds."""
    gpu = gpus.find(gpu_name)
    problem = problem_from(**sizes)
    table = descriptions.roofline_table(
        layer_from(family, layout, extras),
        **{size: getattr(problem, size) for size in SIZES},
        element_bytes=problem.element_bytes,
        copy_tbs=gpu.copy_tbs,
        bf16_tflops=gpu.bf16_tflops,
        chunks=chunks or (64, 128, 256),
        backward=backward,
    )
    click.echo(f"GPU: {gpu.name} ({gpu.arch}, {gpu.sms} multiprocessors)\n{table}", nl=False)


@show.command()
@click.argument("schedule", type=click.Choice((*_SCHEDULES, *PARTS)), metavar="[SCHEDULE|PASS]", required=False)
@gpu_option
@problem_options
def space(schedule: str | None, gpu_name: str, **sizes: Any) -> None:
    """What a search may choose for a shape on a GPU, with the reason for every bound.

    Schedules of the forward pass: single_pass, segments, split; of the backward pass: walk, chunks.  Passes of one
    kernel: decode, replay, conv_forward, conv_backward, conv_tile_forward, conv_tile_backward, conv_update,
    norm_forward, norm_backward.
    """
    gpu = gpus.find(gpu_name)
    problem = problem_from(**sizes)
    if (direction := next((each for each in PARTS if each == schedule), None)) is not None:
        # torch takes a second, which the schedules of the scan need not wait for
        from ..tune.passes import PASSES
        from ..tune.problems import of_layer

        found = PASSES[direction].space
        click.echo(_axes(direction, found.SCHEDULES[0], found, of_layer(direction, problem), gpu))
        return
    for name in [schedule] if schedule else _SCHEDULES:
        spaces = backward_space if name in backward_space.SCHEDULES else forward_space
        click.echo(_axes(name, name, spaces, problem, gpu))


def _axes(title: str, schedule: str, spaces: Any, problem: Problem, gpu: gpus.Gpu) -> str:
    """The axes of one schedule, one paragraph each, and the config that fits everywhere."""
    lines = [title]
    for axis in spaces.axes(schedule, problem, gpu):
        lines.append(f"  {axis.name}: {', '.join(map(str, axis.values))}")
        lines.append(click.wrap_text(axis.why, 100, initial_indent="      ", subsequent_indent="      "))
    smallest = spaces.flatten(spaces.minimal(schedule, problem))
    chosen = ", ".join(f"{name}={value}" for name, value in smallest.items() if name != "schedule")
    lines.append(click.wrap_text(f"minimal: {chosen}", 100, initial_indent="  ", subsequent_indent="      "))
    return "\n".join(lines) + "\n"
