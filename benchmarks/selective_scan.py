"""Mamba-1's CUDA scan, built from mamba_ssm's package source where it is not installed.  -> rivals, layer_training

    python benchmarks/selective_scan.py --source FOLDER [--build FOLDER]     # builds it and says where it lies

FOLDER is an unpacked source package of mamba_ssm; only csrc/selective_scan is read.  Needs nvcc, ninja and a C++
compiler.  Afterwards PYTHONPATH=BUILD_FOLDER lets `import selective_scan_cuda` find it.  It is built for bf16 with real
A alone, which is a quarter of the compilers' work.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import extensions  # noqa: E402

NAME = "selective_scan_cuda"
BUILD = ROOT / "build" / "selective_scan"
# an environment variable that names the source folder, for the benchmarks that build it by themselves
SOURCE = "MAMBA_SSM_SOURCE"
# of the package, what bf16 needs
FILES = ("selective_scan.cpp", "selective_scan_fwd_bf16.cu", "selective_scan_bwd_bf16_real.cu")
# what selective_scan.cpp asks for besides
ABSENT = {
    "fwd": [(of, weights) for of in ("float", "at::Half") for weights in ("float", "c10::complex<float>")],
    "bwd": [
        *((of, weights) for of in ("float", "at::Half") for weights in ("float", "c10::complex<float>")),
        ("at::BFloat16", "c10::complex<float>"),
    ],
}
PARAMETERS = {"fwd": "SSMParamsBase", "bwd": "SSMParamsBwd"}


def others() -> str:
    """C++: a refusal for each type that is not built."""
    includes = ("c10/util/BFloat16.h", "c10/util/Half.h", "c10/util/complex.h", "c10/util/Exception.h")
    text = [f"#include <{name}>" for name in (*includes, "cuda_runtime_api.h")]
    text.append('#include "selective_scan.h"')
    for way, types in ABSENT.items():
        head = f"selective_scan_{way}_cuda"
        text += [
            "template <typename input_t, typename weight_t>",
            f"void {head}({PARAMETERS[way]} &, cudaStream_t) {{",
            '    TORCH_CHECK(false, "selective_scan_cuda was built for bf16 with real A alone");',
            "}",
        ]
        text += [f"template void {head}<{of}, {weights}>({PARAMETERS[way]} &, cudaStream_t);" for of, weights in types]
    return "\n".join(text) + "\n"


def sources(folder: Path) -> list[Path]:
    """The files of the package that are compiled.  Errors: FileNotFoundError naming what is not there."""
    found = [folder / "csrc" / "selective_scan" / name for name in FILES]
    if missing := [path.name for path in found if not path.exists()]:
        raise FileNotFoundError(
            f"{folder} has no csrc/selective_scan/{missing[0]}: give the unpacked source package of mamba_ssm"
        )
    return found


def build(folder: Path, into: Path = BUILD, verbose: bool = False) -> ModuleType:
    """Compile for the GPU that is here; a minute or more.  What is there already is not compiled again.

    Errors: FileNotFoundError; RuntimeError and OSError of the compilers, or where there are none.
    """
    files = sources(folder)
    into.mkdir(parents=True, exist_ok=True)
    refusals = into / "selective_scan_others.cpp"
    if not refusals.exists() or refusals.read_text() != others():
        refusals.write_text(others())
    return extensions.build(NAME, [*files, refusals], into, verbose)


def load() -> tuple[ModuleType | None, str]:
    """(the extension or None, what was found or why not)."""
    return extensions.load(NAME, SOURCE, build)


class Scan(torch.autograd.Function):
    """The extension's two calls.  Arguments: the extension, then as `scan` below."""

    @staticmethod
    def forward(ctx: Any, cuda: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D, z, delta_bias):
        y, states, *gated = cuda.fwd(u, delta, A, B, C, D, z, delta_bias, True)
        ctx.cuda = cuda
        # y before the gate is needed for the gate's gradient alone
        ctx.save_for_backward(u, delta, A, B, C, D, z, delta_bias, states, y if gated else None)
        return gated[0] if gated else y

    @staticmethod
    def backward(ctx: Any, *gradients):
        u, delta, A, B, C, D, z, delta_bias, states, y = ctx.saved_tensors
        (d_y,) = gradients
        d_y = d_y if d_y.stride(-1) == 1 else d_y.contiguous()
        found = ctx.cuda.bwd(u, delta, A, B, C, D, z, delta_bias, d_y, states, y, None, True, False)
        d_u, d_delta, d_A, d_B, d_C, d_D, d_bias, *d_z = found
        return None, d_u, d_delta, d_A, d_B, d_C, d_D, (d_z[0] if d_z else None), d_bias


def scan(
    cuda: Any, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor, z=None
) -> Tensor:
    """y of the selective scan, with step sizes softplus(delta + delta_bias); shape of u.

    cuda: the extension.  u, delta and z, which gates y or is None: [batch, channels, seqlen], tokens side by side.
    A: [channels, dstate], D and delta_bias: [channels], fp32.  B, C: [batch, 1, dstate, seqlen].
    """
    return Scan.apply(cuda, u, delta, A, B, C, D, z, delta_bias)  # type: ignore[return-value]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="unpacked source package of mamba_ssm")
    parser.add_argument("--build", type=Path, default=BUILD, help="folder to build in; default: build/selective_scan")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("benchmarks/selective_scan.py builds for a CUDA GPU, and torch sees none here.", file=sys.stderr)
        return 2
    begin = time.monotonic()
    made = build(options.source, options.build, verbose=True)
    print(f"built in {time.monotonic() - begin:.0f} s: {made.__file__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
