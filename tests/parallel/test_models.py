"""A model whose parameters FSDP2 shards and whose sequence is cut over the same mesh equals one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.parallel import models


@pytest.mark.slow
def test_fsdp_and_a_mesh(found: dict[str, list[Any]]) -> None:
    shards, exact = found["fsdp"], models.whole()
    for shard in shards:
        assert isinstance(shard, dict), shard
        for name in set(exact) - {"output"}:
            torch.testing.assert_close(shard[name], exact[name], msg=name)
    torch.testing.assert_close(torch.cat([shard["output"] for shard in shards], dim=1), exact["output"])
