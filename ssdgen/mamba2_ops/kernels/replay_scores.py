"""One program multiplies C of one row of the batch by B of every token that is kept and of the new one, and counts what
is kept.

CB_terms[n] = B[n]*C[n]
CB[] = sum over n of CB_terms[n]
kept_CB_terms[j, n] = C[n]*kept_B[j, n]
kept_CB[j] = sum over n of kept_CB_terms[j, n]
"""

import triton
import triton.language as tl


@triton.jit
def replay_scores(
    state_batch_indices_ptr,  # [batch], if HAS_SLOTS
    B_ptr,  # [batch, tokens, ngroups, dstate]
    C_ptr,  # [batch, tokens, ngroups, dstate]
    count_ptr,  # [nslots]
    kept_B_ptr,  # [nslots, ngroups, kept, dstate]
    new_B_ptr,  # [nslots, ngroups, kept, dstate]
    held_ptr,  # [batch]
    CB_ptr,  # [batch, ngroups]
    kept_CB_ptr,  # [batch, ngroups, block_k]
    stride_B_batch: tl.int64,
    stride_B_tokens: tl.int64,
    stride_B_ngroups: tl.int64,
    stride_C_batch: tl.int64,
    stride_C_tokens: tl.int64,
    stride_C_ngroups: tl.int64,
    nslots,
    ngroups,
    pad_slot_id,
    DSTATE: tl.constexpr,
    KEPT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_SLOTS: tl.constexpr,
    EARLY: tl.constexpr,
):
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
    b = tl.cast(tl.program_id(0), tl.int64)
    n = tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    k_there = k < KEPT
    if HAS_SLOTS:
        slot = tl.load(state_batch_indices_ptr + b).to(tl.int64)
        if (slot < 0) | (slot >= nslots) | (slot == pad_slot_id):
            return
    else:
        slot = b
    count = tl.load(count_ptr + slot)
    k_in = k < count
    kept = (count + 1) % (KEPT + 1)
    C_base = C_ptr + b * stride_C_batch
    kept_B_base = kept_B_ptr + slot * ngroups * KEPT * DSTATE
    B_base = B_ptr + b * stride_B_batch
    kept_CB_base = kept_CB_ptr + b * ngroups * BLOCK_K
    CB_base = CB_ptr + b * ngroups
    new_B_base = new_B_ptr + slot * ngroups * KEPT * DSTATE + count * DSTATE
    for group in range(ngroups):
        C = tl.load(C_base + group * stride_C_ngroups + n)  # [BLOCK_N]
        kept_B = tl.load(
            kept_B_base + group * KEPT * DSTATE + k[:, None] * DSTATE + n[None, :], mask=k_there[:, None], other=0.0
        )
        B = tl.load(B_base + group * stride_B_ngroups + n)  # [BLOCK_N]
        kept_CB_terms = tl.where(k_in[:, None], kept_B.to(tl.float32) * C.to(tl.float32)[None, :], 0.0)
        kept_CB = tl.sum(kept_CB_terms, axis=1)
        tl.store(kept_CB_base + group * BLOCK_K + k, kept_CB)
        CB_terms = B.to(tl.float32) * C.to(tl.float32)
        CB = tl.sum(CB_terms, axis=0)
        tl.store(CB_base + group, CB)
        if count < KEPT:
            tl.store(new_B_base + group * KEPT * DSTATE + n, B)
    tl.store(held_ptr + b, count)
    tl.store(count_ptr + slot, kept)


def grid(batch, **_):
    """Programs along each axis."""
    return batch, 1, 1
