"""One program carries a block of the state across all segments, or of its adjoint from the last to the first; each
summary is replaced by what enters its segment, or by the adjoint of what leaves it.

state_out[h, p, n] = centre_decay[h]*state[h, p, n] + local_state[h, p, n]
d_state[h, p, n] = centre_decay[h]*d_state_out[h, p, n] + d_state_y_state[h, p, n]
"""

import triton
import triton.language as tl

from .functions import decay


@triton.jit
def both_passing(
    summary_ptr,  # [batch, nsegments, nheads, state_size]
    d_summary_ptr,  # [batch, nsegments, nheads, state_size]
    total_ptr,  # [batch, nsegments, nheads]
    initial_states_ptr,  # [batch, nheads, state_size], if HAS_ENTERING
    d_final_states_ptr,  # [batch, nheads, state_size], if HAS_LEAVING
    d_initial_ptr,  # [batch, nheads, state_size], if STORE_INITIAL
    nheads,
    nsegments,
    state_size,
    BLOCK: tl.constexpr,
    HAS_ENTERING: tl.constexpr,
    HAS_LEAVING: tl.constexpr,
    STORE_INITIAL: tl.constexpr,
):
    blocks = tl.cdiv(state_size, BLOCK)
    program = tl.program_id(0)
    n0 = program % blocks * BLOCK
    head = tl.cast(tl.program_id(1), tl.int64)
    b = tl.cast(tl.program_id(2), tl.int64)
    n = tl.arange(0, BLOCK)
    n_in = n < state_size - n0
    if program < blocks:
        if HAS_ENTERING:
            state = tl.load(initial_states_ptr + (b * nheads + head) * state_size + n0 + n, mask=n_in, other=0.0)
            state = state.to(tl.float32)
        else:
            state = tl.zeros([BLOCK], dtype=tl.float32)
        total_base = total_ptr + b * nsegments * nheads + head
        summary_base = summary_ptr + b * nsegments * nheads * state_size + head * state_size + n0
        for step in range(tl.cdiv(nsegments, 4)):
            first = tl.cast(step * 4, tl.int64)
            total_0 = tl.load(total_base + first * nheads)
            local_state_0 = tl.load(summary_base + first * nheads * state_size + n, mask=n_in, other=0.0).to(tl.float32)
            total_1 = tl.load(total_base + tl.minimum(first + 1, nsegments - 1) * nheads)
            local_state_1 = tl.load(
                summary_base + tl.minimum(first + 1, nsegments - 1) * nheads * state_size + n, mask=n_in, other=0.0
            )
            local_state_1 = local_state_1.to(tl.float32)
            total_2 = tl.load(total_base + tl.minimum(first + 2, nsegments - 1) * nheads)
            local_state_2 = tl.load(
                summary_base + tl.minimum(first + 2, nsegments - 1) * nheads * state_size + n, mask=n_in, other=0.0
            )
            local_state_2 = local_state_2.to(tl.float32)
            total_3 = tl.load(total_base + tl.minimum(first + 3, nsegments - 1) * nheads)
            local_state_3 = tl.load(
                summary_base + tl.minimum(first + 3, nsegments - 1) * nheads * state_size + n, mask=n_in, other=0.0
            )
            local_state_3 = local_state_3.to(tl.float32)
            if first < nsegments:
                tl.store(summary_base + first * nheads * state_size + n, state, mask=n_in)
                centre_decay = decay(total_0)
                state = local_state_0 + state * centre_decay
            if first + 1 < nsegments:
                tl.store(summary_base + (first + 1) * nheads * state_size + n, state, mask=n_in)
                centre_decay = decay(total_1)
                state = local_state_1 + state * centre_decay
            if first + 2 < nsegments:
                tl.store(summary_base + (first + 2) * nheads * state_size + n, state, mask=n_in)
                centre_decay = decay(total_2)
                state = local_state_2 + state * centre_decay
            if first + 3 < nsegments:
                tl.store(summary_base + (first + 3) * nheads * state_size + n, state, mask=n_in)
                centre_decay = decay(total_3)
                state = local_state_3 + state * centre_decay
    else:
        if HAS_LEAVING:
            state = tl.load(d_final_states_ptr + (b * nheads + head) * state_size + n0 + n, mask=n_in, other=0.0)
            state = state.to(tl.float32)
        else:
            state = tl.zeros([BLOCK], dtype=tl.float32)
        total_base = total_ptr + b * nsegments * nheads + head
        d_summary_base = d_summary_ptr + b * nsegments * nheads * state_size + head * state_size + n0
        for step in range(tl.cdiv(nsegments, 4)):
            first = tl.cast(step * 4, tl.int64)
            total_0 = tl.load(total_base + (nsegments - 1 - (first)) * nheads)
            local_state_0 = tl.load(
                d_summary_base + (nsegments - 1 - (first)) * nheads * state_size + n, mask=n_in, other=0.0
            )
            local_state_0 = local_state_0.to(tl.float32)
            total_1 = tl.load(total_base + tl.maximum(nsegments - 1 - (first + 1), 0) * nheads)
            local_state_1 = tl.load(
                d_summary_base + tl.maximum(nsegments - 1 - (first + 1), 0) * nheads * state_size + n,
                mask=n_in,
                other=0.0,
            )
            local_state_1 = local_state_1.to(tl.float32)
            total_2 = tl.load(total_base + tl.maximum(nsegments - 1 - (first + 2), 0) * nheads)
            local_state_2 = tl.load(
                d_summary_base + tl.maximum(nsegments - 1 - (first + 2), 0) * nheads * state_size + n,
                mask=n_in,
                other=0.0,
            )
            local_state_2 = local_state_2.to(tl.float32)
            total_3 = tl.load(total_base + tl.maximum(nsegments - 1 - (first + 3), 0) * nheads)
            local_state_3 = tl.load(
                d_summary_base + tl.maximum(nsegments - 1 - (first + 3), 0) * nheads * state_size + n,
                mask=n_in,
                other=0.0,
            )
            local_state_3 = local_state_3.to(tl.float32)
            if first < nsegments:
                tl.store(d_summary_base + (nsegments - 1 - (first)) * nheads * state_size + n, state, mask=n_in)
                centre_decay = decay(total_0)
                state = local_state_0 + state * centre_decay
            if first + 1 < nsegments:
                tl.store(d_summary_base + (nsegments - 1 - (first + 1)) * nheads * state_size + n, state, mask=n_in)
                centre_decay = decay(total_1)
                state = local_state_1 + state * centre_decay
            if first + 2 < nsegments:
                tl.store(d_summary_base + (nsegments - 1 - (first + 2)) * nheads * state_size + n, state, mask=n_in)
                centre_decay = decay(total_2)
                state = local_state_2 + state * centre_decay
            if first + 3 < nsegments:
                tl.store(d_summary_base + (nsegments - 1 - (first + 3)) * nheads * state_size + n, state, mask=n_in)
                centre_decay = decay(total_3)
                state = local_state_3 + state * centre_decay
        if STORE_INITIAL:
            tl.store(d_initial_ptr + (b * nheads + head) * state_size + n0 + n, state, mask=n_in)


def grid(batch, nheads, state_size, BLOCK, **_):
    """Programs along each axis."""
    return 2 * triton.cdiv(state_size, BLOCK), nheads, batch
