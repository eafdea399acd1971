"""`ssdgen emit`: the generated package as files.  arguments -> emit.package -> a folder"""

from __future__ import annotations

from pathlib import Path

import click

from ..pack import templates, tree
from .failures import Failure
from .options import layer_from, layer_options, refuse_options, variant_option


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="A new or empty folder.")
@variant_option
@layer_options
@click.option("--chunk", type=click.IntRange(min=1), help="Positions per chunk of the built-in default.")
@click.option("--headdim", type=click.IntRange(min=1), help="Emit only what this headdim needs.")
@click.option("--dstate", type=click.IntRange(min=1), help="Emit only what this dstate needs.")
def emit(
    out: Path,
    variant: str | None,
    family: str,
    layout: str,
    extras: tuple[str, ...],
    chunk: int | None,
    headdim: int | None,
    dstate: int | None,
) -> None:
    """Write a package that runs alone, with torch and triton.

    Import it by the folder's name: `ssdgen emit --out my_ops`, then `from my_ops import mamba_chunk_scan_combined`.
    With `--variant mamba3` it is `from my_ops import mamba3_siso_combined`.
    A folder that holds an earlier package is brought up to date.
    """
    from ..emit import mamba3, package

    templates.load()
    if variant:
        given = {"family": family, "layout": layout, "with": extras, "chunk": chunk, "headdim": headdim}
        refuse_options(variant, **given, dstate=dstate)
        texts = mamba3.package(runtime=templates.runtime_sources())
    else:
        try:
            texts = package.package(
                layer_from(family, layout, extras),
                runtime=templates.runtime_sources(),
                chunk=chunk,
                headdim=headdim,
                dstate=dstate,
            )
        except ValueError as error:
            raise Failure(str(error)) from error
    written = tree.write(texts, out)
    click.echo(f"{len(texts)} files in {out}, {len(written)} of them new or changed")
