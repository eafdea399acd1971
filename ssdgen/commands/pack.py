"""`ssdgen pack`: sources, records and compiled kernels as a wheel.  arguments -> build, verify, list, install"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from .. import gpus
from ..pack import install as installing
from ..pack import wheel
from ..tune import shapes as problems
from .failures import Failure
from .pack_hub import hub


@click.group()
def pack() -> None:
    """Ship tuned kernels: a wheel that spares others the tuning and the compiler.

    \b
    Examples:
      ssdgen pack build --gpu h200               records and kernels of the H200, in dist/
      ssdgen pack verify dist/ssdgen_pack_*.whl  every digest; on that GPU its numbers too
      ssdgen pack install dist/ssdgen_pack_h200-0.1.0-py3-none-linux_x86_64.whl
      ssdgen pack list                           what is installed, and what of it is of use here
    """


pack.add_command(hub)


@pack.command()
@click.option("--gpu", "gpu_names", required=True, metavar="NAME[,NAME...]", help="The GPUs that the pack is for.")
@click.option("--shapes", help="Names or numbers, as for `ssdgen tune`.  [default: those that have records]")
@click.option("--name", help="Of the pack.  [default: the GPUs]")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default="dist", show_default=True)
@click.option(
    "--records", type=click.Path(path_type=Path, file_okay=False), help="Folder of records.  [default: ssdgen's own]"
)
@click.option("--cubins/--no-cubins", default=True, show_default=True, help="Compiled kernels.")
@click.option(
    "--launchers/--no-launchers",
    default=None,
    help="Triton's own C modules, for this version of Python.  [default: where a C compiler is]",
)
@click.option("--jobs", type=click.IntRange(min=1), help="Processes that compile.  [default: one per core]")
def build(
    gpu_names: str,
    shapes: str | None,
    name: str | None,
    out: Path,
    records: Path | None,
    cubins: bool,
    launchers: bool | None,
    jobs: int | None,
) -> None:
    """Make a wheel for one or more GPUs, none of which has to be here.

    It holds the sources of `mamba2_ops`, the records of the GPUs and, compiled with the Triton that is installed, the
    kernels that these records launch.  The same sources, records, Triton and Python make the same bytes.  A kernel that
    is not in the pack, or a Triton of another version, is compiled by the user as without a pack.

    \b
    Examples:
      ssdgen pack build --gpu h200,a100
      ssdgen pack build --gpu h200 --shapes 2.7b,nemotron-h --name serving
      ssdgen pack build --gpu h200 --no-cubins   small, and good for every Triton and Python
    """
    chosen = [gpus.find(word.strip()) for word in gpu_names.split(",")]
    if cubins and any(gpu.backend != "cuda" for gpu in chosen):
        raise Failure("compiled kernels are for NVIDIA's GPUs alone; add --no-cubins for records and sources")
    wanted = problems.parse(shapes) if shapes else None
    pack_name = name or "_".join(dict.fromkeys(gpu.name for gpu in chosen))
    wheel.folder_of(pack_name)

    from . import packing

    def heard(done: int, count: int, what: str) -> None:
        click.echo(f"  compiled {done}/{count}: {what}", err=True)

    made = packing.build(chosen, pack_name, wanted, records, cubins, launchers, jobs, heard)
    path = packing.write(made, out)
    click.echo(f"{path}: {made.summary}")


@pack.command()
@click.argument("what", metavar="FILE.whl|NAME")
@click.option("--numbers/--no-numbers", default=None, help="Run its records.  [default: where its GPU is]")
def verify(what: str, numbers: bool | None) -> None:
    """Check a pack, as a file or installed: every digest, and on its GPU every record against float64.

    Nothing of a pack runs before its digests are right.  With a GPU the records are run in a process of its own,
    through the kernels that users would load.

    \b
    Examples:
      ssdgen pack verify dist/ssdgen_pack_h200-0.1.0-py3-none-linux_x86_64.whl
      ssdgen pack verify h200 --no-numbers
    """
    path = Path(what)
    opened = wheel.read(path) if path.suffix == ".whl" or path.exists() else None
    name, manifest = (opened.name, opened.manifest) if opened else _installed(what)
    click.echo(f"{name}: {len(manifest['files'])} files are what the manifest says")
    if numbers is False:
        return
    from ..tune import device

    here = device.name_here()
    matching = here is not None and device.gpu_here().name in manifest["gpus"]
    if not matching:
        if numbers:
            raise Failure(f"numbers need one of {', '.join(manifest['gpus'])}; here is {here or 'no GPU'}")
        click.echo(f"numbers were not checked: they need one of {', '.join(manifest['gpus'])}")
        return
    with tempfile.TemporaryDirectory() as folder:
        if opened:
            installing.unpack(opened, Path(folder))
        failed = _numbers(name, folder if opened else None)
    if failed:
        raise Failure(f"{failed} records of {name} are wrong here; do not use it on this GPU")


@pack.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_(as_json: bool) -> None:
    """Say which packs are installed, in the order in which they count, and what of them is of use here.

    \b
    Examples:
      ssdgen pack list
      ssdgen pack list --json
      ssdgen doctor --shape 2.7b   what a call takes from them
    """
    from ..mamba2_ops import packs
    from .diagnosis import describe

    rows = [describe(each.name, each.manifest) for each in packs.installed()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(f"{row['name']} {row['version']}: {', '.join(row['gpus'])}; {row['records']} records; {row['use']}")
    if not rows:
        click.echo("no packs are installed; `ssdgen pack build` makes one, `ssdgen pack install` installs it")


@pack.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def install(file: Path) -> None:
    """Check a pack's digests, then install it with pip in this Python's environment.

    What is installed is what was checked.  It has no dependencies installed: torch and Triton are here or are not.

    \b
    Examples:
      ssdgen pack install dist/ssdgen_pack_h200-0.1.0-py3-none-linux_x86_64.whl
      pip uninstall ssdgen-pack-h200   removes it
    """
    opened = wheel.read(file)
    installing.install(opened, file.name)
    click.echo(f"{opened.name} is installed: {len(opened.files)} files; `ssdgen doctor` says what is used for a shape")


def _installed(name: str) -> tuple[str, dict[str, Any]]:
    """An installed pack, all of whose files were read.  Errors: PackError, Failure."""
    from ..mamba2_ops import packs

    found = {each.name: each for each in packs.installed()}
    if name not in found:
        there = ", ".join(sorted(found)) or "none"
        raise Failure(f"no pack {name!r} is installed and no such file exists; installed: {there}")
    found[name].check_records()
    for path in found[name].files:
        found[name].read(path)
    return name, found[name].manifest


def _numbers(name: str, unpacked: str | None) -> int:
    """Run a pack's records in another process and print what came out.  Returns how many were wrong."""
    # this ssdgen's own folder: it may run from a checkout that is not installed
    here = str(Path(__file__).resolve().parents[2])
    places = [place for place in (unpacked, os.environ.get("PYTHONPATH"), here) if place]
    failed = 0
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "TRITON_CACHE_DIR": cache}
        command = [sys.executable, "-m", "ssdgen.tune.verify", name]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            said = json.loads(line)
            if "loaded" in said:
                click.echo(f"{said['loaded']} kernels came from the pack, {said['missed']} were compiled")
                continue
            failed += said["reason"] is not None
            shape = ",".join(str(said["problem"][size]) for size in problems.SIZES)
            result = said["reason"] or f"error {said['error']:.2g}, limit {said['error_limit']:.2g}"
            click.echo(f"  {said['direction']:8} {shape} {said['problem']['dtype']}: {result}")
        if process.wait():
            raise Failure(f"the check of {name} ended with exit code {process.returncode}; its message stands above")
    return failed
