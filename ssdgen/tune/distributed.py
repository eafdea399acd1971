"""Tuning inside of a training job: the first rank tunes, all get the records.  problems, Options -> records"""

from __future__ import annotations

import json

import torch.distributed as dist

from ..gpus import Gpu
from ..mamba2_ops import ladder, select
from ..pack import store
from ..pack.records import Identity, Record, identity_from_json, records_from_json, records_to_json
from ..plan.problem import Problem
from . import session
from .errors import TuneError
from .ranks import group, share
from .session import Benches, Options


def tune(problems: dict[str, Problem], gpu: Gpu, options: Options, benches: Benches | None = None) -> list[Record]:
    """Tune in the first rank of a torch.distributed job; every rank stores the records and uses them from now on.

    problems: {name: sizes}.  gpu: of every rank.  options: as of the command; `root` is each rank's own folder, the
    user's cache as a rule.  benches: as of `session.run`.  Call it in all ranks, before the first call of the layer.
    Errors: TuneError without a process group; what the search raises, in rank 0; OtherRankError in the others.
    """
    if not dist.is_initialized():
        raise TuneError("torch.distributed has no process group; call init_process_group first")

    def found() -> str:
        rows = session.run(problems, gpu, options, benches)
        records = [row.record for row in rows if row.record]
        return _packed(records, session.identity_of(gpu, options), ladder.current_fingerprint())

    data = json.loads(share(found, group()))
    identity = identity_from_json(data["identity"], "rank 0")
    records = [record for d, each in data["records"].items() for record in records_from_json(each, "rank 0", d)]
    if dist.get_rank() != 0:
        store.save(options.root, identity, records, data["kernels"])
    select.forget()
    return records


def _packed(records: list[Record], identity: Identity, kernels: dict[str, str]) -> str:
    """Records as text that another rank can store."""
    directions = {record.direction for record in records}
    by_pass = {d: records_to_json([each for each in records if each.direction == d], d) for d in sorted(directions)}
    return json.dumps({"identity": identity.to_json(), "records": by_pass, "kernels": kernels})
