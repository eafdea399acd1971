"""mamba_ssm's functions, if they can be imported.  -> forward, training, recall"""

from __future__ import annotations

from collections.abc import Callable

import torch

CHUNKS = (64, 128, 256)


def load() -> tuple[Callable[..., torch.Tensor] | None, str]:
    """(call(chunk_size, args) -> y or None, what was found or why not).

    The function under the public one is called: it does the same launches with less Python around them, so the
    comparison of eager times leans towards the peer.
    """
    try:
        from mamba_ssm.ops.triton.ssd_combined import _mamba_chunk_scan_combined_fwd as forward
    except ImportError as error:
        return None, f"mamba_ssm cannot be imported ({error}); only ssdgen is measured"

    def call(chunk_size: int, args: dict[str, torch.Tensor]) -> torch.Tensor:
        x, dt, A, B, C = (args[name] for name in ("x", "dt", "A", "B", "C"))
        return forward(x, dt, A, B, C, chunk_size, D=args["D"], dt_bias=args["dt_bias"], dt_softplus=True)[0]

    return call, _version()


def load_public() -> tuple[Callable[..., torch.Tensor] | None, str]:
    """(mamba_chunk_scan_combined or None, what was found or why not): the public function, which has gradients."""
    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined
    except ImportError as error:
        return None, f"mamba_ssm cannot be imported ({error}); it is left out"
    return mamba_chunk_scan_combined, _version()


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"mamba_ssm {version('mamba_ssm')}"
    except PackageNotFoundError:
        return "mamba_ssm (a copy of its source, version unknown)"
