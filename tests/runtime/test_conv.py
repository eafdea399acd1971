"""The convolution's public calls in PyTorch: against torch's own, token by token, in gradients, and with bad input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import mamba2_ops as ops

DOUBLE = torch.float64


def operands(batch=2, dim=5, seqlen=9, width=4, seed=0, dtype=DOUBLE):
    made = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=made, dtype=DOUBLE).to(dtype)

    x = normal(batch, seqlen, dim).transpose(1, 2)
    return x, normal(dim, width), normal(dim), normal(batch, dim, width - 1)


def by_torch(x, weight, bias, history, silu):
    whole = torch.cat([history, x], dim=2)
    y = F.conv1d(whole, weight.unsqueeze(1), bias, groups=weight.shape[0])
    return (F.silu(y) if silu else y), whole[:, :, whole.shape[2] - history.shape[2] :]


@pytest.mark.parametrize("width", (2, 3, 4))
@pytest.mark.parametrize("seqlen", (1, 2, 9))
@pytest.mark.parametrize("activation", (None, "silu", "swish"))
def test_it_is_torchs_convolution(width, seqlen, activation):
    x, weight, bias, history = operands(seqlen=seqlen, width=width)
    y, states = ops.causal_conv1d_fn(
        x, weight, bias, initial_states=history, return_final_states=True, activation=activation
    )
    expected, kept = by_torch(x, weight, bias, history, activation is not None)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(states, kept)
    torch.testing.assert_close(
        ops.causal_conv1d_fn(x, weight, activation=activation),
        by_torch(x, weight, None, torch.zeros_like(history), activation is not None)[0],
    )


@pytest.mark.parametrize("packed", (False, True))
def test_sequences_do_not_see_each_other(packed):
    x, weight, bias, _ = operands(batch=1, seqlen=9)
    history = operands(batch=4, seed=1)[3]
    cuts = [0, 4, 5, 7, 9]
    if packed:
        options = {"cu_seqlens": torch.tensor(cuts), "initial_states": history}
    else:
        options = {"seq_idx": torch.tensor([[3, 3, 3, 3, 0, 7, 7, 1, 1]]), "initial_states": history[:1]}
        history = torch.cat([history[:1], torch.zeros_like(history[1:])])
    y, states = ops.causal_conv1d_fn(x, weight, bias, return_final_states=True, activation="silu", **options)
    parts = [
        by_torch(x[:, :, start:end], weight, bias, history[k : k + 1], True)
        for k, (start, end) in enumerate(zip(cuts, cuts[1:], strict=False))
    ]
    torch.testing.assert_close(y, torch.cat([part for part, _ in parts], dim=2))
    every = torch.cat([kept for _, kept in parts])
    torch.testing.assert_close(states, every if packed else every[-1:])
    if packed:
        one = ops.causal_conv1d_fn(x, weight, bias, cu_seqlens=options["cu_seqlens"], initial_states=history[:1])
        torch.testing.assert_close(one[:, :, :4], by_torch(x[:, :, :4], weight, bias, history[:1], False)[0])


def test_padding_tokens_give_zero():
    x, weight, bias, _ = operands(batch=1, seqlen=5)
    y = ops.causal_conv1d_fn(x, weight, bias, seq_idx=torch.tensor([[-1, -1, 0, 0, 0]]))
    assert not y[:, :, :2].any()
    torch.testing.assert_close(y[:, :, 2:], ops.causal_conv1d_fn(x[:, :, 2:], weight, bias))


@pytest.mark.parametrize("options", ("plain", "seq_idx", "cu_seqlens"))
def test_gradients(options):
    x, weight, bias, history = (tensor.requires_grad_() for tensor in operands(batch=1, dim=3, seqlen=6))
    more = {
        "plain": {},
        "seq_idx": {"seq_idx": torch.tensor([[0, 0, 0, 0, 1, 1]])},
        "cu_seqlens": {"cu_seqlens": torch.tensor([0, 4, 6])},
    }[options]

    def run(x, weight, bias, history):
        return ops.causal_conv1d_fn(
            x, weight, bias, initial_states=history, return_final_states=True, activation="silu", **more
        )

    assert torch.autograd.gradcheck(run, (x, weight, bias, history))


@pytest.mark.parametrize("ring", (False, True))
@pytest.mark.parametrize("tokens", (1, 3, 6))
def test_updates_continue_a_sequence(ring, tokens):
    x, weight, bias, _ = operands(batch=2, seqlen=12)
    expected = ops.causal_conv1d_fn(x, weight, bias, activation="silu")
    state = torch.zeros(2, 5, 4, dtype=DOUBLE)
    got = []
    for start in range(0, 12, tokens):
        cache = torch.full((2,), start, dtype=torch.int32) if ring else None
        piece = x[:, :, start : start + tokens]
        piece = piece[:, :, 0] if tokens == 1 else piece
        y = ops.causal_conv1d_update(piece, state, weight, bias, "silu", cache_seqlens=cache)
        assert y.shape == piece.shape
        got.append(y.reshape(2, 5, -1))
    torch.testing.assert_close(torch.cat(got, dim=2), expected)
    last = x[:, :, -4:]
    torch.testing.assert_close(state, last.roll(12 % 4, 2) if ring else last)


def test_slots_and_padding():
    x, weight, bias, _ = operands(batch=3, seqlen=1)
    state = torch.randn(6, 5, 3, dtype=DOUBLE)
    before = state.clone()
    slots = torch.tensor([4, -1, 0], dtype=torch.int32)
    y = ops.causal_conv1d_update(x[:, :, 0], state, weight, bias, conv_state_indices=slots)
    own = before[[4, 0]].clone()
    expected = ops.causal_conv1d_update(x[[0, 2], :, 0], own, weight, bias)
    torch.testing.assert_close(y[[0, 2]], expected)
    assert not y[1].any()
    torch.testing.assert_close(state[[4, 0]], own)
    assert torch.equal(state[[1, 2, 3, 5]], before[[1, 2, 3, 5]])


def test_states_of_packed_sequences():
    x = torch.arange(1.0, 8.0)[:, None].expand(7, 2)
    states = ops.causal_conv1d_varlen_states(x, torch.tensor([0, 1, 6, 7]), 3)
    assert states[:, 0].tolist() == [[0, 0, 1], [4, 5, 6], [0, 0, 7]]
    assert states.shape == (3, 2, 3)


def test_final_states_are_written_where_asked():
    x, weight, _, _ = operands()
    out = torch.full((2, 5, 3), torch.nan, dtype=DOUBLE)
    _, states = ops.causal_conv1d_fn(x, weight, return_final_states=True, final_states_out=out)
    assert states is out
    assert torch.equal(out, x[:, :, -3:])


@pytest.mark.parametrize("last", (True, False))
def test_channels_stay_where_they_are(last):
    x = torch.randn(2, 7, 9)[..., 1:6].transpose(1, 2) if last else torch.randn(2, 5, 7)
    y = ops.causal_conv1d_fn(x, torch.randn(5, 4))
    assert y.transpose(1, 2).is_contiguous() if last else y.is_contiguous()


def test_compiled_whole():
    def call(x, weight, bias, history, state):
        y, states = ops.causal_conv1d_fn(
            x, weight, bias, initial_states=history, return_final_states=True, activation="silu"
        )
        return y, states, ops.causal_conv1d_update(x[:, :, 0], state, weight, bias)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    results = []
    for run in (call, compiled):
        given = [tensor.requires_grad_() for tensor in operands()]
        state = torch.ones(2, 5, 3, dtype=DOUBLE)
        found = run(*given, state)
        (found[0].sin().sum() + found[1].square().sum()).backward()
        results.append([*found, state, *(tensor.grad for tensor in given)])
    for own, other in zip(*results, strict=True):
        torch.testing.assert_close(own, other)


X, W, B, H = operands()
WRONG = {
    "width 5": (lambda: ops.causal_conv1d_fn(X, torch.ones(5, 5)), ops.ShapeError, "width 5"),
    "weight of a Conv1d": (lambda: ops.causal_conv1d_fn(X, W.unsqueeze(1)), ops.ShapeError, "squeeze"),
    "other channels": (lambda: ops.causal_conv1d_fn(X, torch.ones(4, 4)), ops.ShapeError, "dim 5"),
    "bias": (lambda: ops.causal_conv1d_fn(X, W, B[:4]), ops.ShapeError, r"\[5\]"),
    "2 dimensions": (lambda: ops.causal_conv1d_fn(X[0], W), ops.ShapeError, "seqlen"),
    "activation": (lambda: ops.causal_conv1d_fn(X, W, activation="gelu"), ops.OptionError, "gelu"),
    "states": (lambda: ops.causal_conv1d_fn(X, W, initial_states=H[:, :, :2]), ops.ShapeError, "initial_states"),
    "out alone": (lambda: ops.causal_conv1d_fn(X, W, final_states_out=H), ops.OptionError, "return_final_states"),
    "both": (
        lambda: ops.causal_conv1d_fn(
            X[:1], W, seq_idx=torch.zeros(1, 9, dtype=torch.int32), cu_seqlens=torch.tensor([0, 9])
        ),
        ops.OptionError,
        "seq_idx and cu_seqlens",
    ),
    "seq_idx": (
        lambda: ops.causal_conv1d_fn(X, W, seq_idx=torch.zeros(2, 8, dtype=torch.int32)),
        ops.ShapeError,
        r"\[2, 9\]",
    ),
    "cu_seqlens": (lambda: ops.causal_conv1d_fn(X[:1], W, cu_seqlens=torch.tensor([0, 8])), ops.SequenceError, "9"),
    "integers": (lambda: ops.causal_conv1d_fn(X.long(), W), ops.DtypeError, "int64"),
    "no tensor": (lambda: ops.causal_conv1d_fn(X, None), ops.OperandError, "weight"),
    "states' length": (lambda: ops.causal_conv1d_varlen_states(X[0].T, torch.tensor([0, 9]), 0), ops.OptionError, "0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input(case):
    call, error, words = WRONG[case]
    with pytest.raises(error, match=words):
        call()


def indices(*slots):
    return {"conv_state_indices": torch.tensor(slots)}


WRONG_STATES = {
    "too short": (torch.ones(2, 5, 2), {}, ops.ShapeError, "width - 1 = 3"),
    "other rows": (torch.ones(3, 5, 3), {}, ops.ShapeError, "batch 2"),
    "dtype": (torch.ones(2, 5, 3, dtype=torch.int8), {}, ops.DtypeError, "int8"),
    "expanded": (torch.ones(2, 1, 3).expand(2, 5, 3), {}, ops.ShapeError, "share memory"),
    "slot out of range": (torch.ones(4, 5, 3), indices(0, 4), ops.SlotError, r"\[1\] is 4; .* 0 to 3"),
    "negative slot": (torch.ones(4, 5, 3), indices(-2, 0), ops.SlotError, "is -2"),
    "a slot twice": (torch.ones(4, 5, 3), indices(1, 1), ops.SlotError, r"\[1\] is 1, as .*\[0\]"),
    "one slot": (torch.ones(4, 5, 3), indices(1), ops.ShapeError, "conv_state_indices"),
}


@pytest.mark.parametrize("case", WRONG_STATES)
def test_a_bad_update_leaves_the_state(case):
    state, options, error, words = WRONG_STATES[case]
    before = state.clone()
    with pytest.raises(error, match=words):
        ops.causal_conv1d_update(X[:, :, 0].float(), state, W, B, **options)
    assert torch.equal(state, before)
