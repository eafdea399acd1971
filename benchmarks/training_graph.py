"""A training step as one CUDA graph.  -> host_cost, recall_sweep, end_to_end"""

from __future__ import annotations

from collections.abc import Callable

import torch

# steps that are made before the capture: kernels are compiled and the optimizer makes its state in them
WARM = 3

Step = Callable[[], torch.Tensor]


def captured(step: Step) -> Step:
    """The step as a replay, after WARM steps that were really made; it returns the same tensor each time.

    step: reads its inputs where they always are, drops gradients before it makes new ones (set_to_none), and has an
    optimizer that is capturable.  Errors: RuntimeError of torch where something in it waits for the device.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay() -> torch.Tensor:
        graph.replay()
        return result

    return replay


def eager(step: Step) -> Step:
    """The step itself, after as many steps as `captured` makes before its graph."""
    for _ in range(WARM):
        step()
    return step
