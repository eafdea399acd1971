"""`ssdgen export`: records in the form of other programs.  arguments -> pack.vllm -> files"""

from __future__ import annotations

from pathlib import Path

import click

from .. import gpus
from ..pack import vllm as of_vllm
from ..pack.store import write_text
from .tune import default_root


@click.group()
def export() -> None:
    """Write records in the form of other programs: vllm.

    \b
    Examples:
      ssdgen export vllm --gpu h200 --out configs
      VLLM_TUNED_CONFIG_FOLDER=configs vllm serve ...
    """


@export.command()
@click.option("--gpu", "gpu_name", required=True, metavar="NAME", help="Whose records.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="A folder.")
@click.option(
    "--records", type=click.Path(path_type=Path, file_okay=False), help="Folder of records.  [default: ssdgen's own]"
)
def vllm(gpu_name: str, out: Path, records: Path | None) -> None:
    """Write vLLM's launch configs of selective_state_update, from measured decode records.

    One file per headdim, dstate and dtype of the state; bf16 and fp16 share one.  Point vLLM at the folder with
    VLLM_TUNED_CONFIG_FOLDER.  Files of that name that are there are replaced.

    \b
    Examples:
      ssdgen tune --pass decode                         measure first, on that GPU
      ssdgen export vllm --gpu h200 --out configs
    """
    gpu = gpus.find(gpu_name)
    found = of_vllm.read(records or default_root(), gpu.arch, gpu.name)
    for name, text in found.items():
        write_text(out / name, text)
        click.echo(str(out / name))
