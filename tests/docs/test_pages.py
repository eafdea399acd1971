"""What the pages tell a reader to do works, and gives what they show."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.docs import pages

# in one worker: what the pages need is imported once
pytestmark = pytest.mark.xdist_group("pages")

DOCS = pages.ROOT / "docs"
# how many blocks and commands of a page run at least: a fence of another language would leave one out in silence
RUN = {
    "tutorial.md": 18,
    "add_a_mask_family.md": 8,
    "add_a_schedule.md": 4,
    "install.md": 8,
    "index.md": 1,
    "tune_for_my_gpu.md": 4,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_what_a_page_shows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    # nothing of what this machine's own runs are told
    for variable in [name for name in os.environ if name.startswith(("SSDGEN_", "TRITON_"))]:
        monkeypatch.delenv(variable)
    assert pages.run(DOCS / name, tmp_path) >= RUN[name]


@contextmanager
def one_rank(folder: Path) -> Iterator[Any]:
    """A mesh of one process, with the axes of the README's."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1, 1), mesh_dim_names=("sequence", "tensor"))
    finally:
        dist.destroy_process_group()


def test_the_calls_of_the_readme(tmp_path: Path) -> None:
    import torch
    from torch.distributed.tensor.parallel import parallelize_module

    import mamba2_ops
    from mamba2_ops.tensor_parallel import SplitHeads

    heads, state = 4, 16
    names: dict[str, Any] = {
        "x": torch.randn(1, 20, heads, 8),
        "dt": torch.rand(1, 20, heads),
        "A": -torch.rand(heads),
        "B": torch.randn(1, 20, 1, state),
        "C": torch.randn(1, 20, 1, state),
        "D": torch.ones(heads),
        "dt_bias": torch.zeros(heads),
    }
    config = mamba2_ops.Mamba2LMConfig(32, 1, 10, {"headdim": 16, "d_state": 16})
    names |= {"model": mamba2_ops.Mamba2LMHeadModel(config), "SplitHeads": SplitHeads}
    try:
        with one_rank(tmp_path) as mesh:
            names |= {"mesh": mesh, "parallelize_module": parallelize_module}
            assert pages.run(pages.ROOT / "README.md", tmp_path, names) == 3
    finally:
        mamba2_ops.compat.uninstall()
    assert type(names["model"].backbone.layers[0].mixer.A_log.data).__name__ == "DTensor"
