"""One program makes the gradients of B and C of one chunk, for a tile of dstate, for the heads of a group, one after
the other. One group of warps has the tokens that read along the rows of its tiles, another those that are read; a
warp moves the tiles that they need, stages ahead.

mask_decay[h, i, j] = Piecewise((2**Min(0, dA_cs[h, i] - dA_cs[h, j]), i >= j), (0, True))
left_decay_whole[h, i] = 2**Min(0, dA_cs[h, i])
left_decay[h, i] = Piecewise((left_decay_whole[h, i], Eq(seq_before, seq[i])), (0, True))    if HAS_SEQ_IDX
right_decay_whole[h, j] = 2**Min(0, -dA_cs[h, j] + dA_last[h])*dt[h, j]
right_decay[h, j] = Piecewise((right_decay_whole[h, j], Eq(seq_last, seq[j])), (0, True))    if HAS_SEQ_IDX
y_state[h, i, p] = sum over n of C[i, n] * state[h, p, n]
x_weighted[h, j, p] = right_decay[h, j]*x[h, j, p]
d_centre_decay_terms[h, p, n] = d_state_out[h, p, n]*state[h, p, n]
d_centre_decay[h] = sum over p, n of d_centre_decay_terms[h, p, n]
d_y_skip[h, i, p] = sigmoid(z[h, i, p])*d_y[h, i, p]*z[h, i, p]    if HAS_Z
d_left_decay_terms[h, i, p] = d_y_skip[h, i, p]*y_state[h, i, p]
d_left_decay[h, i] = sum over p of d_left_decay_terms[h, i, p]
d_scores[h, i, j] = sum over p of d_y_skip[h, i, p] * x[h, j, p]
d_y_state[h, i, p] = d_y_skip[h, i, p]*left_decay[h, i]
d_scores_whole[h, i, j] = Piecewise((d_scores[h, i, j], Eq(seq[i], seq[j])), (0, True))    if HAS_SEQ_IDX
d_scores_decayed[h, i, j] = d_scores_whole[h, i, j]*mask_decay[h, i, j]
d_CB_head[h, i, j] = d_scores_decayed[h, i, j]*dt[h, j]
d_CB[i, j] = sum over h of d_CB_head[h, i, j]
d_C_CB[i, n] = sum over j of d_CB[i, j] * B[j, n]
d_B_CB[j, n] = sum over i of d_CB[i, j] * C[i, n]
d_C_head[h, i, n] = sum over p of d_y_state[h, i, p] * state[h, p, n]
d_C_heads[i, n] = sum over h of d_C_head[h, i, n]
d_C[i, n] = d_C_CB[i, n] + d_C_heads[i, n]
d_B_head[h, j, n] = sum over p of x_weighted[h, j, p] * d_state_out[h, p, n]
d_B_heads[j, n] = sum over h of d_B_head[h, j, n]
d_B[j, n] = d_B_CB[j, n] + d_B_heads[j, n]
"""

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .warpgroup_functions import decay, sigmoid


@gluon.jit
def load_tiles(
    x_desc,
    B_desc,
    C_desc,
    d_y_desc,
    dt_desc,
    dA_cs_desc,
    states_desc,
    d_states_desc,
    nheads,
    ngroups,
    C_tiles,
    B_tiles,
    d_y_0_tiles,
    d_y_1_tiles,
    x_0_tiles,
    x_1_tiles,
    state_0_tiles,
    state_1_tiles,
    dA_cs_tiles,
    dt_tiles,
    d_state_0_tiles,
    d_state_1_tiles,
    full,
    empty,
    fixed,
    DSTATE: gl.constexpr,
    CHUNK: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_P: gl.constexpr,
    STAGES: gl.constexpr,
):
    """The warp that moves tiles into shared memory, up to STAGES heads ahead of the consumers."""
    n_blocks = gl.cdiv(DSTATE, BLOCK_N)
    n0 = gl.program_id(0) % n_blocks * BLOCK_N
    group = gl.cast(gl.program_id(0) // n_blocks, gl.int64)
    chunk = gl.cast(gl.program_id(1), gl.int64)
    b = gl.cast(gl.program_id(2), gl.int64)
    row0 = chunk * CHUNK
    mbarrier.expect(fixed.index(0), C_desc.block_type.nbytes + B_desc.block_type.nbytes)
    tma.async_copy_global_to_shared(
        C_desc,
        [gl.cast(b, gl.int32), gl.cast(group, gl.int32), gl.cast(row0, gl.int32), gl.cast(n0, gl.int32)],
        fixed.index(0),
        C_tiles.index(0),
    )
    tma.async_copy_global_to_shared(
        B_desc,
        [gl.cast(b, gl.int32), gl.cast(group, gl.int32), gl.cast(row0, gl.int32), gl.cast(n0, gl.int32)],
        fixed.index(0),
        B_tiles.index(0),
    )
    for step in range(nheads // ngroups):
        head = group * (nheads // ngroups) + step
        stage = step % STAGES
        ready = full.index(stage)
        mbarrier.wait(empty.index(stage), (step // STAGES & 1) ^ 1)
        shared: gl.constexpr = (
            d_y_desc.block_type.nbytes
            + d_y_desc.block_type.nbytes
            + x_desc.block_type.nbytes
            + x_desc.block_type.nbytes
            + states_desc.block_type.nbytes
            + states_desc.block_type.nbytes
            + dA_cs_desc.block_type.nbytes
            + dt_desc.block_type.nbytes
            + d_states_desc.block_type.nbytes
            + d_states_desc.block_type.nbytes
        )
        mbarrier.expect(ready, shared)
        tma.async_copy_global_to_shared(
            d_y_desc,
            [gl.cast(b, gl.int32), gl.cast(head, gl.int32), gl.cast(row0, gl.int32), 0],
            ready,
            d_y_0_tiles.index(stage),
        )
        tma.async_copy_global_to_shared(
            d_y_desc,
            [gl.cast(b, gl.int32), gl.cast(head, gl.int32), gl.cast(row0, gl.int32), BLOCK_P],
            ready,
            d_y_1_tiles.index(stage),
        )
        tma.async_copy_global_to_shared(
            x_desc,
            [gl.cast(b, gl.int32), gl.cast(head, gl.int32), gl.cast(row0, gl.int32), 0],
            ready,
            x_0_tiles.index(stage),
        )
        tma.async_copy_global_to_shared(
            x_desc,
            [gl.cast(b, gl.int32), gl.cast(head, gl.int32), gl.cast(row0, gl.int32), BLOCK_P],
            ready,
            x_1_tiles.index(stage),
        )
        tma.async_copy_global_to_shared(
            states_desc,
            [gl.cast(b, gl.int32), gl.cast(chunk, gl.int32), gl.cast(head, gl.int32), 0, gl.cast(n0, gl.int32)],
            ready,
            state_0_tiles.index(stage),
        )
        tma.async_copy_global_to_shared(
            states_desc,
            [gl.cast(b, gl.int32), gl.cast(chunk, gl.int32), gl.cast(head, gl.int32), BLOCK_P, gl.cast(n0, gl.int32)],
            ready,
            state_1_tiles.index(stage),
        )
        tma.async_copy_global_to_shared(
            dA_cs_desc,
            [gl.cast(b, gl.int32), gl.cast(head, gl.int32), gl.cast(row0, gl.int32)],
            ready,
            dA_cs_tiles.index(stage),
        )
        tma.async_copy_global_to_shared(
            dt_desc,
            [gl.cast(b, gl.int32), gl.cast(head, gl.int32), gl.cast(row0, gl.int32)],
            ready,
            dt_tiles.index(stage),
        )
        tma.async_copy_global_to_shared(
            d_states_desc,
            [gl.cast(b, gl.int32), gl.cast(chunk, gl.int32), gl.cast(head, gl.int32), 0, gl.cast(n0, gl.int32)],
            ready,
            d_state_0_tiles.index(stage),
        )
        tma.async_copy_global_to_shared(
            d_states_desc,
            [gl.cast(b, gl.int32), gl.cast(chunk, gl.int32), gl.cast(head, gl.int32), BLOCK_P, gl.cast(n0, gl.int32)],
            ready,
            d_state_1_tiles.index(stage),
        )


@gluon.jit
def compute_rows(
    seq_idx_ptr,
    z_ptr,
    d_C_ptr,
    d_left_decay_ptr,
    stride_z_batch: gl.int64,
    stride_z_seqlen: gl.int64,
    stride_z_nheads: gl.int64,
    batch,
    seqlen,
    nheads,
    ngroups,
    padded,
    C_tiles,
    B_tiles,
    d_y_0_tiles,
    d_y_1_tiles,
    x_0_tiles,
    x_1_tiles,
    state_0_tiles,
    state_1_tiles,
    dA_cs_tiles,
    dt_tiles,
    rows_d_y_skip_0_own_tiles,
    rows_d_y_skip_1_own_tiles,
    full,
    empty,
    fixed,
    HEADDIM: gl.constexpr,
    DSTATE: gl.constexpr,
    CHUNK: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_P: gl.constexpr,
    STAGES: gl.constexpr,
    DOT: gl.constexpr,
    HAS_SEQ_IDX: gl.constexpr,
    HAS_Z: gl.constexpr,
    NEEDS_C: gl.constexpr,
    NEEDS_DT: gl.constexpr,
):
    """The consumer that has the rows: four warps that multiply together."""
    BY_BLOCK_N: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    BY_CHUNK: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, CHUNK, 16])
    BY_BLOCK_P: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_P, 16])
    d_y_skip_0_own_tile = rows_d_y_skip_0_own_tiles.index(0)
    d_y_skip_1_own_tile = rows_d_y_skip_1_own_tiles.index(0)
    n_blocks = gl.cdiv(DSTATE, BLOCK_N)
    n_block = gl.cast(gl.program_id(0) % n_blocks, gl.int64)
    n0 = gl.program_id(0) % n_blocks * BLOCK_N
    group = gl.cast(gl.program_id(0) // n_blocks, gl.int64)
    chunk = gl.cast(gl.program_id(1), gl.int64)
    b = gl.cast(gl.program_id(2), gl.int64)
    row0 = chunk * CHUNK
    row_rows_block_n = gl.arange(0, CHUNK, gl.SliceLayout(1, BY_BLOCK_N))
    row_rows_chunk = gl.arange(0, CHUNK, gl.SliceLayout(1, BY_CHUNK))
    row_cols = gl.arange(0, CHUNK, gl.SliceLayout(0, BY_CHUNK))
    row_rows_block_p = gl.arange(0, CHUNK, gl.SliceLayout(1, BY_BLOCK_P))
    n = gl.arange(0, BLOCK_N, gl.SliceLayout(0, BY_BLOCK_N))
    p_0 = gl.arange(0, BLOCK_P, gl.SliceLayout(0, BY_BLOCK_P))
    p_1 = gl.arange(0, BLOCK_P, gl.SliceLayout(0, BY_BLOCK_P))
    n_in = n < DSTATE - n0
    p_0_in = p_0 < HEADDIM
    p_1_in = p_1 < HEADDIM - BLOCK_P
    row_in_rows_block_n = row_rows_block_n < seqlen - row0
    row_in_rows_block_p = row_rows_block_p < seqlen - row0
    row_in_rows_chunk = row_rows_chunk < seqlen - row0
    row_in_cols = row_cols < seqlen - row0
    mbarrier.wait(fixed.index(0), 0)
    C_tile = C_tiles.index(0).reshape([CHUNK, BLOCK_N])
    if HAS_SEQ_IDX:
        seq_rows_chunk = gl.load(seq_idx_ptr + b * seqlen + row0 + row_rows_chunk, mask=row_in_rows_chunk, other=0)
        seq_cols = gl.load(seq_idx_ptr + b * seqlen + row0 + row_cols, mask=row_in_cols, other=0)
        seq_rows_block_p = gl.load(
            seq_idx_ptr + b * seqlen + row0 + row_rows_block_p, mask=row_in_rows_block_p, other=0
        )
        seq_before = gl.load(seq_idx_ptr + b * seqlen + gl.maximum(row0 - 1, 0))
    B_tile = B_tiles.index(0).reshape([CHUNK, BLOCK_N])
    d_CB = gl.zeros([CHUNK, CHUNK], gl.float32, BY_CHUNK)
    d_C_heads = gl.zeros([CHUNK, BLOCK_N], gl.float32, BY_BLOCK_N)
    for step in range(nheads // ngroups):
        head = group * (nheads // ngroups) + step
        if HAS_Z:
            z_0_base = z_ptr + b * stride_z_batch + row0 * stride_z_seqlen
            z_0 = gl.load(
                z_0_base + head * stride_z_nheads + row_rows_block_p[:, None] * stride_z_seqlen + p_0[None, :],
                mask=row_in_rows_block_p[:, None] & p_0_in[None, :],
                other=0.0,
            )
        if HAS_Z:
            z_1_base = z_ptr + b * stride_z_batch + row0 * stride_z_seqlen + BLOCK_P
            z_1 = gl.load(
                z_1_base + head * stride_z_nheads + row_rows_block_p[:, None] * stride_z_seqlen + p_1[None, :],
                mask=row_in_rows_block_p[:, None] & p_1_in[None, :],
                other=0.0,
            )
        stage = step % STAGES
        mbarrier.wait(full.index(stage), step // STAGES & 1)
        d_y_0_tile = d_y_0_tiles.index(stage).reshape([CHUNK, BLOCK_P])
        d_y_1_tile = d_y_1_tiles.index(stage).reshape([CHUNK, BLOCK_P])
        x_0_tile = x_0_tiles.index(stage).reshape([CHUNK, BLOCK_P])
        x_1_tile = x_1_tiles.index(stage).reshape([CHUNK, BLOCK_P])
        state_0_tile = state_0_tiles.index(stage).reshape([BLOCK_P, BLOCK_N])
        state_1_tile = state_1_tiles.index(stage).reshape([BLOCK_P, BLOCK_N])
        dA_cs_tile = dA_cs_tiles.index(stage).reshape([CHUNK])
        dt_tile = dt_tiles.index(stage).reshape([CHUNK])
        d_y_skip_0_tile = d_y_0_tile
        if HAS_Z:
            d_y_0 = d_y_0_tile.load(BY_BLOCK_P)
            d_y_skip_0 = d_y_0.to(gl.float32) * z_0.to(gl.float32) * sigmoid(z_0.to(gl.float32))
            d_y_skip_0_own_tile.store(d_y_skip_0.to(DOT))
            d_y_skip_0_tile = d_y_skip_0_own_tile
        d_y_skip_1_tile = d_y_1_tile
        if HAS_Z:
            d_y_1 = d_y_1_tile.load(BY_BLOCK_P)
            d_y_skip_1 = d_y_1.to(gl.float32) * z_1.to(gl.float32) * sigmoid(z_1.to(gl.float32))
            d_y_skip_1_own_tile.store(d_y_skip_1.to(DOT))
            d_y_skip_1_tile = d_y_skip_1_own_tile
        fence_async_shared()
        d_scores = warpgroup_mma(
            d_y_skip_0_tile,
            x_0_tile.permute((1, 0)),
            gl.zeros([CHUNK, CHUNK], gl.float32, BY_CHUNK),
            use_acc=False,
            is_async=True,
        )
        d_scores = warpgroup_mma(d_y_skip_1_tile, x_1_tile.permute((1, 0)), d_scores, is_async=True)
        y_0 = warpgroup_mma(
            C_tile,
            state_0_tile.permute((1, 0)),
            gl.zeros([CHUNK, BLOCK_P], gl.float32, BY_BLOCK_P),
            use_acc=False,
            is_async=True,
        )
        y_1 = warpgroup_mma(
            C_tile,
            state_1_tile.permute((1, 0)),
            gl.zeros([CHUNK, BLOCK_P], gl.float32, BY_BLOCK_P),
            use_acc=False,
            is_async=True,
        )
        dA_cs_rows_block_p = dA_cs_tile.load(gl.SliceLayout(1, BY_BLOCK_P))
        left_decay = decay(dA_cs_rows_block_p)
        if HAS_SEQ_IDX:
            left_decay = gl.where(seq_before == seq_rows_block_p, left_decay, 0.0)
        d_scores, y_0 = warpgroup_mma_wait(1, deps=(d_scores, y_0))
        d_y_skip_0 = d_y_skip_0_tile.load(BY_BLOCK_P)
        d_left_decay_terms_0 = d_y_skip_0.to(gl.float32) * y_0
        d_left_decay = gl.sum(d_left_decay_terms_0, axis=1)
        y_1 = warpgroup_mma_wait(0, deps=(y_1,))
        d_y_skip_1 = d_y_skip_1_tile.load(BY_BLOCK_P)
        d_left_decay_terms_1 = d_y_skip_1.to(gl.float32) * y_1
        d_left_decay_more = gl.sum(d_left_decay_terms_1, axis=1)
        d_left_decay = d_left_decay + d_left_decay_more
        if NEEDS_DT:
            d_left_decay_base = d_left_decay_ptr + (n_block * batch + b) * nheads * padded + row0
            gl.store(
                d_left_decay_base + head * padded + row_rows_block_p,
                d_left_decay.to(d_left_decay_base.dtype.element_ty),
            )
        # diagonal block
        if HAS_SEQ_IDX:
            d_scores = gl.where(seq_rows_chunk[:, None] == seq_cols[None, :], d_scores, 0.0)
        dA_cs_rows_chunk = dA_cs_tile.load(gl.SliceLayout(1, BY_CHUNK))
        dA_cs_cols = dA_cs_tile.load(gl.SliceLayout(0, BY_CHUNK))
        mask_decay = gl.where(
            row_rows_chunk[:, None] >= row_cols[None, :], decay(dA_cs_rows_chunk[:, None] - dA_cs_cols[None, :]), 0.0
        )
        d_scores_decayed = d_scores * mask_decay
        dt = dt_tile.load(gl.SliceLayout(0, BY_CHUNK))
        d_CB_head = d_scores_decayed * dt[None, :]
        d_CB = d_CB + d_CB_head
        d_y_state_0 = d_y_skip_0.to(gl.float32) * left_decay[:, None]
        d_y_state_0_left = gl.convert_layout(d_y_state_0.to(DOT), gl.DotOperandLayout(0, BY_BLOCK_N, 2))
        d_C_heads = warpgroup_mma(d_y_state_0_left, state_0_tile, d_C_heads, is_async=True)
        d_y_state_1 = d_y_skip_1.to(gl.float32) * left_decay[:, None]
        d_C_heads, d_y_state_0_left = warpgroup_mma_wait(0, deps=(d_C_heads, d_y_state_0_left))
        d_y_state_1_left = gl.convert_layout(d_y_state_1.to(DOT), gl.DotOperandLayout(0, BY_BLOCK_N, 2))
        d_C_heads = warpgroup_mma(d_y_state_1_left, state_1_tile, d_C_heads, is_async=True)
        d_C_heads, d_y_state_1_left = warpgroup_mma_wait(0, deps=(d_C_heads, d_y_state_1_left))
        mbarrier.arrive(empty.index(stage))
    d_C = d_C_heads
    d_CB_left = gl.convert_layout(d_CB.to(DOT), gl.DotOperandLayout(0, BY_BLOCK_N, 2))
    d_C = warpgroup_mma(d_CB_left, B_tile, d_C, is_async=True)
    d_C, d_CB_left = warpgroup_mma_wait(0, deps=(d_C, d_CB_left))
    if NEEDS_C:
        d_C_base = d_C_ptr + b * seqlen * ngroups * DSTATE + row0 * ngroups * DSTATE + group * DSTATE + n0
        gl.store(
            d_C_base + row_rows_block_n[:, None] * ngroups * DSTATE + n[None, :],
            d_C.to(d_C_base.dtype.element_ty),
            mask=row_in_rows_block_n[:, None] & n_in[None, :],
        )


@gluon.jit
def compute_columns(
    seq_idx_ptr,
    z_ptr,
    d_B_ptr,
    d_centre_decay_ptr,
    stride_z_batch: gl.int64,
    stride_z_seqlen: gl.int64,
    stride_z_nheads: gl.int64,
    batch,
    seqlen,
    nheads,
    ngroups,
    nchunks,
    C_tiles,
    d_y_0_tiles,
    d_y_1_tiles,
    x_0_tiles,
    x_1_tiles,
    state_0_tiles,
    state_1_tiles,
    dA_cs_tiles,
    dt_tiles,
    d_state_0_tiles,
    d_state_1_tiles,
    columns_d_y_skip_0_own_tiles,
    columns_d_y_skip_1_own_tiles,
    full,
    empty,
    fixed,
    HEADDIM: gl.constexpr,
    DSTATE: gl.constexpr,
    CHUNK: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_P: gl.constexpr,
    STAGES: gl.constexpr,
    DOT: gl.constexpr,
    HAS_SEQ_IDX: gl.constexpr,
    HAS_Z: gl.constexpr,
    NEEDS_B: gl.constexpr,
    NEEDS_DT: gl.constexpr,
):
    """The consumer that has the columns: four warps that multiply together."""
    BY_BLOCK_N: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    BY_CHUNK: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, CHUNK, 16])
    BY_BLOCK_P: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_P, 16])
    d_y_skip_0_own_tile = columns_d_y_skip_0_own_tiles.index(0)
    d_y_skip_1_own_tile = columns_d_y_skip_1_own_tiles.index(0)
    n_blocks = gl.cdiv(DSTATE, BLOCK_N)
    n_block = gl.cast(gl.program_id(0) % n_blocks, gl.int64)
    n0 = gl.program_id(0) % n_blocks * BLOCK_N
    group = gl.cast(gl.program_id(0) // n_blocks, gl.int64)
    chunk = gl.cast(gl.program_id(1), gl.int64)
    b = gl.cast(gl.program_id(2), gl.int64)
    row0 = chunk * CHUNK
    row_rows_block_n = gl.arange(0, CHUNK, gl.SliceLayout(1, BY_BLOCK_N))
    row_cols = gl.arange(0, CHUNK, gl.SliceLayout(0, BY_CHUNK))
    row_rows_chunk = gl.arange(0, CHUNK, gl.SliceLayout(1, BY_CHUNK))
    row_rows_block_p = gl.arange(0, CHUNK, gl.SliceLayout(1, BY_BLOCK_P))
    n = gl.arange(0, BLOCK_N, gl.SliceLayout(0, BY_BLOCK_N))
    p_0 = gl.arange(0, BLOCK_P, gl.SliceLayout(0, BY_BLOCK_P))
    p_1 = gl.arange(0, BLOCK_P, gl.SliceLayout(0, BY_BLOCK_P))
    n_in = n < DSTATE - n0
    p_0_in = p_0 < HEADDIM
    p_1_in = p_1 < HEADDIM - BLOCK_P
    row_in_rows_block_n = row_rows_block_n < seqlen - row0
    row_in_rows_block_p = row_rows_block_p < seqlen - row0
    row_in_cols = row_cols < seqlen - row0
    row_in_rows_chunk = row_rows_chunk < seqlen - row0
    if HAS_SEQ_IDX:
        seq_rows_block_p = gl.load(
            seq_idx_ptr + b * seqlen + row0 + row_rows_block_p, mask=row_in_rows_block_p, other=0
        )
        seq_cols = gl.load(seq_idx_ptr + b * seqlen + row0 + row_cols, mask=row_in_cols, other=0)
        seq_rows_chunk = gl.load(seq_idx_ptr + b * seqlen + row0 + row_rows_chunk, mask=row_in_rows_chunk, other=0)
        seq_last = gl.load(seq_idx_ptr + b * seqlen + gl.minimum(row0 + CHUNK, seqlen) - 1)
    mbarrier.wait(fixed.index(0), 0)
    C_tile = C_tiles.index(0).reshape([CHUNK, BLOCK_N])
    d_CB = gl.zeros([CHUNK, CHUNK], gl.float32, BY_CHUNK)
    d_B_heads = gl.zeros([CHUNK, BLOCK_N], gl.float32, BY_BLOCK_N)
    for step in range(nheads // ngroups):
        head = group * (nheads // ngroups) + step
        if HAS_Z:
            z_0_base = z_ptr + b * stride_z_batch + row0 * stride_z_seqlen
            z_0 = gl.load(
                z_0_base + head * stride_z_nheads + row_rows_block_p[:, None] * stride_z_seqlen + p_0[None, :],
                mask=row_in_rows_block_p[:, None] & p_0_in[None, :],
                other=0.0,
            )
        if HAS_Z:
            z_1_base = z_ptr + b * stride_z_batch + row0 * stride_z_seqlen + BLOCK_P
            z_1 = gl.load(
                z_1_base + head * stride_z_nheads + row_rows_block_p[:, None] * stride_z_seqlen + p_1[None, :],
                mask=row_in_rows_block_p[:, None] & p_1_in[None, :],
                other=0.0,
            )
        stage = step % STAGES
        mbarrier.wait(full.index(stage), step // STAGES & 1)
        d_y_0_tile = d_y_0_tiles.index(stage).reshape([CHUNK, BLOCK_P])
        d_y_1_tile = d_y_1_tiles.index(stage).reshape([CHUNK, BLOCK_P])
        x_0_tile = x_0_tiles.index(stage).reshape([CHUNK, BLOCK_P])
        x_1_tile = x_1_tiles.index(stage).reshape([CHUNK, BLOCK_P])
        dA_cs_tile = dA_cs_tiles.index(stage).reshape([CHUNK])
        dt_tile = dt_tiles.index(stage).reshape([CHUNK])
        d_state_0_tile = d_state_0_tiles.index(stage).reshape([BLOCK_P, BLOCK_N])
        d_state_1_tile = d_state_1_tiles.index(stage).reshape([BLOCK_P, BLOCK_N])
        state_0_tile = state_0_tiles.index(stage).reshape([BLOCK_P, BLOCK_N])
        state_1_tile = state_1_tiles.index(stage).reshape([BLOCK_P, BLOCK_N])
        d_y_skip_0_tile = d_y_0_tile
        if HAS_Z:
            d_y_0 = d_y_0_tile.load(BY_BLOCK_P)
            d_y_skip_0 = d_y_0.to(gl.float32) * z_0.to(gl.float32) * sigmoid(z_0.to(gl.float32))
            d_y_skip_0_own_tile.store(d_y_skip_0.to(DOT))
            d_y_skip_0_tile = d_y_skip_0_own_tile
        d_y_skip_1_tile = d_y_1_tile
        if HAS_Z:
            d_y_1 = d_y_1_tile.load(BY_BLOCK_P)
            d_y_skip_1 = d_y_1.to(gl.float32) * z_1.to(gl.float32) * sigmoid(z_1.to(gl.float32))
            d_y_skip_1_own_tile.store(d_y_skip_1.to(DOT))
            d_y_skip_1_tile = d_y_skip_1_own_tile
        fence_async_shared()
        d_scores = warpgroup_mma(
            x_0_tile,
            d_y_skip_0_tile.permute((1, 0)),
            gl.zeros([CHUNK, CHUNK], gl.float32, BY_CHUNK),
            use_acc=False,
            is_async=True,
        )
        d_scores = warpgroup_mma(x_1_tile, d_y_skip_1_tile.permute((1, 0)), d_scores, is_async=True)
        # diagonal block
        d_scores = warpgroup_mma_wait(0, deps=(d_scores,))
        if HAS_SEQ_IDX:
            d_scores = gl.where(seq_cols[None, :] == seq_rows_chunk[:, None], d_scores, 0.0)
        dA_cs_cols = dA_cs_tile.load(gl.SliceLayout(0, BY_CHUNK))
        dA_cs_rows_chunk = dA_cs_tile.load(gl.SliceLayout(1, BY_CHUNK))
        mask_decay = gl.where(
            row_cols[None, :] >= row_rows_chunk[:, None], decay(dA_cs_cols[None, :] - dA_cs_rows_chunk[:, None]), 0.0
        )
        d_scores_decayed = d_scores * mask_decay
        dt_rows_chunk = dt_tile.load(gl.SliceLayout(1, BY_CHUNK))
        d_CB_head = d_scores_decayed * dt_rows_chunk[:, None]
        d_CB = d_CB + d_CB_head
        dA_last = gl.sum(dA_cs_tile.slice(CHUNK - 1, 1).load(gl.SliceLayout(0, BY_CHUNK)), axis=0)
        dA_cs_rows_block_p = dA_cs_tile.load(gl.SliceLayout(1, BY_BLOCK_P))
        dt_rows_block_p = dt_tile.load(gl.SliceLayout(1, BY_BLOCK_P))
        right_decay = dt_rows_block_p * decay(dA_last - dA_cs_rows_block_p)
        if HAS_SEQ_IDX:
            right_decay = gl.where(seq_last == seq_rows_block_p, right_decay, 0.0)
        x_0 = x_0_tile.load(BY_BLOCK_P)
        x_weighted_0 = x_0.to(gl.float32) * right_decay[:, None]
        x_weighted_0_left = gl.convert_layout(x_weighted_0.to(DOT), gl.DotOperandLayout(0, BY_BLOCK_N, 2))
        d_B_heads = warpgroup_mma(x_weighted_0_left, d_state_0_tile, d_B_heads, is_async=True)
        x_1 = x_1_tile.load(BY_BLOCK_P)
        x_weighted_1 = x_1.to(gl.float32) * right_decay[:, None]
        d_B_heads, x_weighted_0_left = warpgroup_mma_wait(0, deps=(d_B_heads, x_weighted_0_left))
        x_weighted_1_left = gl.convert_layout(x_weighted_1.to(DOT), gl.DotOperandLayout(0, BY_BLOCK_N, 2))
        d_B_heads = warpgroup_mma(x_weighted_1_left, d_state_1_tile, d_B_heads, is_async=True)
        d_state_0 = d_state_0_tile.load(BY_BLOCK_N)
        state_0 = state_0_tile.load(BY_BLOCK_N)
        d_centre_decay_terms_0 = d_state_0.to(gl.float32) * state_0.to(gl.float32)
        d_centre_decay = gl.sum(d_centre_decay_terms_0, axis=1)
        d_centre_decay = gl.sum(d_centre_decay, axis=0)
        d_state_1 = d_state_1_tile.load(BY_BLOCK_N)
        state_1 = state_1_tile.load(BY_BLOCK_N)
        d_centre_decay_terms_1 = d_state_1.to(gl.float32) * state_1.to(gl.float32)
        d_centre_decay_more = gl.sum(d_centre_decay_terms_1, axis=1)
        d_centre_decay_more = gl.sum(d_centre_decay_more, axis=0)
        d_centre_decay = d_centre_decay + d_centre_decay_more
        if NEEDS_DT:
            gl.store(
                d_centre_decay_ptr + ((n_block * batch + b) * nchunks + chunk) * nheads + head,
                d_centre_decay.to(d_centre_decay_ptr.dtype.element_ty),
            )
        d_B_heads, x_weighted_1_left = warpgroup_mma_wait(0, deps=(d_B_heads, x_weighted_1_left))
        mbarrier.arrive(empty.index(stage))
    d_B = d_B_heads
    d_CB_left = gl.convert_layout(d_CB.to(DOT), gl.DotOperandLayout(0, BY_BLOCK_N, 2))
    d_B = warpgroup_mma(d_CB_left, C_tile, d_B, is_async=True)
    d_B, d_CB_left = warpgroup_mma_wait(0, deps=(d_B, d_CB_left))
    if NEEDS_B:
        d_B_base = d_B_ptr + b * seqlen * ngroups * DSTATE + row0 * ngroups * DSTATE + group * DSTATE + n0
        gl.store(
            d_B_base + row_rows_block_n[:, None] * ngroups * DSTATE + n[None, :],
            d_B.to(d_B_base.dtype.element_ty),
            mask=row_in_rows_block_n[:, None] & n_in[None, :],
        )


# Triton 3.6 fails on programs of several consumers where it knows that there is one head
@gluon.jit(do_not_specialize=["nheads"])
def group_gradients_2p_blocks_2consumers(
    x_desc,  # [batch, nheads, seqlen, headdim]
    B_desc,  # [batch, ngroups, seqlen, dstate]
    C_desc,  # [batch, ngroups, seqlen, dstate]
    d_y_desc,  # [batch, nheads, seqlen, headdim]
    dt_desc,  # [batch, nheads, padded]
    dA_cs_desc,  # [batch, nheads, padded]
    seq_idx_ptr,  # [batch, seqlen], if HAS_SEQ_IDX
    z_ptr,  # [batch, seqlen, nheads, headdim], if HAS_Z
    states_desc,  # [batch, nchunks, nheads, headdim, dstate]
    d_states_desc,  # [batch, nchunks, nheads, headdim, dstate]
    d_B_ptr,  # [batch, seqlen, ngroups, dstate], if NEEDS_B
    d_C_ptr,  # [batch, seqlen, ngroups, dstate], if NEEDS_C
    d_left_decay_ptr,  # [n_blocks, batch, nheads, padded], if NEEDS_DT
    d_centre_decay_ptr,  # [n_blocks, batch, nchunks, nheads], if NEEDS_DT
    stride_z_batch: gl.int64,
    stride_z_seqlen: gl.int64,
    stride_z_nheads: gl.int64,
    batch,
    seqlen,
    nheads,
    ngroups,
    nchunks,
    padded,
    HEADDIM: gl.constexpr,
    DSTATE: gl.constexpr,
    CHUNK: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_P: gl.constexpr,
    STAGES: gl.constexpr,
    DOT: gl.constexpr,
    HAS_SEQ_IDX: gl.constexpr,
    HAS_Z: gl.constexpr,
    NEEDS_B: gl.constexpr,
    NEEDS_C: gl.constexpr,
    NEEDS_DT: gl.constexpr,
):
    C_tiles = gl.allocate_shared_memory(C_desc.dtype, [1, 1, 1, CHUNK, BLOCK_N], C_desc.layout)
    B_tiles = gl.allocate_shared_memory(B_desc.dtype, [1, 1, 1, CHUNK, BLOCK_N], B_desc.layout)
    d_y_0_tiles = gl.allocate_shared_memory(d_y_desc.dtype, [STAGES, 1, 1, CHUNK, BLOCK_P], d_y_desc.layout)
    d_y_1_tiles = gl.allocate_shared_memory(d_y_desc.dtype, [STAGES, 1, 1, CHUNK, BLOCK_P], d_y_desc.layout)
    x_0_tiles = gl.allocate_shared_memory(x_desc.dtype, [STAGES, 1, 1, CHUNK, BLOCK_P], x_desc.layout)
    x_1_tiles = gl.allocate_shared_memory(x_desc.dtype, [STAGES, 1, 1, CHUNK, BLOCK_P], x_desc.layout)
    state_0_tiles = gl.allocate_shared_memory(
        states_desc.dtype, [STAGES, 1, 1, 1, BLOCK_P, BLOCK_N], states_desc.layout
    )
    state_1_tiles = gl.allocate_shared_memory(
        states_desc.dtype, [STAGES, 1, 1, 1, BLOCK_P, BLOCK_N], states_desc.layout
    )
    dA_cs_tiles = gl.allocate_shared_memory(dA_cs_desc.dtype, [STAGES, 1, 1, CHUNK], dA_cs_desc.layout)
    dt_tiles = gl.allocate_shared_memory(dt_desc.dtype, [STAGES, 1, 1, CHUNK], dt_desc.layout)
    d_state_0_tiles = gl.allocate_shared_memory(
        d_states_desc.dtype, [STAGES, 1, 1, 1, BLOCK_P, BLOCK_N], d_states_desc.layout
    )
    d_state_1_tiles = gl.allocate_shared_memory(
        d_states_desc.dtype, [STAGES, 1, 1, 1, BLOCK_P, BLOCK_N], d_states_desc.layout
    )
    rows_d_y_skip_0_own_tiles = gl.allocate_shared_memory(
        DOT, [1, CHUNK, BLOCK_P], gl.NVMMASharedLayout.get_default_for([CHUNK, BLOCK_P], DOT)
    )
    rows_d_y_skip_1_own_tiles = gl.allocate_shared_memory(
        DOT, [1, CHUNK, BLOCK_P], gl.NVMMASharedLayout.get_default_for([CHUNK, BLOCK_P], DOT)
    )
    columns_d_y_skip_0_own_tiles = gl.allocate_shared_memory(
        DOT, [1, CHUNK, BLOCK_P], gl.NVMMASharedLayout.get_default_for([CHUNK, BLOCK_P], DOT)
    )
    columns_d_y_skip_1_own_tiles = gl.allocate_shared_memory(
        DOT, [1, CHUNK, BLOCK_P], gl.NVMMASharedLayout.get_default_for([CHUNK, BLOCK_P], DOT)
    )
    # a stage is full when its tiles have arrived, and empty when every consumer has done with them
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    fixed = gl.allocate_shared_memory(gl.int64, [1, 1], mbarrier.MBarrierLayout())
    mbarrier.init(fixed.index(0), count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=2)
    # up to here beside the kernel before, whose results come next
    gdc_wait()
    gdc_launch_dependents()
    gl.warp_specialize(
        [
            (
                compute_rows,
                (
                    seq_idx_ptr,
                    z_ptr,
                    d_C_ptr,
                    d_left_decay_ptr,
                    stride_z_batch,
                    stride_z_seqlen,
                    stride_z_nheads,
                    batch,
                    seqlen,
                    nheads,
                    ngroups,
                    padded,
                    C_tiles,
                    B_tiles,
                    d_y_0_tiles,
                    d_y_1_tiles,
                    x_0_tiles,
                    x_1_tiles,
                    state_0_tiles,
                    state_1_tiles,
                    dA_cs_tiles,
                    dt_tiles,
                    rows_d_y_skip_0_own_tiles,
                    rows_d_y_skip_1_own_tiles,
                    full,
                    empty,
                    fixed,
                    HEADDIM,
                    DSTATE,
                    CHUNK,
                    BLOCK_N,
                    BLOCK_P,
                    STAGES,
                    DOT,
                    HAS_SEQ_IDX,
                    HAS_Z,
                    NEEDS_C,
                    NEEDS_DT,
                ),
            ),
            (
                compute_columns,
                (
                    seq_idx_ptr,
                    z_ptr,
                    d_B_ptr,
                    d_centre_decay_ptr,
                    stride_z_batch,
                    stride_z_seqlen,
                    stride_z_nheads,
                    batch,
                    seqlen,
                    nheads,
                    ngroups,
                    nchunks,
                    C_tiles,
                    d_y_0_tiles,
                    d_y_1_tiles,
                    x_0_tiles,
                    x_1_tiles,
                    state_0_tiles,
                    state_1_tiles,
                    dA_cs_tiles,
                    dt_tiles,
                    d_state_0_tiles,
                    d_state_1_tiles,
                    columns_d_y_skip_0_own_tiles,
                    columns_d_y_skip_1_own_tiles,
                    full,
                    empty,
                    fixed,
                    HEADDIM,
                    DSTATE,
                    CHUNK,
                    BLOCK_N,
                    BLOCK_P,
                    STAGES,
                    DOT,
                    HAS_SEQ_IDX,
                    HAS_Z,
                    NEEDS_B,
                    NEEDS_DT,
                ),
            ),
            (
                load_tiles,
                (
                    x_desc,
                    B_desc,
                    C_desc,
                    d_y_desc,
                    dt_desc,
                    dA_cs_desc,
                    states_desc,
                    d_states_desc,
                    nheads,
                    ngroups,
                    C_tiles,
                    B_tiles,
                    d_y_0_tiles,
                    d_y_1_tiles,
                    x_0_tiles,
                    x_1_tiles,
                    state_0_tiles,
                    state_1_tiles,
                    dA_cs_tiles,
                    dt_tiles,
                    d_state_0_tiles,
                    d_state_1_tiles,
                    full,
                    empty,
                    fixed,
                    DSTATE,
                    CHUNK,
                    BLOCK_N,
                    BLOCK_P,
                    STAGES,
                ),
            ),
        ],
        worker_num_warps=[4, 1],
        worker_num_regs=[240, 24],
    )


def grid(batch, ngroups, nchunks, DSTATE, BLOCK_N, **_):
    """Programs along each axis."""
    return ngroups * triton.cdiv(DSTATE, BLOCK_N), nchunks, batch


def blocks(CHUNK, BLOCK_N, BLOCK_P, **_):
    """Order of the dimensions and block of each tensor descriptor."""
    return {
        "C": ((0, 2, 1, 3), (1, 1, CHUNK, BLOCK_N)),
        "B": ((0, 2, 1, 3), (1, 1, CHUNK, BLOCK_N)),
        "d_y": ((0, 2, 1, 3), (1, 1, CHUNK, BLOCK_P)),
        "x": ((0, 2, 1, 3), (1, 1, CHUNK, BLOCK_P)),
        "states": ((0, 1, 2, 3, 4), (1, 1, 1, BLOCK_P, BLOCK_N)),
        "dA_cs": ((0, 1, 2), (1, 1, CHUNK)),
        "dt": ((0, 1, 2), (1, 1, CHUNK)),
        "d_states": ((0, 1, 2, 3, 4), (1, 1, 1, BLOCK_P, BLOCK_N)),
    }
