"""Walks of adjoints that start beside those of the states: which launches do, and that the bits are the same."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from ssdgen.mamba2_ops.launchers import backward as launcher
from ssdgen.tune.gate import poisoned_memory
from tests.parity.cases import Case
from tests.parity.test_backward import run
from tests.parity.test_backward_consumers import BASE, config, launches, on_hopper, walked


@pytest.mark.parametrize("segment", [0, 128])
@pytest.mark.parametrize("how", [config, walked], ids=["chunks", "walk"])
def test_adjoints_start_beside_the_states_where_they_come_next(how: Any, segment: int) -> None:
    """And nothing else does, nor they behind what they wait for."""

    def beside(how: dict[str, Any], states: torch.Tensor | None = None) -> list[tuple[str, str]]:
        names = [""]
        found = []
        for launch in launches(how, BASE, states):
            if launch.args.get("BESIDE"):
                found.append((names[-1], launch.kernel.__name__))
            names.append(launch.kernel.__name__)
        return found

    plain = how(segment=segment)
    assert not beside(plain)
    pairs = [
        tuple(re.sub(r"(_\dn.*)?_\dconsumers?$", "", name) for name in pair)
        for pair in beside({**plain, "beside": True})
    ]
    last = ("chunk_states", "chunk_adjoints" if how is config else "reverse_walk")
    assert pairs == [*([("segment_state", "segment_adjoint")] if segment else []), last]
    # what the forward pass kept is not made again: before the adjoints then comes what they read
    kept = torch.empty(BASE.batch, 5, BASE.nheads, 64, 128, dtype=torch.bfloat16, device="meta")
    assert not beside({**how(), "beside": True}, kept)


class TestOnHopper:
    pytestmark = on_hopper

    @pytest.mark.parametrize("segment", [0, 256])
    @pytest.mark.parametrize(
        "plain", [config(), config(2), walked(), walked(left=1)], ids=["one", "two", "right", "left"]
    )
    @pytest.mark.parametrize(("headdim", "dstate"), [(64, 128), (128, 256)])
    def test_beside_the_states_adjoints_have_the_same_bits(
        self, headdim: int, dstate: int, plain: dict[str, Any], segment: int
    ) -> None:
        """More walks than run at once, so that those of one kernel start while some of the other have yet to."""
        case = Case(4, 1024, 64, headdim, dstate, 2, "bfloat16", ("D", "dt_softplus"))
        plain = {**plain, **({"segment": segment} if segment else {})}
        given, first = run(plain, case, "cuda")
        for _ in range(20):
            with poisoned_memory():
                again = launcher.backward({**plain, "beside": True}, **given, needs=frozenset(first))
            assert all(torch.equal(again[name], first[name]) for name in first)
