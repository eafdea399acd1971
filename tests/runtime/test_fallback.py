"""The PyTorch path equals the recurrence, step by step in float64, with every option."""

from __future__ import annotations

from math import inf

import pytest
import torch

from ssdgen.runtime.interface import mamba_chunk_scan_combined

# sums in fp32 of up to a few hundred terms of order 1; 16-bit results are rounded once
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def recurrence(
    x, dt, A, B, C, *, D=None, z=None, dt_bias=None, initial_states=None, seq_idx=None, cu_seqlens=None,
    dt_softplus=False, dt_limit=(0.0, inf),
):  # fmt: skip
    """One token at a time in float64.  Returns: y, the states after the last token (of each packed sequence)."""
    x, dt, A, B, C, D, z, dt_bias, initial_states = (
        None if t is None else t.detach().double() for t in (x, dt, A, B, C, D, z, dt_bias, initial_states)
    )
    batch, seqlen, nheads, headdim = x.shape
    B, C = (t.repeat_interleave(nheads // B.shape[2], dim=2) for t in (B, C))
    if dt_bias is not None:
        dt = dt + dt_bias
    if dt_softplus:
        dt = torch.logaddexp(dt, torch.zeros_like(dt))
    dt = dt.clamp(*dt_limit)
    starts = [] if cu_seqlens is None else cu_seqlens.tolist()[:-1]
    state = x.new_zeros(batch, nheads, headdim, B.shape[3])
    if initial_states is not None:
        state = state + initial_states[:batch]
    outputs, ends = [], []
    for t in range(seqlen):
        if seq_idx is not None and t and cu_seqlens is None:
            state = state * (seq_idx[:, t] == seq_idx[:, t - 1])[:, None, None, None]
        if t in starts[1:]:
            ends.append(state)
            index = starts.index(t)
            given = initial_states is not None and initial_states.shape[0] > index
            state = initial_states[index : index + 1] if given else torch.zeros_like(state)
        decay = (dt[:, t] * A).clamp(max=0).exp()
        state = decay[..., None, None] * state + torch.einsum("bh,bhp,bhn->bhpn", dt[:, t], x[:, t], B[:, t])
        y = torch.einsum("bhpn,bhn->bhp", state, C[:, t])
        if D is not None:
            y = y + (D[:, None] if D.dim() == 1 else D) * x[:, t]
        if z is not None:
            y = y * z[:, t] / (1 + (-z[:, t]).exp())
        outputs.append(y)
    return torch.stack(outputs, dim=1), torch.cat([*ends, state])


def inputs(
    batch=2, seqlen=150, nheads=4, headdim=8, dstate=16, ngroups=2, dtype=torch.float32, raw_dt=False
) -> dict[str, torch.Tensor]:
    """Random operands.  raw_dt: dt before softplus, of both signs; else a step size of about 0.01 to 1."""
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    dt = torch.randn(batch, seqlen, nheads, dtype=wide)
    return {
        "x": torch.randn(batch, seqlen, nheads, headdim, dtype=wide).to(dtype),
        "dt": dt if raw_dt else (dt - 2).exp(),
        "A": -torch.rand(nheads, dtype=wide) * 2 - 0.01,
        "B": torch.randn(batch, seqlen, ngroups, dstate, dtype=wide).to(dtype),
        "C": torch.randn(batch, seqlen, ngroups, dstate, dtype=wide).to(dtype),
    }


def close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    scale = expected.abs().max().clamp(min=1).item() if expected.numel() else 1
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=TOLERANCE[dtype] * scale)


def compare(tensors: dict, **options) -> None:
    """Both results of the public call against the recurrence."""
    y, final = mamba_chunk_scan_combined(**tensors, chunk_size=64, return_final_states=True, **options)
    expected, ends = recurrence(**tensors, **options)
    assert y.dtype == tensors["x"].dtype and final.dtype == max(tensors["dt"].dtype, torch.float32, key=_bits)
    close(y, expected, y.dtype)
    close(final, ends[-1:] if options.get("cu_seqlens") is not None else ends, final.dtype)


def _bits(dtype: torch.dtype) -> int:
    return torch.finfo(dtype).bits


def runs(batch: int, seqlen: int, pieces: int) -> torch.Tensor:
    """seq_idx with so many contiguous runs a row, of random lengths; values neither sorted nor from 0."""
    rows = []
    for _ in range(batch):
        cuts = sorted(torch.randperm(seqlen - 1)[: pieces - 1].add(1).tolist())
        lengths = [b - a for a, b in zip([0, *cuts], [*cuts, seqlen], strict=True)]
        rows.append(torch.repeat_interleave(torch.randperm(pieces) * 3 + 1, torch.tensor(lengths)))
    return torch.stack(rows).int()


OPTIONS = {
    "nothing": dict,
    "D per head": lambda: {"D": torch.randn(4)},
    "D per headdim": lambda: {"D": torch.randn(4, 8)},
    "z": lambda: {"z": torch.randn(2, 150, 4, 8)},
    "bias": lambda: {"dt_bias": torch.randn(4)},
    "softplus": lambda: {"dt_softplus": True},
    "bias, softplus and limits": lambda: {"dt_bias": torch.randn(4), "dt_softplus": True, "dt_limit": (0.3, 0.9)},
    "limits": lambda: {"dt_limit": (0.1, 0.2)},
    "initial states": lambda: {"initial_states": torch.randn(2, 4, 8, 16)},
    "sequences": lambda: {"seq_idx": runs(2, 150, 5)},
    "sequences and states": lambda: {"seq_idx": runs(2, 150, 5), "initial_states": torch.randn(2, 4, 8, 16)},
    "everything": lambda: {
        "D": torch.randn(4, 8),
        "z": torch.randn(2, 150, 4, 8),
        "dt_bias": torch.randn(4),
        "dt_softplus": True,
        "dt_limit": (0.01, 2.0),
        "initial_states": torch.randn(2, 4, 8, 16),
        "seq_idx": runs(2, 150, 3).long(),
    },
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option(name: str) -> None:
    compare(inputs(raw_dt=True), **OPTIONS[name]())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_dtype(dtype: torch.dtype) -> None:
    compare(inputs(dtype=dtype), D=torch.randn(4), z=torch.randn(2, 150, 4, 8).to(dtype))


@pytest.mark.parametrize("seqlen", [1, 7, 63, 64, 65, 129, 257])
def test_every_length(seqlen: int) -> None:
    compare(inputs(seqlen=seqlen), initial_states=torch.randn(2, 4, 8, 16))


@pytest.mark.parametrize(
    ("nheads", "headdim", "dstate", "ngroups"),
    [(1, 8, 2, 1), (3, 24, 96, 3), (10, 80, 16, 5), (10, 16, 16, 1), (3, 1, 1, 1), (2, 128, 256, 2)],
)
def test_odd_sizes(nheads: int, headdim: int, dstate: int, ngroups: int) -> None:
    compare(inputs(1, 70, nheads, headdim, dstate, ngroups))


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("with_seq_idx", [False, True])
def test_packed_sequences(rows: int, with_seq_idx: bool) -> None:
    """Initial states for none, the first, and each of five sequences; seq_idx beside cu_seqlens changes nothing."""
    tensors = inputs(batch=1, seqlen=200)
    options: dict = {"cu_seqlens": torch.tensor([0, 1, 60, 70, 140, 200], dtype=torch.int32)}
    if rows:
        options["initial_states"] = torch.randn(rows, 4, 8, 16)
    expected, ends = recurrence(**tensors, **options)
    if with_seq_idx:
        options["seq_idx"] = torch.zeros(1, 200, dtype=torch.int32)
    call = {**tensors, "chunk_size": 64, **options}

    y, final, varlen = mamba_chunk_scan_combined(**call, return_final_states=True, return_varlen_states=True)
    close(y, expected, torch.float32)
    close(varlen, ends, torch.float32)
    assert varlen.shape == (5, 4, 8, 16) and torch.equal(final, varlen[-1:])
    only_varlen = mamba_chunk_scan_combined(**call, return_varlen_states=True)
    assert len(only_varlen) == 2 and torch.equal(only_varlen[1], varlen)
    assert torch.equal(mamba_chunk_scan_combined(**call, return_final_states=True)[1], final)
    assert torch.equal(mamba_chunk_scan_combined(**call), y)


@pytest.mark.parametrize("cut", [1, 64, 77])
def test_two_halves_are_the_whole(cut: int) -> None:
    tensors = inputs(dtype=torch.float64)
    start = torch.randn(2, 4, 8, 16, dtype=torch.float64)

    def run(states, part):
        some = {k: t if k == "A" else t[:, part] for k, t in tensors.items()}
        return mamba_chunk_scan_combined(**some, chunk_size=64, initial_states=states, return_final_states=True)

    y, final = run(start, slice(None))
    first, middle = run(start, slice(0, cut))
    second, last = run(middle, slice(cut, None))
    torch.testing.assert_close(torch.cat([first, second], dim=1), y)
    torch.testing.assert_close(last, final)


@pytest.mark.parametrize("value", [0.0, 1e-8, 20.0, 100.0, "mixed"])
@pytest.mark.parametrize("A", [-1e-4, -100.0])
def test_adversarial_step_sizes(value: float | str, A: float) -> None:
    """Right numbers and finite gradients where differences of running sums would cancel or overflow."""
    tensors = inputs(1, 130)
    if value == "mixed":
        tensors["dt"] = torch.tensor([0.0, 1e-8, 20.0, 100.0])[torch.randint(4, tensors["dt"].shape)]
    else:
        tensors["dt"] = torch.full_like(tensors["dt"], value)
    tensors["A"] = torch.full_like(tensors["A"], A)
    compare(tensors)

    leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
    y, final = mamba_chunk_scan_combined(**leaves, chunk_size=64, return_final_states=True)
    (y.square().mean() + final.square().mean()).backward()
    for name, leaf in leaves.items():
        assert leaf.grad is not None and leaf.grad.isfinite().all(), name


def test_positive_A_acts_as_zero() -> None:
    tensors = inputs()
    tensors["A"] = torch.tensor([3.0, 100.0, 0.0, -1.0])
    compare(tensors)
    clipped = mamba_chunk_scan_combined(**(tensors | {"A": tensors["A"].clamp(max=0)}), chunk_size=64)
    torch.testing.assert_close(mamba_chunk_scan_combined(**tensors, chunk_size=64), clipped)


def test_gradients_of_every_operand() -> None:
    """Numerical against automatic differentiation, across a chunk boundary."""
    double = {"dtype": torch.float64, "requires_grad": True}
    tensors = inputs(1, 66, 2, 1, 2, 1, dtype=torch.float64)
    operands = [t.requires_grad_() for t in tensors.values()]
    operands += [torch.randn(2, 1, **double), torch.randn(1, 66, 2, 1, **double)]  # D, z
    operands += [torch.randn(2, **double), torch.randn(1, 2, 1, 2, **double)]  # dt_bias, initial_states
    seq_idx = runs(1, 66, 2)

    def call(x, dt, A, B, C, D, z, dt_bias, initial_states):
        return mamba_chunk_scan_combined(
            x, dt, A, B, C, 64, D, z, dt_bias, initial_states, seq_idx, dt_softplus=True, return_final_states=True
        )  # fmt: skip

    torch.autograd.gradcheck(call, operands, fast_mode=True)


def test_gradients_of_packed_sequences() -> None:
    tensors = inputs(1, 70, 2, 2, 2, 1, dtype=torch.float64)
    operands = [t.requires_grad_() for t in tensors.values()]
    operands.append(torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True))
    cu_seqlens = torch.tensor([0, 2, 69, 70])

    def call(x, dt, A, B, C, states):
        return mamba_chunk_scan_combined(
            x, dt, A, B, C, 64, initial_states=states, cu_seqlens=cu_seqlens, return_varlen_states=True
        )

    torch.autograd.gradcheck(call, operands, fast_mode=True)


def test_chunk_size_changes_nothing() -> None:
    tensors = inputs()
    y = mamba_chunk_scan_combined(**tensors, chunk_size=64)
    for chunk_size in (1, 7, 256, 10**9):
        assert torch.equal(mamba_chunk_scan_combined(**tensors, chunk_size=chunk_size), y)


def test_no_rows() -> None:
    y, final = mamba_chunk_scan_combined(**inputs(batch=0), chunk_size=64, return_final_states=True)
    assert y.shape == (0, 150, 4, 8) and final.shape == (0, 4, 8, 16)


@pytest.mark.parametrize("state_dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_state_dtype(state_dtype: torch.dtype) -> None:
    tensors = inputs(dtype=torch.bfloat16)
    _, final = mamba_chunk_scan_combined(**tensors, chunk_size=64, return_final_states=True, state_dtype=state_dtype)
    assert final.dtype == state_dtype
    close(final, recurrence(**tensors)[1], torch.bfloat16)


def test_slices_of_a_projection_and_any_strides() -> None:
    tensors = inputs()
    expected = mamba_chunk_scan_combined(**tensors, chunk_size=64)
    wide = torch.cat([tensors["x"].flatten(2), tensors["dt"], tensors["B"].flatten(2), tensors["C"].flatten(2)], dim=-1)
    x, dt, B, C = wide.split([32, 4, 32, 32], dim=-1)
    cut = {"x": x.unflatten(2, (4, 8)), "dt": dt, "B": B.unflatten(2, (2, 16)), "C": C.unflatten(2, (2, 16))}
    torch.testing.assert_close(mamba_chunk_scan_combined(**(tensors | cut), chunk_size=64), expected)
    turned = {
        name: t if name == "A" else t.transpose(-1, 1).contiguous().transpose(-1, 1) for name, t in tensors.items()
    }
    torch.testing.assert_close(mamba_chunk_scan_combined(**turned, chunk_size=64), expected)


@pytest.mark.parametrize("name", ["x", "dt", "A", "B", "C"])
def test_nan_in_nan_out(name: str) -> None:
    tensors = inputs(seqlen=70)
    tensors[name].view(-1)[0] = torch.nan
    assert mamba_chunk_scan_combined(**tensors, chunk_size=64).isnan().any()
