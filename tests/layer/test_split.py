"""The split layer equals its steps in float64: values, gradients, states, padding and packing; bad input is named."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from math import inf
from typing import Any

import pytest
import torch
from torch import Tensor

from ssdgen.runtime import split_forward
from ssdgen.runtime.errors import DtypeError, OperandError, OptionError, ShapeError
from ssdgen.runtime.split import mamba_split_conv1d_scan_combined as split
from tests.layer import plain

STATES = ("initial_states", "initial_conv_states")


@dataclass(frozen=True)
class Case:
    """Sizes, and which of the optional operands there are."""

    batch: int = 2
    seqlen: int = 19
    nheads: int = 4
    headdim: int = 6
    ngroups: int = 2
    dstate: int = 5
    d_nonssm: int = 0
    width: int = 4
    without: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        changed = [f"{name}={value}" for name, value in vars(self).items() if value != getattr(Case, name, value)]
        return "-".join([*changed, *self.without, *map(str, self.options.items())]) or "base"

    def operands(self) -> dict[str, Tensor]:
        """Everything that may have a gradient, in float64."""
        d_ssm = self.nheads * self.headdim
        channels = d_ssm + 2 * self.ngroups * self.dstate
        shapes = {
            "zxbcdt": (self.batch, self.seqlen, 2 * self.d_nonssm + d_ssm + channels + self.nheads),
            "conv1d_weight": (channels, self.width),
            "conv1d_bias": (channels,),
            "dt_bias": (self.nheads,),
            "A": (self.nheads,),
            "D": (self.nheads, self.headdim),
            "initial_states": (self.batch, self.nheads, self.headdim, self.dstate),
            "initial_conv_states": (self.batch, channels, self.width - 1),
            "rmsnorm_weight": (d_ssm,),
            "outproj_weight": (7, self.d_nonssm + d_ssm),
            "outproj_bias": (7,),
        }
        drawn = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
        drawn["A"] = -drawn["A"].abs() - 0.1
        return {name: None if name in self.without else tensor for name, tensor in drawn.items()}


CASES = [
    Case(),
    Case(d_nonssm=3, options={"norm_before_gate": False}),
    Case(without=("rmsnorm_weight", *STATES)),
    Case(without=("outproj_bias", "outproj_weight"), d_nonssm=1),
    Case(without=("rmsnorm_weight", "outproj_bias", "outproj_weight")),
    Case(without=("conv1d_bias", "dt_bias", "D"), ngroups=4, width=2, seqlen=1),
    Case(batch=1, seqlen=70, ngroups=1, options={"activation": None, "dt_limit": (0.05, 0.7)}),
    Case(headdim=1, nheads=3, ngroups=1, dstate=1, width=3, seqlen=2),
]


def weigh(results) -> Tensor:
    """One number of all results, in which each element counts differently."""
    torch.manual_seed(1)
    return sum((r * torch.randn(r.shape, dtype=torch.float64).to(r.device)).sum() for r in results)


def run(function, operands: dict[str, Tensor | None], **options):
    """Results and gradients, each result weighed by numbers of its own."""
    leaves = {name: None if t is None else t.clone().requires_grad_() for name, t in operands.items()}
    results = function(**leaves, **options)
    weigh(results).backward()
    return results, {name: t.grad for name, t in leaves.items() if t is not None}


def ours(**arguments):
    return split(
        **arguments, chunk_size=16, return_final_states=True, return_final_conv_states=True, state_dtype=torch.float64
    )


@pytest.mark.parametrize("recompute", [True, False], ids=["recomputed", "kept"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_equal_the_steps(case: Case, recompute: bool) -> None:
    given = {"headdim": case.headdim, "ngroups": case.ngroups, **case.options}
    operands = case.operands()
    found, gradients = run(ours, operands, **given, recompute=recompute)
    wanted, exact = run(plain.split, operands, **given)
    for result, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(result, right, rtol=1e-9, atol=1e-9)
    assert gradients.keys() == exact.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, exact[name], rtol=1e-8, atol=1e-9, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("states", [True, False])
def test_packed_sequences_do_not_see_each_other(states: bool) -> None:
    case, cuts = Case(batch=1, seqlen=23, without=() if states else STATES), [0, 1, 9, 11, 23]
    operands = case.operands()
    if states:
        operands |= {name: operands[name].repeat(4, *[1] * (operands[name].dim() - 1)) for name in STATES}
    given = {"headdim": case.headdim, "ngroups": case.ngroups}
    wanted, exact = run(lambda **a: plain.packed(cuts, **a), operands, **given)
    found, gradients = run(ours, operands, **given, cu_seqlens=torch.tensor(cuts))
    for result, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(result, right, rtol=1e-9, atol=1e-9)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, exact[name], rtol=1e-8, atol=1e-9)
    if not states:
        seq_idx = torch.repeat_interleave(torch.arange(4, dtype=torch.int32), torch.tensor(cuts).diff())[None]
        for marks in ({"seq_idx": seq_idx}, {"cu_seqlens": torch.tensor(cuts)}):
            out = split(**operands, chunk_size=16, **given, **marks)
            torch.testing.assert_close(out, wanted[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dt_limit", [(0.0, inf), (0.01, 1.0)])
def test_padding_on_the_left_changes_nothing(dt_limit: tuple[float, float]) -> None:
    """Whatever stands there, in values and gradients; nothing of it has a gradient."""
    case, pads = Case(without=STATES), [0, 5]
    operands = case.operands()
    given = {"headdim": case.headdim, "ngroups": case.ngroups, "dt_limit": dt_limit}
    mask = torch.arange(case.seqlen)[None] >= torch.tensor(pads)[:, None]
    operands["zxbcdt"][~mask] = 40.0

    def padded(zxbcdt, **others):
        out, states, conv_states = ours(zxbcdt=zxbcdt, **others, **given, attention_mask=mask.long())
        return out[1:, 5:], states[1:], conv_states[1:]

    def alone(zxbcdt, **others):
        return plain.split(zxbcdt[1:, 5:], **others, **given)

    found, gradients = run(padded, operands)
    wanted, exact = run(alone, operands)
    for result, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(result, right, rtol=1e-9, atol=1e-9)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, exact[name], rtol=1e-8, atol=1e-9)
    assert gradients["zxbcdt"][1, :5].eq(0).all()


@pytest.mark.parametrize("wanted", ["zxbcdt", "conv1d_weight", "A", "D", "rmsnorm_weight", "outproj_weight", *STATES])
def test_one_gradient_alone(wanted: str) -> None:
    case = Case(d_nonssm=2)
    operands = case.operands()
    given = {"headdim": case.headdim, "ngroups": case.ngroups}
    _, exact = run(plain.split, operands, **given)
    leaf = operands[wanted].requires_grad_()
    results = ours(**operands, **given)
    weigh(results).backward()
    torch.testing.assert_close(leaf.grad, exact[wanted], rtol=1e-8, atol=1e-9)


def test_only_the_states_are_used() -> None:
    operands = Case().operands()
    leaves = {name: t.requires_grad_() for name, t in operands.items()}
    _, states, conv_states = ours(**leaves, headdim=6, ngroups=2)
    (states.sum() + conv_states.sum()).backward()
    assert leaves["outproj_weight"].grad is None and leaves["D"].grad.eq(0).all()
    assert leaves["initial_states"].grad.ne(0).any() and leaves["zxbcdt"].grad[..., :24].eq(0).all()


def test_a_second_derivative() -> None:
    operands = Case(seqlen=5, d_nonssm=1).operands()
    given = {"headdim": 6, "ngroups": 2}
    found = []
    for function in (ours, plain.split):
        leaves = {name: t.clone().requires_grad_() for name, t in operands.items()}
        first = torch.autograd.grad(weigh(function(**leaves, **given)), list(leaves.values()), create_graph=True)
        sum(gradient.square().sum() for gradient in first).backward()
        found.append({name: t.grad for name, t in leaves.items()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-7, atol=1e-8)


def test_what_is_kept() -> None:
    """The operands, and y."""
    operands = {name: t.requires_grad_() for name, t in Case(without=STATES).operands().items() if t is not None}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        split(**operands, chunk_size=16, headdim=6, ngroups=2)
    known = {t.untyped_storage().data_ptr() for t in operands.values()}
    assert [size for place, size in kept.items() if place not in known] == [2 * 19 * 24 * 8]


def test_the_steps_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One convolution, one scan and one norm forwards; backwards one more convolution and norm, and no scan."""
    calls: list[str] = []
    for name in ("causal_conv1d_fn", "mamba_chunk_scan_combined", "rmsnorm_fn"):
        run_it = getattr(split_forward, name)
        monkeypatch.setattr(split_forward, name, lambda *a, n=name, f=run_it, **k: calls.append(n) or f(*a, **k))
    operands = {name: None if t is None else t.requires_grad_() for name, t in Case(without=STATES).operands().items()}
    out = split(**operands, chunk_size=16, headdim=6, ngroups=2)
    assert calls == ["causal_conv1d_fn", "mamba_chunk_scan_combined", "rmsnorm_fn"]
    out.sum().backward()
    assert calls[3:] == ["rmsnorm_fn", "causal_conv1d_fn"]
    # what is frozen is not computed again for
    frozen = {name: t if t is None or name == "outproj_weight" else t.detach() for name, t in operands.items()}
    del calls[:]
    split(**frozen, chunk_size=16, headdim=6, ngroups=2).sum().backward()
    assert calls[3:] == ["rmsnorm_fn"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    """Parameters in fp32, what goes with the tokens in another dtype."""
    case = Case(d_nonssm=2)
    exact = case.operands()
    cast = {
        name: t.to(dtype if name in ("zxbcdt", "outproj_weight", "outproj_bias") else torch.float32)
        for name, t in exact.items()
    }
    wanted, right = run(plain.split, {name: t.double() for name, t in cast.items()}, headdim=6, ngroups=2)
    found, gradients = run(
        lambda **a: split(**a, chunk_size=16, return_final_states=True, return_final_conv_states=True),
        cast, headdim=6, ngroups=2,
    )  # fmt: skip
    assert found[0].dtype is dtype and found[1].dtype is torch.float32
    error = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]
    for name, got, want in [("out", found[0], wanted[0]), *((n, gradients[n], right[n]) for n in gradients)]:
        assert got.dtype is (dtype if name == "out" else cast[name].dtype)
        assert (got.double() - want).norm() < error * want.norm(), name


def test_autocast() -> None:
    operands = {name: t.float() for name, t in Case(without=STATES).operands().items() if t is not None}
    leaves = {name: t.requires_grad_() for name, t in operands.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = split(**leaves, chunk_size=16, headdim=6, ngroups=2)
        assert out.dtype is torch.bfloat16
        out.float().square().sum().backward()
    assert all(leaf.grad.dtype is torch.float32 for leaf in leaves.values())
    exact = split(**{name: t.detach().double() for name, t in leaves.items()}, chunk_size=16, headdim=6, ngroups=2)
    assert (out - exact).norm() < 4e-2 * exact.norm()


@pytest.mark.slow
def test_torch_compile_takes_it_whole() -> None:
    operands = {name: t.float().requires_grad_() for name, t in Case(d_nonssm=2).operands().items() if t is not None}

    def call(**leaves):
        return split(**leaves, chunk_size=16, headdim=6, ngroups=2)

    torch._dynamo.reset()
    out = torch.compile(call, fullgraph=True, backend="aot_eager")(**operands)
    out.square().sum().backward()
    gradients = {name: t.grad for name, t in operands.items()}
    again = {name: t.detach().clone().requires_grad_() for name, t in operands.items()}
    torch.testing.assert_close(out, call(**again))
    call(**again).square().sum().backward()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, again[name].grad, rtol=1e-4, atol=1e-4)


def test_the_signature_is_mamba_ssms() -> None:
    found = inspect.signature(split).parameters
    positional = {name: p.default for name, p in found.items() if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert list(positional) == [
        "zxbcdt", "conv1d_weight", "conv1d_bias", "dt_bias", "A", "D", "chunk_size", "initial_states", "seq_idx",
        "dt_limit", "return_final_states", "activation", "rmsnorm_weight", "rmsnorm_eps", "outproj_weight",
        "outproj_bias", "headdim", "ngroups", "norm_before_gate", "state_dtype",
    ]  # fmt: skip
    assert list(positional.values())[7:] == [
        None, None, (0.0, inf), False, "silu", None, 1e-6, None, None, None, 1, True, None
    ]  # fmt: skip
    assert all(p.kind is p.KEYWORD_ONLY for name, p in found.items() if name not in positional)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"zxbcdt": torch.randn(2, 19, 95)}, ShapeError, "zxbcdt has 95 columns; they must be 2 d_nonssm \\+ 72"),
        ({"zxbcdt": torch.randn(2, 19, 70)}, ShapeError, "70 columns"),
        ({"zxbcdt": torch.randn(2, 96)}, ShapeError, "zxbcdt has shape"),
        ({"zxbcdt": torch.ones(2, 19, 96, dtype=torch.int64)}, DtypeError, "int64"),
        ({"zxbcdt": [1.0]}, OperandError, "zxbcdt is a list"),
        ({"D": [1.0]}, OperandError, "D is a list; it must be a torch.Tensor or None"),
        ({"conv1d_weight": torch.randn(45, 4)}, ShapeError, "45 channels"),
        ({"conv1d_weight": torch.randn(44, 5)}, ShapeError, "width 5"),
        ({"headdim": 5}, ShapeError, "headdim is 5, D has 6"),
        ({"D": None, "headdim": None}, OptionError, "headdim is None"),
        ({"ngroups": 3}, ShapeError, "nheads 4 is not divisible by ngroups 3"),
        ({"rmsnorm_weight": torch.ones(20)}, ShapeError, "rmsnorm_weight has shape \\[20\\]"),
        ({"outproj_weight": torch.ones(7, 20)}, ShapeError, "outproj_weight has shape"),
        ({"outproj_weight": None}, OptionError, "outproj_bias was given without"),
        ({"outproj_bias": torch.ones(3)}, ShapeError, "outproj_bias"),
        ({"activation": "gelu"}, OptionError, "gelu"),
        ({"initial_states": torch.ones(2, 4, 6, 6)}, ShapeError, "initial_states"),
        ({"initial_conv_states": torch.ones(2, 44, 4)}, ShapeError, "initial_states"),
        ({"attention_mask": torch.ones(2, 4)}, ShapeError, "attention_mask"),
        ({"cu_seqlens": torch.tensor([0, 19])}, ShapeError, "cu_seqlens"),
        ({"dt_limit": (1.0, 0.0)}, OptionError, "dt_limit"),
        ({"chunk_size": 0}, OptionError, "chunk_size"),
    ],
)  # fmt: skip
def test_mistakes_are_named(change: dict, error: type[Exception], words: str) -> None:
    arguments = {name: t.float() for name, t in Case(d_nonssm=10).operands().items()}
    arguments |= {"headdim": 6, "ngroups": 2, "chunk_size": 16}
    arguments["outproj_weight"] = torch.randn(7, 34)
    assert split(**arguments).shape == (2, 19, 7)
    with pytest.raises(error, match=words):
        split(**{**arguments, **change})
