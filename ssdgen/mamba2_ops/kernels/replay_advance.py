"""One program counts the inputs that are kept of one row of the batch."""

import triton
import triton.language as tl


@triton.jit
def replay_advance(
    state_batch_indices_ptr,  # [batch], if HAS_SLOTS
    count_ptr,  # [nslots]
    nslots,
    pad_slot_id,
    KEPT: tl.constexpr,
    HAS_SLOTS: tl.constexpr,
):
    b = tl.cast(tl.program_id(0), tl.int64)
    if HAS_SLOTS:
        slot = tl.load(state_batch_indices_ptr + b).to(tl.int64)
        if (slot < 0) | (slot >= nslots) | (slot == pad_slot_id):
            return
    else:
        slot = b
    count = tl.load(count_ptr + slot)
    kept = (count + 1) % (KEPT + 1)
    tl.store(count_ptr + slot, kept)


def grid(batch, **_):
    """Programs along each axis."""
    return batch, 1, 1
