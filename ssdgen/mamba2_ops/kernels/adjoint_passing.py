"""One program carries a block of the state's adjoint across all segments from the last to the first; each summary is
replaced by the adjoint of the state that leaves its segment.

d_state[h, p, n] = centre_decay[h]*d_state_out[h, p, n] + d_state_y_state[h, p, n]
"""

import triton
import triton.language as tl

from .functions import decay


@triton.jit
def adjoint_passing(
    summary_ptr,  # [batch, nsegments, nheads, state_size]
    total_ptr,  # [batch, nsegments, nheads]
    initial_states_ptr,  # [batch, nheads, state_size], if HAS_ENTERING
    final_states_ptr,  # [batch, nheads, state_size], if STORE_FINAL
    nheads,
    nsegments,
    state_size,
    BLOCK: tl.constexpr,
    HAS_ENTERING: tl.constexpr,
    STORE_FINAL: tl.constexpr,
):
    n0 = tl.program_id(0) * BLOCK
    head = tl.cast(tl.program_id(1), tl.int64)
    b = tl.cast(tl.program_id(2), tl.int64)
    n = tl.arange(0, BLOCK)
    n_in = n < state_size - n0
    if HAS_ENTERING:
        state = tl.load(initial_states_ptr + (b * nheads + head) * state_size + n0 + n, mask=n_in, other=0.0)
        state = state.to(tl.float32)
    else:
        state = tl.zeros([BLOCK], dtype=tl.float32)
    total_base = total_ptr + b * nsegments * nheads + head
    summary_base = summary_ptr + b * nsegments * nheads * state_size + head * state_size + n0
    for step in range(tl.cdiv(nsegments, 4)):
        first = tl.cast(step * 4, tl.int64)
        total_0 = tl.load(total_base + (nsegments - 1 - (first)) * nheads)
        local_state_0 = tl.load(
            summary_base + (nsegments - 1 - (first)) * nheads * state_size + n, mask=n_in, other=0.0
        )
        local_state_0 = local_state_0.to(tl.float32)
        total_1 = tl.load(total_base + tl.maximum(nsegments - 1 - (first + 1), 0) * nheads)
        local_state_1 = tl.load(
            summary_base + tl.maximum(nsegments - 1 - (first + 1), 0) * nheads * state_size + n, mask=n_in, other=0.0
        )
        local_state_1 = local_state_1.to(tl.float32)
        total_2 = tl.load(total_base + tl.maximum(nsegments - 1 - (first + 2), 0) * nheads)
        local_state_2 = tl.load(
            summary_base + tl.maximum(nsegments - 1 - (first + 2), 0) * nheads * state_size + n, mask=n_in, other=0.0
        )
        local_state_2 = local_state_2.to(tl.float32)
        total_3 = tl.load(total_base + tl.maximum(nsegments - 1 - (first + 3), 0) * nheads)
        local_state_3 = tl.load(
            summary_base + tl.maximum(nsegments - 1 - (first + 3), 0) * nheads * state_size + n, mask=n_in, other=0.0
        )
        local_state_3 = local_state_3.to(tl.float32)
        if first < nsegments:
            tl.store(summary_base + (nsegments - 1 - (first)) * nheads * state_size + n, state, mask=n_in)
            centre_decay = decay(total_0)
            state = local_state_0 + state * centre_decay
        if first + 1 < nsegments:
            tl.store(summary_base + (nsegments - 1 - (first + 1)) * nheads * state_size + n, state, mask=n_in)
            centre_decay = decay(total_1)
            state = local_state_1 + state * centre_decay
        if first + 2 < nsegments:
            tl.store(summary_base + (nsegments - 1 - (first + 2)) * nheads * state_size + n, state, mask=n_in)
            centre_decay = decay(total_2)
            state = local_state_2 + state * centre_decay
        if first + 3 < nsegments:
            tl.store(summary_base + (nsegments - 1 - (first + 3)) * nheads * state_size + n, state, mask=n_in)
            centre_decay = decay(total_3)
            state = local_state_3 + state * centre_decay
    if STORE_FINAL:
        tl.store(final_states_ptr + (b * nheads + head) * state_size + n0 + n, state, mask=n_in)


def grid(batch, nheads, state_size, BLOCK, **_):
    """Programs along each axis."""
    return triton.cdiv(state_size, BLOCK), nheads, batch
