"""Every plan of the convolution gives what its graph means, for all options, widths and lengths."""

from __future__ import annotations

import numpy as np
import pytest

from ssdgen.plan.interpret import run
from ssdgen.plan.schedules import conv_tile, conv_update, conv_walk
from tests.plan.conv_calls import Case, expected, interpreted

CASES = {
    "plain": Case(),
    "activated": Case(options=("bias", "silu")),
    "sequences": Case(options=("bias", "silu", "seq_idx", "initial", "states")),
    "packed": Case(options=("bias", "silu", "cu_seqlens", "initial", "states")),
    "packed, no state": Case(options=("cu_seqlens",), lengths=(1, 1, 2)),
    "states": Case(options=("silu", "initial", "states")),
    "one token": Case(options=("bias", "silu", "initial", "states"), seqlen=1),
    "two tokens": Case(options=("seq_idx", "initial", "states"), seqlen=2),
    "width 2": Case(2, ("bias", "silu", "seq_idx", "initial", "states")),
    "width 3": Case(3, ("bias", "silu", "seq_idx", "initial", "states"), seqlen=2),
}
TILED = [name for name in CASES if not name.startswith("packed")]


def agree(kernel, case: Case, backward: bool, parts: int, **constants: int) -> None:
    wanted = expected(case)
    for name, array in interpreted(kernel, case, backward, parts, **constants).items():
        np.testing.assert_allclose(array, wanted[name], rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("backward", (False, True))
@pytest.mark.parametrize("parts", (1, 3))
@pytest.mark.parametrize("name", CASES)
def test_a_walk_is_the_graph(name: str, parts: int, backward: bool, seed: int) -> None:
    case = CASES[name].draw(seed)
    agree(conv_walk.kernel(conv_walk.Walk(case.width, backward)), case, backward, parts, BLOCK_D=4)


@pytest.mark.parametrize("backward", (False, True))
@pytest.mark.parametrize("block", (4, 16))
@pytest.mark.parametrize("name", TILED)
def test_a_tile_is_the_graph(name: str, block: int, backward: bool, seed: int) -> None:
    case = CASES[name].draw(seed)
    # tokens before the first have gradients too
    tiles = -(-(case.seqlen + (case.width - 1 if backward and case.has("initial") else 0)) // block)
    kernel = conv_tile.kernel(conv_tile.Tile(case.width, backward))
    agree(kernel, case, backward, tiles, BLOCK_D=4, BLOCK_T=block)


@pytest.mark.parametrize("tokens", (1, 3, 6))
@pytest.mark.parametrize("ring", (False, True))
def test_updates_continue_a_sequence(ring: bool, tokens: int, seed: int) -> None:
    """Row 0 is padding, row 1 has slot 2: what comes out of it is the rest of the sequence, state included."""
    case = Case(3, ("bias", "silu"), batch=1, seqlen=9 + tokens).draw(seed)
    wanted = expected(case)["y"][0, 9:].T
    x = np.swapaxes(case.arrays["x"], 1, 2)[0]
    state_len, position = 4, np.arange(5, 9)
    conv_state = np.random.default_rng(seed).standard_normal((3, case.dim, state_len))
    untouched = conv_state[:2].copy()
    conv_state[2][:, position % state_len if ring else position - 5] = x[:, 5:9]
    y = np.full((2, case.dim, tokens), np.nan)
    tensors = {"x": np.stack([x[:, 9:]] * 2), "y": y, "conv_state": conv_state}
    tensors |= {"weight": case.arrays["weight"], "bias": case.arrays["bias"]}
    tensors |= {"cache_seqlens": np.array([7, 9]), "conv_state_indices": np.array([-1, 2])}
    sizes = {"batch": 2, "slots": 3, "dim": case.dim, "tokens": tokens, "width": 3, "state_len": state_len}
    flags = {"HAS_BIAS": True, "SILU": True, "HAS_RING": ring, "HAS_INDICES": True}
    run(conv_update.kernel(3), tensors, sizes, {"BLOCK_D": 4}, flags, {})
    np.testing.assert_allclose(y[1], wanted, rtol=1e-12, atol=1e-12)
    assert not y[0].any()
    np.testing.assert_array_equal(conv_state[:2], untouched)
    end = 9 + tokens
    last = np.arange(end - state_len, end)
    np.testing.assert_array_equal(conv_state[2][:, last % state_len if ring else slice(None)], x[:, last])


def test_too_few_tokens_at_once() -> None:
    with pytest.raises(ValueError, match="at least width - 1 = 3"):
        conv_walk.kernel(conv_walk.Walk(4, tokens=2))
