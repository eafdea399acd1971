"""Memory that launches of one plan leave for each other, in one piece.  launching -> scratch

Allocating costs the host as much as launching: what nobody reads afterwards is one tensor of bytes, and a launch is
given addresses inside of it.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

Buffer = tuple[tuple[int, ...], torch.dtype]

# bytes; what torch's own allocations have at least, so that compiled kernels find the alignment that they were made for
ALIGNMENT = 512


class Scratch:
    """Where each buffer lies.  offsets: name -> bytes from the beginning; size: bytes of all."""

    def __init__(self, buffers: dict[str, Buffer]) -> None:
        self._buffers = buffers
        self.offsets: dict[str, int] = {}
        self.size = 0
        for name, (shape, dtype) in buffers.items():
            self.offsets[name] = self.size
            self.size += -(-prod(shape) * dtype.itemsize // ALIGNMENT) * ALIGNMENT

    def allocate(self, device: torch.device) -> Tensor:
        """The memory, with undefined contents: [size], uint8."""
        return torch.empty_strided((self.size,), (1,), dtype=torch.uint8, device=device)

    def tensor(self, memory: Tensor | None, name: str) -> Tensor:
        """A buffer as the tensor that it is."""
        assert memory is not None
        shape, dtype = self._buffers[name]
        first = self.offsets[name]
        return memory[first : first + prod(shape) * dtype.itemsize].view(dtype).view(shape)

    def tensors(self, memory: Tensor | None) -> dict[str, Tensor]:
        """All buffers by name."""
        return {name: self.tensor(memory, name) for name in self._buffers}
