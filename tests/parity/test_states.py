"""What ranks exchange, by the kernels: states without outputs, and the adjoint of the entering state alone.

Each schedule's config makes both; interpreted here, compiled on a GPU.  The halves of a call on kernels are the call.
"""

from __future__ import annotations

import pytest
import torch

from ssdgen.mamba2_ops import fallback, mamba_chunk_scan_combined, parallel
from ssdgen.mamba2_ops.context_parallel import total_decay
from ssdgen.mamba2_ops.launchers import forward as launcher
from ssdgen.plan import space
from ssdgen.tune.gate import poisoned_memory
from tests.parity import configs, test_backward, tolerances
from tests.parity.cases import Case, draw
from tests.parity.configs import DEFAULTS
from tests.parity.settings import enter

DEVICES = [
    pytest.param("cpu", marks=pytest.mark.interpreter, id="interpreter"),
    pytest.param("cuda", marks=pytest.mark.gpu, id="gpu"),
]
STEPS = ("dt_bias", "dt_softplus", "dt_limit")
CASES = [
    Case(batch=1, seqlen=50, nheads=2, options=()),
    Case(batch=1, seqlen=40, nheads=2, dstate=80, headdim=24, options=("initial_states", "seq_idx", "strided", *STEPS)),
]
NAMES = ("dt_bias", "initial_states", "seq_idx", "dt_softplus", "dt_limit")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("schedule", space.SCHEDULES)
def test_states_without_outputs(schedule: str, case: Case, device: str) -> None:
    call = draw(case).on(device)
    operands = [call.operands[name] for name in ("x", "dt", "A", "B")]
    options = {name: {**DEFAULTS, **call.options}[name] for name in NAMES}
    wide = [operand.double() for operand in operands]
    exact_options = {
        n: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for n, v in options.items()
    }
    _, exact = fallback.forward(*wide, None, **exact_options, final_states=True)
    steps = (options["dt_softplus"], *options["dt_limit"])
    decay = total_decay(wide[1], wide[2], exact_options["dt_bias"], options["seq_idx"], steps, torch.float64)
    # compiled, the second goes by the recipe of the first
    for _ in range(2 if device == "cuda" else 1):
        with poisoned_memory():
            state, total = launcher.states(configs.fine(schedule, configs.problem(case)), *operands, **options)
        assert exact is not None
        tolerances.check(
            "state", state, exact.cpu().numpy(), tolerances.limit(case.dtype, tensor_cores=device == "cuda")
        )
        torch.testing.assert_close(total.double(), decay, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["walk", "segments", "chunks", "chunks-segments"])
def test_the_adjoint_of_the_entering_state_alone(name: str, device: str) -> None:
    case = Case(batch=1, seqlen=37, nheads=2, options=("z", "initial_states", "seq_idx", "dt_softplus"))
    test_backward.verify(test_backward.CONFIGS[name], case, device, needs=frozenset({"initial_states"}))


@pytest.mark.parametrize(
    "name", [pytest.param("interpreter", marks=pytest.mark.interpreter), pytest.param("gpu", marks=pytest.mark.gpu)]
)
def test_the_halves_of_a_call_on_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of 20 and 10 tokens, joined by their summaries, and every gradient through them."""
    setting = enter(name, monkeypatch)
    call = draw(Case(batch=1, seqlen=30, nheads=2, options=("D", "z", "initial_states", *STEPS))).on(setting.device)
    given = {**call.operands, **call.options}
    leaves = {n: t.requires_grad_() for n, t in given.items() if isinstance(t, torch.Tensor)}
    y, final = mamba_chunk_scan_combined(**given, chunk_size=16, return_final_states=True)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    wanted = torch.autograd.grad((y * weights).sum() + final.sum(), list(leaves.values()))

    steps = {n: given[n] for n in ("dt_softplus", "dt_limit", "dt_bias")}
    first, second = ({n: given[n][:, part] for n in ("x", "dt", "B", "C", "z")} for part in (slice(20), slice(20, 30)))
    shared = {"A": given["A"], **steps}
    one, two = (parallel.summary(**{n: part[n] for n in ("x", "dt", "B")}, **shared) for part in (first, second))
    start = parallel.Summary(torch.zeros_like(one.total), given["initial_states"])
    parts = [
        parallel.apply(**part, **shared, D=given["D"], chunk_size=16, entering=entering)
        for part, entering in ((first, start.state), (second, start.joined(one).state))
    ]
    ends = start.joined(one.joined(two)).state
    found = torch.autograd.grad((torch.cat(parts, 1) * weights).sum() + ends.sum(), list(leaves.values()))
    torch.testing.assert_close(torch.cat(parts, 1), y, rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(ends, final, rtol=2e-4, atol=2e-4)
    for leaf, gradient, exact in zip(leaves, found, wanted, strict=True):
        error = float((gradient - exact).norm() / exact.norm())
        assert error < (2e-4 if setting.device == "cpu" else 4e-3), f"d_{leaf} is off by {error:.1e}"
