"""What went wrong in one line and exit code 2; what nobody expected is a bug and keeps its traceback.  -> main"""

from __future__ import annotations

import sys
from typing import Any

import click

from ..gpus import UnknownGpuError
from ..pack.install import InstallError
from ..pack.records import RecordError
from ..pack.store import StoreError
from ..pack.templates import TemplatesError
from ..pack.vllm import ExportError
from ..pack.wheel import PackFileError, PackNameError
from ..tune.budget import BudgetError
from ..tune.errors import TuneError
from ..tune.shapes import ShapeNameError

EXPECTED = (
    UnknownGpuError,
    RecordError,
    StoreError,
    TemplatesError,
    BudgetError,
    TuneError,
    ShapeNameError,
    PackFileError,
    PackNameError,
    InstallError,
    ExportError,
)


class Failure(click.ClickException):
    """An error message and exit code 2, like that of a wrong option."""

    exit_code = 2


class FriendlyGroup(click.Group):
    """A group of commands whose expected errors are messages."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            if not isinstance(error, EXPECTED) and not _is_of_package(error):
                raise
            raise Failure(str(error)) from error


def _is_of_package(error: Exception) -> bool:
    """Whether a slow part raised it for what it was given.  None is imported to find out: that takes a second."""
    classes = (("mamba2_ops.errors", "SsdError"), ("report.studies", "StudyError"))
    modules = [(sys.modules.get(f"ssdgen.{module}"), name) for module, name in classes]
    return any(module is not None and isinstance(error, getattr(module, name)) for module, name in modules)
