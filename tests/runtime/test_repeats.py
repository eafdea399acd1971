"""Calls in a form that was seen before: launches and memory, and nothing that was found the first time.

Kernels are imitations that do nothing, on the CPU: what the host does in front of them is that of a GPU.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")

from ssdgen.mamba2_ops import checks, direct, errors, interface, paths, repeats, select
from ssdgen.mamba2_ops.launchers import backward as backward_launcher
from ssdgen.mamba2_ops.launchers import forward as forward_launcher
from tests.runtime.imitations import Cuda
from tests.runtime.whole_calls import BACK, WALK, in_place_of_kernels, operands, run, step

# all that torch is asked for: y and what is left for other launches; gradients, two or three in one piece of memory
FORWARD = {"empty_strided": 2}
BACKWARD = {"empty_strided": 5, "unbind": 2}


class Counted(TorchDispatchMode):
    """Counts the operations of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    yield in_place_of_kernels(monkeypatch)
    select.forget()


def differentiable(given: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value.requires_grad_(not names or name in names) for name, value in given.items()}


def addresses(launches: list[tuple]) -> set[int]:
    """All numbers that the launches got."""

    def flat(given: Any) -> list:
        return [one for each in given for one in flat(each)] if isinstance(given, list | tuple) else [given]

    return {getattr(each, "address", each) for each in flat(launches) if not isinstance(each, str | dict)}


def test_a_forward_pass_is_two_pieces_of_memory_and_its_launches(cuda: Cuda) -> None:
    for _ in range(2):
        run(operands())
    cuda.launches.clear()
    given = operands()
    with Counted() as counted:
        y = run(given)
    assert counted.found == FORWARD
    assert len(cuda.launches) == 4
    assert {given["x"].data_ptr(), y.data_ptr()} <= addresses(cuda.launches)


def test_a_backward_pass_asks_torch_for_memory_alone(cuda: Cuda) -> None:
    d_y = torch.randn(1, 64, 4, 16).bfloat16()
    for _ in range(3):
        step(differentiable(operands()), d_y)
    given = differentiable(operands())
    y = run(given)
    cuda.launches.clear()
    with Counted() as counted:
        found = torch.autograd.grad(y, list(given.values()), d_y)
    assert counted.found == BACKWARD
    assert len(cuda.launches) == 7
    assert {d_y.data_ptr(), given["x"].data_ptr(), found[0].data_ptr()} <= addresses(cuda.launches)


def test_the_second_call_checks_and_looks_up_nothing(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        step(differentiable(operands()))

    def never(*given: Any, **options: Any) -> Any:
        raise AssertionError("looked up again")

    for module, name in ((interface, "check_forward"), (paths, "config_for"), (paths, "backward_config_for")):
        monkeypatch.setattr(module, name, never)
    assert set(step(differentiable(operands()))) == set(operands())
    run(operands())


def test_under_autocast_operands_are_cast_and_nothing_else_is_done(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = {name: operands()[name].float() for name in ("x", "B", "C")}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(3):
            y = run(operands(**wide))
            found = step(differentiable(operands(**wide)))
        monkeypatch.setattr(torch, "autocast", None)
        given = operands(**wide)
        with Counted() as counted:
            run(given)
        step(differentiable(operands(**wide)))
    assert y.dtype is torch.bfloat16 and found["x"].dtype is torch.float32
    assert counted.found == FORWARD | {"_to_copy": 3}


@pytest.mark.parametrize("names", [("x",), ("A",), ("D", "dt_bias"), ("B", "dt")])
def test_only_what_is_needed_is_computed(names: tuple[str, ...], cuda: Cuda) -> None:
    for _ in range(3):
        assert set(step(differentiable(operands()))) == set(operands())
        found = step(differentiable(operands(), *names))
        assert set(found) == set(names)
        assert all(found[name].shape == operands()[name].shape for name in names)


def test_mistakes_are_found_after_calls_that_had_none(cuda: Cuda) -> None:
    for _ in range(2):
        run(operands())
    for error, changed in (
        (errors.OptionError, {"chunk_size": 0}),
        (errors.OptionError, {"chunk_size": "64"}),
        (errors.OptionError, {"dt_limit": (1.0, 0.0)}),
        (errors.OptionError, {"return_varlen_states": True}),
    ):
        with pytest.raises(error):
            run(operands(), **changed)
    for error, changed in (
        (errors.ShapeError, {"dt": torch.rand(1, 63, 4).bfloat16()}),
        (errors.DtypeError, {"B": torch.randn(1, 64, 2, 16)}),
        (errors.DeviceError, {"A": torch.empty(4, device="meta")}),
        (errors.OperandError, {"D": 3.0}),
    ):
        with pytest.raises(error):
            run(operands(**changed))


def test_options_that_have_no_hash_are_taken(cuda: Cuda) -> None:
    assert run(operands(), dt_limit=(0, 1)).shape == run(operands(), dt_limit=(0.0, 1.0)).shape
    assert repeats.Forms(1).get(repeats.form_of((torch.ones(1),), [0.0])) is None


def test_another_config_counts_at_once(cuda: Cuda) -> None:
    problem = checks.check_forward(
        *(operands()[name] for name in ("x", "dt", "A", "B", "C")), 64, *[None] * 6, (0, 1), False, None
    )
    for _ in range(3):
        step(differentiable(operands()))
    select.replace(problem, torch.device("cpu"), {**WALK, "schedule": "single_pass"})
    select.replace_backward(problem, torch.device("cpu"), {**BACK, "parts": 1})
    for _ in range(3):
        cuda.launches.clear()
        step(differentiable(operands()))
    # dt_cumsum and the walk; the same, states, their adjoints, gradients, step sizes and sums
    assert len(cuda.launches) == 2 + 6


def test_a_limit_of_memory_counts_at_once(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, plans in (("", 1), ("64K", 2), ("", 2)):
        monkeypatch.setenv("SSDGEN_MEMORY_LIMIT", limit)
        for _ in range(3):
            step(differentiable(operands()))
        assert len(backward_launcher._recipes._found) == plans


def test_operands_that_have_to_be_copied_are_copied_every_time(cuda: Cuda) -> None:
    apart = torch.randn(1, 64, 16, 4, dtype=torch.bfloat16).transpose(2, 3)
    for _ in range(3):
        cuda.launches.clear()
        run(operands(x=apart))
        assert apart.data_ptr() not in addresses(cuda.launches)
    # one number that is the gradient of every y
    for _ in range(3):
        y = run(differentiable(operands()))
        one = torch.ones((), dtype=y.dtype).expand_as(y)
        cuda.launches.clear()
        torch.autograd.grad(y, [y.grad_fn.next_functions[0][0].variable], one)
        assert one.data_ptr() not in addresses(cuda.launches)


def test_other_strides_dtypes_and_alignments_are_other_forms() -> None:
    x = torch.randn(2, 8, dtype=torch.bfloat16)
    same = repeats.form_of((x, None), 1)
    assert same == repeats.form_of((x.clone(), None), 1)
    others = [
        repeats.form_of((x, None), 2),
        repeats.form_of((x, x), 1),
        repeats.form_of((x.half(), None), 1),
        repeats.form_of((x.t().contiguous().t(), None), 1),
        repeats.form_of((torch.randn(17).bfloat16()[1:].view(2, 8), None), 1),
    ]
    assert same not in others and len(set(others)) == len(others)


def test_tensors_that_are_traced_have_no_form() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        assert repeats.form_of((torch.ones(2),)) is None
    seen = []
    torch.func.vmap(lambda each: seen.append(repeats.form_of((each,))) or each)(torch.ones(3, 2))
    assert seen == [None]


def test_forms_are_forgotten_when_there_are_many() -> None:
    forms: repeats.Forms[int] = repeats.Forms(2)
    for number in range(3):
        forms.put((number,), number)
    assert [forms.get((number,)) for number in range(3)] == [None, None, 2]
    forms.put(None, 4)
    assert forms.get(None) is None


def test_what_is_packed_for_addresses_is_bounded(cuda: Cuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct.DirectRecipe, "MOST", 2)
    kept = []
    for _ in range(6):
        given = operands()
        run(given)
        kept.append(given)
    ((recipe, _),) = forward_launcher._recipes._found.values()
    assert len(recipe._direct._packed) <= 2


@pytest.mark.gpu
def test_on_a_gpu_a_step_that_is_repeated_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """With other tensors, at other addresses and on another stream, bit by bit."""

    def draw() -> dict[str, Any]:
        bf16 = {"device": "cuda", "dtype": torch.bfloat16}
        B, C = (torch.randn(1, 2048, 1, 128, **bf16) for _ in range(2))
        A, D, dt_bias = (-torch.rand(16, device="cuda") for _ in range(3))
        given = {"x": torch.randn(1, 2048, 16, 64, **bf16), "dt": torch.rand(1, 2048, 16, **bf16)}
        return differentiable({**given, "A": A, "B": B, "C": C, "D": D, "dt_bias": dt_bias})

    each = [draw() for _ in range(3)]
    d_y = torch.randn_like(each[0]["x"])
    with monkeypatch.context() as patch:
        patch.setattr(repeats.Forms, "get", lambda self, form: None)
        expected = [{"y": run(given), **step(given, d_y)} for given in each]
    found = [{"y": run(given), **step(given, d_y)} for given in each * 2]
    other = torch.cuda.Stream()
    other.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(other):
        found += [{"y": run(given), **step(given, d_y)} for given in each]
    torch.cuda.synchronize()
    for ours, theirs in zip(found, expected * 3, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not torch.equal(expected[0]["A"], expected[1]["A"])
    with monkeypatch.context() as patch:
        patch.setattr(interface, "check_forward", None)
        patch.setattr(paths, "backward", None)
        step(draw(), d_y)
