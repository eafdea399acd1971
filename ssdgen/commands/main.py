"""`ssdgen`: the sub-commands, and errors as a person wants to read them.  -> cli.py, the console script"""

from __future__ import annotations

import click

from .. import __version__
from .doctor import doctor
from .emit import emit
from .export import export
from .failures import FriendlyGroup
from .pack import pack
from .report import report
from .show import show
from .tune import tune


@click.group(cls=FriendlyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="ssdgen")
def main() -> None:
    """From the equations of Mamba-2's SSD layer to readable, tuned Triton kernels.

    Every stage can be printed, and the last one is a package of plain source that you import:

    \b
      ssdgen show spec                 the layer as equations, cut into blocks
      ssdgen show plan single_pass     one kernel as data: tiles, loads, products, scans
      ssdgen show kernel single_pass   the source that is emitted for it
      ssdgen show space                what a search may choose, with the reason for every bound
      ssdgen show roofline --gpu h200  the least time that a call can take, and what binds it
      ssdgen emit --out my_ops         a package that runs alone, with torch and triton
      ssdgen tune --budget 8m          the best configuration for each shape on the GPU that is here
      ssdgen pack build --gpu h200     a wheel with sources, records and compiled kernels
      ssdgen report                    a page: before and after, roofline, searches, accuracy
      ssdgen doctor                    what is here, what a call would run with, what is wrong

    On a machine without a GPU, `ssdgen tune --gpu h200` predicts configurations by compiling for that GPU.
    """


main.add_command(show)
main.add_command(emit)
main.add_command(tune)
main.add_command(pack)
main.add_command(doctor)
main.add_command(export)
main.add_command(report)
