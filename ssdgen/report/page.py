"""The page: everything in one file, nothing from elsewhere.  Content -> HTML"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, log

from jinja2 import Environment, StrictUndefined

from ..gpus import Gpu
from ..pack.records import BACKWARD, FORWARD, Identity
from . import plots
from .content import Row
from .kernels import Split
from .studies import History

TEMPLATE = "report/page.html.jinja"


@dataclass(frozen=True)
class Content:
    """What the page shows.  missing: {section: why it is empty}."""

    gpu: Gpu
    identity: Identity
    rows: Sequence[Row]
    histories: Sequence[History] = ()
    splits: Sequence[Split] = ()
    storage: str = ""
    version: str = ""
    missing: dict[str, str] = field(default_factory=dict)


def render(content: Content, template: str) -> str:
    """The text of the page.  template: that of TEMPLATE."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["us"] = _us
    return environment.from_string(template).render(
        content=content,
        gpu=content.gpu,
        identity=content.identity,
        rows=content.rows,
        gains=_gains(content.rows),
        roofline=plots.roofline(list(content.rows), content.gpu),
        histories=[(each, plots.history(each, f"history{at}")) for at, each in enumerate(content.histories)],
        splits=content.splits,
        missing=content.missing,
    )


def _gains(rows: Sequence[Row]) -> list[tuple[str, float, int]]:
    """(pass, geometric mean of the speed-ups, how many) for each pass that has any."""
    found = []
    for direction in (FORWARD, BACKWARD):
        gains = [gain for row in rows if row.direction == direction and (gain := row.speedup)]
        if gains:
            found.append((direction, exp(sum(map(log, gains)) / len(gains)), len(gains)))
    return found


def _us(value: float | None) -> str:
    """Microseconds for a person: three digits, at most one behind the point."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
