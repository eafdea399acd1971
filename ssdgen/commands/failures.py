"""What went wrong in one line and exit code 2; what nobody expected is a bug and keeps its traceback.  -> main"""

from __future__ import annotations

from typing import Any

import click

from ..gpus import UnknownGpuError
from ..pack.records import RecordError
from ..pack.store import StoreError
from ..pack.templates import TemplatesError
from ..tune.budget import BudgetError
from ..tune.errors import TuneError
from ..tune.shapes import ShapeNameError

EXPECTED = (UnknownGpuError, RecordError, StoreError, TemplatesError, BudgetError, TuneError, ShapeNameError)


class Failure(click.ClickException):
    """An error message and exit code 2, like that of a wrong option."""

    exit_code = 2


class FriendlyGroup(click.Group):
    """A group of commands whose expected errors are messages."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except EXPECTED as error:
            raise Failure(str(error)) from error
