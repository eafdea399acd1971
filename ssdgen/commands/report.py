"""`ssdgen report`: one page about what was tuned.  arguments -> records, studies, kernels -> an HTML file"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import click

from .. import __version__, gpus
from ..gpus import Gpu
from ..pack import store, templates
from ..pack.records import BACKWARD, FORWARD, Record
from ..tune import shapes as problems
from .failures import Failure
from .tune import default_root


@click.command()
@click.option("--gpu", "gpu_name", metavar="NAME", help="Whose records.  [default: the GPU that is here]")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), default="report.html", show_default=True)
@click.option("--shapes", help="Names or numbers, as for `ssdgen tune`.  [default: those that have records]")
@click.option(
    "--storage", metavar="FILE|URL", help="Where trials are kept.  [default: the journal of that GPU, if there is one]"
)
@click.option(
    "--records", type=click.Path(path_type=Path, file_okay=False), help="Folder of records.  [default: ssdgen's own]"
)
@click.option(
    "--kernels/--no-kernels",
    default=True,
    show_default=True,
    help="Times of single kernels: measured on that GPU, elsewhere predicted by compiling.",
)
def report(
    gpu_name: str | None, out: Path, shapes: str | None, storage: str | None, records: Path | None, kernels: bool
) -> None:
    """Write one HTML page about what was tuned: it needs no network and no other file.

    Before and after, how near the hardware's limits, the error against float64, where the time goes kernel by kernel,
    how each search went and which axes mattered.

    \b
    Examples:
      ssdgen report                                       the GPU that is here, to report.html
      ssdgen report --gpu h100 --shapes 2.7b,nemotron-h
      ssdgen report --gpu h200 --storage tuning.journal   with the searches kept there
      optuna-dashboard tuning.journal                     the same searches, trial by trial
    """
    if find_spec("matplotlib") is None:
        raise Failure("the page's plots need matplotlib; pip install 'ssdgen[report]'")
    named = gpus.find(gpu_name) if gpu_name else None
    wanted = problems.parse(shapes).values() if shapes else None

    from ..report import content, page, studies
    from ..tune import device
    from ..tune.session import default_storage

    gpu = named or device.gpu_here()
    folder = (records or default_root()) / gpu.folder
    identity = store.read_identity(folder)
    # what a record of another kind of call is compared with is not on the page
    found = [record for direction in (FORWARD, BACKWARD) for record in store.read(folder, direction)]
    found = [record for record in found if wanted is None or record.problem in wanted]
    if identity is None or not found:
        raise Failure(f"{folder} has no records to report on; make some: ssdgen tune --gpu {gpu.name}")
    rows = content.rows(found, gpu)
    # rows are in the page's order, and what is shown beside them must be too
    by_row = {(record.problem, record.direction): record for record in found}
    ordered = [by_row[row.problem, row.direction] for row in rows]
    missing: dict[str, str] = {}
    if not kernels:
        missing["kernels"] = "Left out, as asked."
    splits = _splits(ordered, gpu, missing) if kernels else []
    journal = default_storage(gpu.folder)
    where = storage or (str(journal) if journal.is_file() else None)
    histories = studies.read(where) if where else []
    if not histories:
        missing["searches"] = f"No searches are kept in {where or journal}; name a journal or database with --storage."
    text = page.render(
        page.Content(gpu, identity, rows, histories, splits, studies.shown(where or ""), __version__, missing),
        templates.read()[page.TEMPLATE],
    )
    store.write_text(out, text)
    click.echo(f"{out}: {len(rows)} records, {len(histories)} searches, {len(text) / 1024:.0f} KiB")


def _splits(records: list[Record], gpu: Gpu, missing: dict[str, str]) -> list:
    """Times of single kernels; where there are none, `missing` says why."""
    if find_spec("triton") is None:
        missing["kernels"] = "Triton is not installed here, and nothing can be compiled or run."
        return []
    from ..report import kernels
    from ..tune import device
    from ..tune.errors import CompileError

    templates.load()
    name = device.name_here()
    try:
        if name is not None and device.gpu_here().name == gpu.name:
            return kernels.measured(records)
        click.echo(f"compiling for {gpu.name} to predict where the time goes; --no-kernels leaves it out", err=True)
        return kernels.predicted(records, gpu)
    except (CompileError, RuntimeError) as error:
        missing["kernels"] = f"Not found out: {error}"
        return []
