"""Real processes that talk over gloo.  One start runs many cases, since a process takes seconds to import torch."""

from __future__ import annotations

import os
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

# a case gets the group of its ranks, and returns what its test looks at
Case = Callable[[dist.ProcessGroup], Any]


def start(size: int, cases: dict[str, tuple[int, Case]], patience: float = 60.0) -> dict[str, list[Any]]:
    """{case: what each of its ranks returned or the exception that it raised}.

    cases: by name, (ranks that take part, function); functions are found by name in the new processes.
    patience: seconds until a rank that waits for another gives up.
    """
    with tempfile.TemporaryDirectory() as folder:
        # torch is imported once, in a process that the ranks are forked from before it has run anything
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "torch.distributed.fsdp", "torch.distributed.tensor.parallel"])
        arguments = (size, cases, folder, patience)
        started = [context.Process(target=_work, args=(rank, *arguments)) for rank in range(size)]
        for process in started:
            process.start()
        deadline = time.monotonic() + 150
        for process in started:
            process.join(max(0.0, deadline - time.monotonic()))
        hanging = [rank for rank, process in enumerate(started) if process.is_alive()]
        for rank in hanging:
            started[rank].kill()
        found: dict[str, list[Any]] = {}
        for name, (ranks, _) in cases.items():
            paths = [Path(folder, f"{name}-{rank}.pt") for rank in range(ranks)]
            if missing := [rank for rank in hanging if rank < ranks and not paths[rank].exists()]:
                raise AssertionError(f"ranks {missing} hang in {name!r}")
            found[name] = [torch.load(path, weights_only=False) if path.exists() else None for path in paths]
        return found


def _work(rank: int, size: int, cases: dict[str, tuple[int, Case]], folder: str, patience: float) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=patience),
    )
    groups = {ranks: dist.new_group(list(range(ranks))) for ranks in sorted({ranks for ranks, _ in cases.values()})}
    for name, (ranks, case) in cases.items():
        if rank >= ranks:
            continue
        try:
            found = case(groups[ranks])
        except Exception as error:
            # an exception of torch may hold what cannot be pickled
            found = Raised(type(error).__name__, str(error), traceback.format_exc())
        torch.save(found, Path(folder, f"{name}-{rank}.pt"))
    # ranks that are still talking must not lose the others
    os._exit(0) if patience < 10 else dist.barrier()
    dist.destroy_process_group()


class Raised:
    """An exception of a rank.  name: of its class."""

    def __init__(self, name: str, text: str, trace: str) -> None:
        self.name, self.text, self.trace = name, text, trace

    def __repr__(self) -> str:
        return self.trace
