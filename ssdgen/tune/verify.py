"""The records of a pack run once more on the GPU that is here, against float64.  pack -> lines of JSON

A program of its own: `python -m ssdgen.tune.verify NAME`.  It sees packs as any process does, so what it checks is what
users load, and a kernel that breaks CUDA's context ends it alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import torch

from ..mamba2_ops import packs, precompiled
from ..mamba2_ops.match import is_same
from ..mamba2_ops.records import read_root
from ..mamba2_ops.select import gpu_of
from ..pack import store
from ..pack.records import DIRECTIONS, Direction, Record
from . import gate
from .errors import RejectedError
from .passes import PASSES


def numbers(name: str, seed: int = 0) -> Iterator[dict[str, Any]]:
    """One result for each record of this GPU: {"problem", "direction", "error", "error_limit", "reason"}.

    reason: why it failed, or None.  The last one is `precompiled.counts()`: how many kernels came from the pack.
    Errors: PackError.
    """
    pack = next(pack for pack in packs.installed() if pack.name == name)
    pack.check_records()
    here = gpu_of(torch.device("cuda", torch.cuda.current_device()))
    mine = [gpu.folder for gpu in read_root(pack.records) if is_same(here, gpu)]
    for folder in mine:
        for direction in DIRECTIONS:
            for record in store.read(folder, direction):
                yield _one(record, direction, seed)
    yield precompiled.counts()


def _one(record: Record, direction: Direction, seed: int) -> dict[str, Any]:
    it, problem = PASSES[direction], record.problem
    said: dict[str, Any] = {"problem": problem.to_json(), "direction": direction, "error": None, "reason": None}
    try:
        given = it.draw(problem, "cuda", seed, True)
        with gate.poisoned_memory():
            found = it.run(record.config, given, True)
        checked = it.check(found, it.expect(given, problem), problem)
        said |= {"error": checked.error, "error_limit": checked.limit}
    except (RejectedError, torch.cuda.OutOfMemoryError) as error:
        said["reason"] = str(error).splitlines()[0]
    return said


if __name__ == "__main__":
    for line in numbers(sys.argv[1]):
        print(json.dumps(line), flush=True)
