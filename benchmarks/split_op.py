"""A layer after its input projection, forward and backward, beside mamba_ssm's.  -> a table and a JSON file

    python benchmarks/split_op.py [--batch 8] [--seqlen 2048] [--no-peer] [--out FILE] [--quick]

Needs a CUDA GPU.  mamba_ssm's function takes its convolution from causal_conv1d (README.md); where that is not there,
from ssdgen, which leans towards the peer.
`mamba_split_conv1d_scan_combined` at the sizes of the 2.7B layer, in bf16, with the gated norm, without and with the
output projection, whose matrix products are the same on both sides.  Its output and the gradients of all operands are
held against float64 first: a side that is wrong is not timed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import extensions, machine, report  # noqa: E402
from benchmarks.forward import Clock  # noqa: E402
from ssdgen.mamba2_ops import causal_conv1d_fn, conv_paths, fallback, mamba_split_conv1d_scan_combined  # noqa: E402

OURS = "ssdgen"
HEADDIM, DSTATE, WIDTH, EPS = 64, 128, 4, 1e-5
# |found - float64| / |float64|: of what is rounded to bf16 several times on the way, and of sums over all tokens
LIMIT = 1.5e-2
WANTED = 2.0
CHECK = (2, 512)

# the peer's extension, and an environment variable that names its unpacked source package
EXTENSION, SOURCE = "causal_conv1d_cuda", "CAUSAL_CONV1D_SOURCE"
BUILD = ROOT / "build" / "causal_conv1d"
FILES = ("causal_conv1d.cpp", "causal_conv1d_fwd.cu", "causal_conv1d_bwd.cu", "causal_conv1d_update.cu")

Tensors = dict[str, Tensor]
Split = Callable[..., Tensor]


def build(folder: Path) -> Any:
    """Compile causal_conv1d for the GPU that is here.  Errors: FileNotFoundError; those of the compilers."""
    files = [folder / "csrc" / name for name in FILES]
    if missing := [path.name for path in files if not path.exists()]:
        raise FileNotFoundError(f"{folder} has no csrc/{missing[0]}: give the unpacked source package of causal_conv1d")
    return extensions.build(EXTENSION, files, BUILD)


def load() -> tuple[Split | None, str]:
    """(mamba_ssm's function or None, what was found or why not).

    It imports causal_conv1d.  Where that is neither installed nor can be built, our convolution stands in for it.
    """
    extension, about = extensions.load(EXTENSION, SOURCE, build)
    if extension is not None:
        sys.modules.setdefault(EXTENSION, extension)
        if SOURCE in os.environ:
            sys.path.append(os.environ[SOURCE])
    else:
        about = f"the convolution of ssdgen ({about})"
        sys.modules |= stand_ins()
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_split_conv1d_scan_combined as peer
    except ImportError as error:
        return None, f"mamba_ssm cannot be imported: {error}"
    return peer, f"mamba_ssm with {about}"


def stand_ins() -> dict[str, ModuleType]:
    """What mamba_ssm imports of causal_conv1d, made by our kernels; the gradient of x is copied to where it goes."""

    def forward(x, weight, bias, seq_idx, initial_states, final_states, silu) -> Tensor:
        return conv_paths.forward(x, weight, bias, initial_states, seq_idx, None, silu, False)[0]

    def backward(x, weight, bias, d_y, seq_idx, initial_states, d_final_states, d_x, wants_initial, silu):
        found = conv_paths.backward(d_y, None, x, weight, bias, initial_states, seq_idx, None, silu)
        return d_x.copy_(found["x"]), found["weight"].to(weight.dtype), found["bias"].to(weight.dtype), None

    package, functions = ModuleType("causal_conv1d"), ModuleType("causal_conv1d.cpp_functions")
    package.causal_conv1d_fn = causal_conv1d_fn  # type: ignore[attr-defined]
    functions.causal_conv1d_fwd_function = forward  # type: ignore[attr-defined]
    functions.causal_conv1d_bwd_function = backward  # type: ignore[attr-defined]
    functions.causal_conv1d_update_function = None  # type: ignore[attr-defined]
    return {package.__name__: package, functions.__name__: functions}


def operands(batch: int, seqlen: int, nheads: int, projects: bool, device: str, seed: int = 0) -> Tensors:
    """Operands of a call, as a layer of this many heads has them at the start of its training."""
    generator = torch.Generator(device=device).manual_seed(seed)
    inner = nheads * HEADDIM
    channels = inner + 2 * DSTATE

    def draw(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return (torch.randn(*shape, device=device, generator=generator) * scale).to(dtype)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(nheads, device=device, generator=generator) * (high - low) + low

    made = {
        "zxbcdt": draw(batch, seqlen, 2 * inner + 2 * DSTATE + nheads),
        "conv1d_weight": draw(channels, WIDTH, scale=0.5),
        "conv1d_bias": draw(channels, scale=0.1),
        "dt_bias": uniform(-6.0, -2.0),
        "A": -uniform(1.0, 16.0),
        "D": uniform(0.5, 1.5),
        "rmsnorm_weight": 1 + draw(inner, scale=0.1, dtype=torch.float32),
    }
    if projects:
        made["outproj_weight"] = draw(inner // 2, inner, scale=inner**-0.5)
    return made


def step(split: Split, leaves: Tensors, d_out: Tensor) -> Tensors:
    """The output and the gradient of every operand."""
    with torch.enable_grad():
        given = [leaves[name] for name in ("zxbcdt", "conv1d_weight", "conv1d_bias", "dt_bias", "A", "D")]
        out = split(
            *given,
            256,
            rmsnorm_weight=leaves["rmsnorm_weight"],
            rmsnorm_eps=EPS,
            outproj_weight=leaves.get("outproj_weight"),
            headdim=HEADDIM,
            norm_before_gate=False,
        )
        found = torch.autograd.grad(out, list(leaves.values()), d_out)
    return {"out": out.detach(), **dict(zip(leaves, found, strict=True))}


def plain(zxbcdt, conv1d_weight, conv1d_bias, dt_bias, A, D, chunk_size, **named) -> Tensor:
    """The same in torch's operations, in the dtype of its operands."""
    nheads = A.shape[0]
    inner = nheads * HEADDIM
    z, xBC, dt = zxbcdt.split([inner, inner + 2 * DSTATE, nheads], dim=-1)
    turned = F.pad(xBC.transpose(1, 2), (WIDTH - 1, 0))
    xBC = F.silu(F.conv1d(turned, conv1d_weight[:, None], conv1d_bias, groups=xBC.shape[-1])).transpose(1, 2)
    x, B, C = xBC.split([inner, DSTATE, DSTATE], dim=-1)
    y, *_ = fallback.forward(
        x.unflatten(-1, (nheads, HEADDIM)), dt, A, B[:, :, None], C[:, :, None],
        D=D, dt_bias=dt_bias, dt_softplus=True, dt_limit=(0.0, float("inf")),
    )  # fmt: skip
    y = y.flatten(-2) * F.silu(z)
    out = y * (y.square().mean(-1, keepdim=True) + EPS).rsqrt() * named["rmsnorm_weight"]
    return out if named["outproj_weight"] is None else out @ named["outproj_weight"].T


def ready(split: Split, given: Tensors, dtype: torch.dtype | None = None) -> Callable[[], Tensors]:
    """A step that can be called, with the same gradient of its output whatever the dtype."""
    leaves = {name: (value if dtype is None else value.to(dtype)).detach() for name, value in given.items()}
    rows = given["zxbcdt"]
    wide = given["outproj_weight"].shape[0] if "outproj_weight" in given else given["rmsnorm_weight"].shape[0]
    generator = torch.Generator(device=rows.device).manual_seed(1)
    d_out = torch.randn(*rows.shape[:2], wide, device=rows.device, generator=generator).to(rows.dtype)
    return partial(
        step, split, {name: leaf.requires_grad_() for name, leaf in leaves.items()}, d_out.to(dtype or rows.dtype)
    )


def errors(split: Split, given: Tensors) -> dict[str, float]:
    """|found - float64| / |float64| of the output and of every gradient."""
    found, exact = ready(split, given)(), ready(plain, given, torch.float64)()
    return {name: float((found[name].double() - exact[name]).norm() / exact[name].norm()) for name in exact}


def measure(split: Split, sizes: tuple[int, int, int], projects: bool, gpu: machine.Gpu) -> dict[str, Any]:
    """errors, passed and, where they are good, gpu_us, eager_us and host_us of a step."""
    batch, seqlen, nheads = sizes
    few = (min(batch, CHECK[0]), min(seqlen, CHECK[1]))
    row: dict[str, Any] = {"errors": errors(split, operands(*few, nheads, projects, gpu.device))}
    # written so that a NaN is wrong
    row["wrong"] = [name for name, error in row["errors"].items() if not error <= LIMIT]
    row["passed"] = not row["wrong"]
    gpu.tidy()
    if row["passed"]:
        call = ready(split, operands(batch, seqlen, nheads, projects, gpu.device))
        call()
        row["gpu_us"], row["timed"] = gpu.gpu_us(call)
        row["eager_us"], row["host_us"] = gpu.eager_us(call)
        row["launches"] = sum(count for count, _ in gpu.kernels(call).values())
    return row


def table(document: dict[str, Any]) -> str:
    lines = [("output projection", "who", "GPU us", "eager us", "host us", "launches", "worst error", "ratio")]
    for case in document["rows"]:
        for who, row in case["sides"].items():
            said = "with" if case["projects"] else "without"
            if "gpu_us" not in row:
                lines.append((said, who, row.get("failed") or f"WRONG {' '.join(row['wrong'])}", *[""] * 5))
                continue
            cells = (f"{row[key]:.0f}" for key in ("gpu_us", "eager_us", "host_us"))
            ratio = f"{case['ratio']:.2f}" if who == OURS and "ratio" in case else ""
            lines.append((said, who, *cells, f"{row['launches']}", f"{max(row['errors'].values()):.1e}", ratio))
    return "\n".join([*report.aligned(lines), f"peer: {document['peer']}; wanted: {WANTED:g} times faster"])


def main(argv: list[str] | None = None, gpu: machine.Gpu | None = None) -> int:
    parser = machine.parser(__doc__ or "", "split_op", 300, resume=False)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seqlen", type=int, default=2048)
    parser.add_argument("--nheads", type=int, default=80)
    options = parser.parse_args(argv)
    if gpu is None and not torch.cuda.is_available():
        print("benchmarks/split_op.py measures on a CUDA GPU, and torch sees none here.", file=sys.stderr)
        return 2
    gpu = gpu or machine.Gpu()
    if options.quick:
        options.batch = 1
    clock = Clock(options.budget)
    peer, about = (None, "not asked for") if options.no_peer else load()
    clock.say(f"peer: {about}")
    here = gpu.environment()
    sizes = (options.batch, options.seqlen, options.nheads)
    out = options.out or machine.results_path("split_op", here["gpu"])
    about_sizes = dict(zip(("batch", "seqlen", "nheads"), sizes, strict=True))
    document = machine.Document(out, {**here, **about_sizes, "peer": about, "rows": []})
    for projects in (False, True):
        case: dict[str, Any] = {"projects": projects, "sides": {}}
        document.content["rows"].append(case)
        for who, split in ((OURS, mamba_split_conv1d_scan_combined), ("mamba_ssm", peer)):
            if split is None or clock.is_up():
                continue
            clock.say(f"{who}, {'with' if projects else 'without'} the output projection")
            case["sides"][who] = machine.attempt(partial(measure, split, sizes, projects, gpu), gpu)
            gpu.tidy()
            document.write()
        timed = [row["gpu_us"] for row in case["sides"].values() if "gpu_us" in row]
        if len(timed) == 2:
            case["ratio"] = timed[1] / timed[0]
        document.write()
    print(table(document.content))
    print(f"written: {out}")
    rows = [row for case in document.content["rows"] for row in case["sides"].values()]
    return 0 if all(row.get("passed", False) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
