"""Measured decode records as vLLM reads them.  records of a GPU -> {file name: text} -> ssdgen export

vLLM looks up its `selective_state_update` by a file per (headdim, dstate, device, dtype of the state) that maps the
effective batch, sequences times heads, to the rows of headdim that a program takes and its warps.  A step of ours is
cut the same way, so both numbers carry over.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import store
from .records import MEASURED, Identity, Record

DECODE = "decode"
# two states of the same width are one to vLLM
_WIDTHS = {"float32": "float32", "float16": "float16", "bfloat16": "float16"}


class ExportError(ValueError):
    """There is nothing to export, or a record has no equivalent; the message says what to do."""


def read(root: Path, arch: str, gpu: str) -> dict[str, str]:
    """{file name: text} from a folder of records.  Errors: ExportError, RecordError."""
    folder = root / f"{arch}_{gpu}"
    identity = store.read_identity(folder)
    path = store.records_path(folder, DECODE)  # type: ignore[arg-type]
    measure = f"measure some on that GPU: ssdgen tune --pass {DECODE}"
    if identity is None or not path.is_file():
        raise ExportError(f"there are no decode records of {gpu}, {path} does not exist; {measure}")
    found = [each for each in store.read(folder, DECODE) if each.provenance == MEASURED]  # type: ignore[arg-type]
    if not found:
        raise ExportError(f"{path} has no measured record, and a predicted one is no basis for serving; {measure}")
    return files(identity, found)


def files(identity: Identity, records: Iterable[Record]) -> dict[str, str]:
    """{file name: text}, sorted.  Of several records of one effective batch the fastest counts.

    The dtype of a decode step's problem is that of its state; states that vLLM has not, in 8 bits, are left out.
    So is what only our own kernels take: heads and tiles of a program, early launches, a cap on registers.
    Errors: ExportError for a record whose config is no decode step's, and if nothing is left.
    """
    best: dict[tuple[int, int, str], dict[int, tuple[float, dict[str, int]]]] = {}
    for record in records:
        problem = record.problem
        if problem.dtype not in _WIDTHS:
            continue
        table = best.setdefault((problem.headdim, problem.dstate, _WIDTHS[problem.dtype]), {})
        effective = problem.batch * problem.nheads
        known = table.get(effective)
        if known is None or record.time_us < known[0]:
            table[effective] = record.time_us, _numbers(record)
    if not best:
        raise ExportError(f"no record of {identity.gpu} has states in {', '.join(_WIDTHS)}, which are what vLLM has")
    return {
        _file_name(headdim, dstate, identity.name, dtype): _text({n: row for n, (_, row) in sorted(table.items())})
        for (headdim, dstate, dtype), table in sorted(best.items())
    }


def _numbers(record: Record) -> dict[str, int]:
    steps = {name: numbers for name, numbers in record.config["kernels"].items() if "block_p" in numbers}
    if len(steps) != 1:
        names = ", ".join(record.config["kernels"]) or "no kernel"
        raise ExportError(f"the record of {record.problem} launches {names}; one kernel must have block_p rows")
    ((_, numbers),) = steps.items()
    rows = min(numbers["block_p"], record.problem.headdim)
    return {"BLOCK_SIZE_M": rows, "num_warps": numbers.get("num_warps", 4)}


def _file_name(headdim: int, dstate: int, device: str, dtype: str) -> str:
    return f"headdim={headdim},dstate={dstate},device_name={device.replace(' ', '_')},cache_dtype={dtype}.json"


def _text(table: dict[int, Any]) -> str:
    return json.dumps({str(effective): row for effective, row in table.items()}, indent=4) + "\n"
