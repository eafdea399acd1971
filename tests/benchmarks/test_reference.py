"""The benchmark's float64 reference equals the plain recurrence, and its inputs and errors are what they claim."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from benchmarks import reference, workload  # noqa: E402


def recurrence(args: dict) -> torch.Tensor:
    """The layer one position at a time."""
    x, dt, A, B, C, D = (args[name].double() for name in ("x", "dt", "A", "B", "C", "D"))
    batch, seqlen, nheads, headdim = x.shape
    dt = torch.nn.functional.softplus(dt + args["dt_bias"].double())
    B, C = (value.repeat_interleave(nheads // value.shape[2], 2) for value in (B, C))
    state = torch.zeros(batch, nheads, headdim, B.shape[-1], dtype=torch.float64)
    y = torch.empty_like(x)
    for t in range(seqlen):
        state = (dt[:, t] * A).exp()[..., None, None] * state
        state = state + torch.einsum("bh,bhp,bhn->bhpn", dt[:, t], x[:, t], B[:, t])
        y[:, t] = torch.einsum("bhpn,bhn->bhp", state, C[:, t]) + D[:, None] * x[:, t]
    return y


@pytest.mark.parametrize("sizes", [(2, 130, 6, 8, 5, 3), (1, 64, 2, 4, 3, 1), (1, 7, 4, 3, 2, 4)])
def test_reference_is_the_recurrence(sizes: tuple[int, ...], seed: int) -> None:
    args = workload.inputs(workload.Shape("test", *sizes), "cpu", seed)
    expected = recurrence(args)
    found = torch.cat([y for _, y in reference.walk(args)], dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    error = reference.errors(args, {"good": expected, "off": expected * 1.01})
    assert error["good"]["relative"] < 1e-12
    assert error["off"]["relative"] == pytest.approx(0.01)
    spoiled = expected.clone()
    spoiled[0, 3, 0, 0] = math.nan
    assert reference.errors(args, {"nan": spoiled})["nan"] == {"relative": math.inf, "largest": math.inf}


def test_shapes_by_name_prefix_and_numbers() -> None:
    assert [shape.name for shape in workload.select("2.7b_b1_2k falcon")] == ["2.7b_b1_2k", "falcon-h1_b4_4k"]
    assert workload.select("8,2048,24,64,128,1")[0].sizes == (8, 2048, 24, 64, 128, 1)
    with pytest.raises(ValueError, match="unknown shape 'nope'.*falcon"):
        workload.select("nope")
