"""Options that several commands share: sizes, the layer's family and layout.  arguments -> Problem, Layer"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from ..plan.problem import Problem
from ..spec.layer import Layer
from ..spec.layouts import LAYOUTS
from ..spec.masks import FAMILIES, GATED
from ..tune.shapes import DTYPES, NAMED, SIZES, ShapeNameError
from .failures import Failure

VARIANTS = ("mamba3",)

F = TypeVar("F", bound=Callable[..., Any])

# names of the public call's arguments, and what they are to the layer
EXTRAS: dict[str, dict[str, Any]] = {
    "D": {"skip": "head"},
    "D-headdim": {"skip": "headdim"},
    "z": {"gate": True},
    "dt_bias": {"dt_bias": True},
    "dt_softplus": {"dt_softplus": True},
    "initial_states": {"initial_states": True},
    "seq_idx": {"boundaries": True},
}

_FAMILIES = {**FAMILIES, GATED.name: GATED}

gpu_option = click.option("--gpu", "gpu_name", metavar="NAME", default="h200", show_default=True, help="A known GPU.")


def problem_options(command: F) -> F:
    """--shape and one option per size, all of which `problem_from` takes."""
    command = click.option("--dtype", type=click.Choice(DTYPES), default="bfloat16", show_default=True)(command)
    for size in reversed(SIZES):
        command = click.option(f"--{size}", type=click.IntRange(min=1), help=f"Instead of the shape's {size}.")(command)
    return click.option(
        "--shape", type=click.Choice(list(NAMED)), default="2.7b", show_default=True, help="A layer of a known model."
    )(command)


def problem_from(shape: str, dtype: str, **sizes: int | None) -> Problem:
    """The shape with those sizes replaced that were given.  Errors: ShapeNameError."""
    named = dict(zip(SIZES, NAMED[shape], strict=True))
    try:
        return Problem(**{**named, **{size: value for size, value in sizes.items() if value is not None}}, dtype=dtype)
    except ValueError as error:
        raise ShapeNameError(f"impossible shape: {error}") from error


def layer_options(command: F) -> F:
    """--family, --layout and --with, all of which `layer_from` takes."""
    command = click.option(
        "--with",
        "extras",
        type=click.Choice(list(EXTRAS)),
        multiple=True,
        help="An option of the layer; may be given several times.",
    )(command)
    command = click.option(
        "--layout",
        type=click.Choice(list(LAYOUTS)),
        default="multi-input",
        show_default=True,
        help="Which of x, B and C the heads of a group share.",
    )(command)
    return click.option(
        "--family",
        type=click.Choice(list(_FAMILIES)),
        default="ssd",
        show_default=True,
        help="The mask: decay by input, constant decay, none, or a decay of every token (to show).",
    )(command)


def variant_option(command: F) -> F:
    """--variant: another description in place of a layer's."""
    return click.option(
        "--variant",
        type=click.Choice(VARIANTS),
        help="Another recurrence instead of a layer of Mamba-2's kind; it has no options.",
    )(command)


def refuse_options(variant: str, **given: object) -> None:
    """Raises Failure for options of a layer beside a variant.  given: values by option; empty ones are not set."""
    plain = {"family": "ssd", "layout": "multi-input"}
    if extra := [f"--{name}" for name, value in given.items() if value and value != plain.get(name)]:
        raise Failure(f"--variant {variant} has no {', '.join(extra)}; leave it out")


def layer_from(family: str, layout: str, extras: tuple[str, ...] = ()) -> Layer:
    options: dict[str, Any] = {}
    for extra in extras:
        options |= EXTRAS[extra]
    return Layer(_FAMILIES[family], LAYOUTS[layout], **options)
