"""The problems that a user can name.  "2.7b,nemotron-h" or numbers -> [Problem] -> study"""

from __future__ import annotations

from dataclasses import replace

from ..plan.problem import OTHER_LAYOUTS, Problem

# head layouts, of which the first two run on Mamba-2's own kernels
MULTI_INPUT, MULTI_HEAD = "multi-input", "multi-head"
LAYOUTS = (MULTI_INPUT, MULTI_HEAD, *OTHER_LAYOUTS)

DTYPES = ("bfloat16", "float16", "float32")

# (batch, seqlen, nheads, headdim, dstate, ngroups) of one layer of published models, at lengths of training and serving
NAMED: dict[str, tuple[int, int, int, int, int, int]] = {
    "2.7b": (8, 2048, 80, 64, 128, 1),
    "2.7b-1x2k": (1, 2048, 80, 64, 128, 1),
    "2.7b-16k": (1, 16384, 80, 64, 128, 1),
    "2.7b-128k": (1, 131072, 80, 64, 128, 1),
    "130m": (8, 2048, 24, 64, 128, 1),
    "nemotron-h": (4, 4096, 128, 64, 128, 8),
    "zamba2": (4, 4096, 64, 64, 64, 1),
    "falcon-h1": (4, 4096, 32, 128, 256, 2),
}
ALL = "all"
SIZES = ("batch", "seqlen", "nheads", "headdim", "dstate", "ngroups")


class ShapeNameError(ValueError):
    """A list of shapes that cannot be understood, or sizes that cannot be."""


def parse(text: str, dtype: str = "bfloat16", layout: str = MULTI_INPUT) -> dict[str, Problem]:
    """The problems of a list, by name, in order and each once.

    text: names of `NAMED`, "all", or six numbers b,L,H,P,N,G for each shape of your own, all separated by commas.
    layout: one of LAYOUTS; G is then the number of heads of what heads share, and in multi-head nothing is shared.
    Errors: ShapeNameError, which says what is allowed.
    """
    found: dict[str, Problem] = {}
    numbers: list[int] = []
    for word in [word.strip().lower() for word in text.split(",")]:
        if word.lstrip("-").isdigit():
            numbers.append(int(word))
            if len(numbers) == len(SIZES):
                found.setdefault(",".join(map(str, numbers)), _problem(tuple(numbers), dtype))
                numbers = []
            continue
        _complete(numbers, text)
        if word == ALL:
            found.update({name: _problem(sizes, dtype) for name, sizes in NAMED.items() if name not in found})
        elif word in NAMED:
            found.setdefault(word, _problem(NAMED[word], dtype))
        else:
            known = ", ".join((*NAMED, ALL))
            raise ShapeNameError(
                f"unknown shape {word!r}; give six numbers {','.join(SIZES)}, or names separated by commas: {known}"
            )
    _complete(numbers, text)
    return found if layout == MULTI_INPUT else _in_layout(found, layout)


def _in_layout(problems: dict[str, Problem], layout: str) -> dict[str, Problem]:
    if layout not in LAYOUTS:
        raise ShapeNameError(f"layout is {layout!r}; it must be one of {', '.join(LAYOUTS)}")
    return {
        f"{name} {layout}": replace(problem, ngroups=problem.nheads)
        if layout == MULTI_HEAD
        else replace(problem, layout=layout)
        for name, problem in problems.items()
    }


def name_of(problem: Problem) -> str:
    """The name of a problem's sizes, or its numbers."""
    sizes = tuple(getattr(problem, size) for size in SIZES)
    name = next((name for name, named in NAMED.items() if named == sizes), ",".join(map(str, sizes)))
    return f"{name} {problem.layout}" if problem.layout else name


def _problem(sizes: tuple[int, ...], dtype: str) -> Problem:
    if dtype not in DTYPES:
        raise ShapeNameError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    try:
        return Problem(*sizes, dtype=dtype)
    except ValueError as error:
        raise ShapeNameError(f"impossible shape {','.join(map(str, sizes))}: {error}") from error


def _complete(numbers: list[int], text: str) -> None:
    if numbers:
        raise ShapeNameError(f"{text!r} has {len(numbers)} numbers where a shape has {len(SIZES)}: {','.join(SIZES)}")
