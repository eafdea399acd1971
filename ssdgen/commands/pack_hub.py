"""`ssdgen pack hub`: a repository for Hugging Face's `kernels`.  arguments -> emit.package, pack.hub -> a folder"""

from __future__ import annotations

from pathlib import Path

import click

from ..pack import hub as layout
from ..pack import templates, tree


@click.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="A new or empty folder.")
@click.option(
    "--records",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder of records.  [ssdgen's own]",
)
def hub(out: Path, records: Path | None) -> None:
    """Write a repository that Hugging Face's `kernels` loads, from a folder or after an upload.

    `kernels.get_local_kernel(Path(OUT))` is the package; `kernels.LocalLayerRepository(Path(OUT), layer_name=...)` puts
    one of its layers into a model.
    """
    from ..emit import package

    templates.load()
    folder = records or templates.data_folder("tuned")
    tuned = {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in sorted(folder.rglob("*.json"))}
    written = tree.write(layout.repository(package.package(runtime=templates.runtime_sources()), tuned), out)
    click.echo(f"{out}: {len(written)} files new or changed, for {', '.join(layout.BACKENDS)}")
