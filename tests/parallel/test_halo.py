"""A causal convolution over shards, each with its halo, equals the one over the whole sequence, gradients too."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.parallel import halos


@pytest.mark.slow
@pytest.mark.parametrize("name", halos.HALOS)
def test_a_convolution_over_shards_is_that_of_the_sequence(found: dict[str, list[Any]], name: str) -> None:
    shards = found[f"halo {name}"]
    for shard in shards:
        assert isinstance(shard, dict), shard
    exact = halos.whole(halos.HALOS[name])
    for key in ("y", "d_x"):
        torch.testing.assert_close(torch.cat([shard[key] for shard in shards], dim=1), exact[key])
    if "d_initial" in exact:
        torch.testing.assert_close(shards[0]["d_initial"], exact["d_initial"])
