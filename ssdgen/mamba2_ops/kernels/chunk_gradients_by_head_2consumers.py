"""One program makes all gradients but the states' of a run of chunks of one head, one after the other. One group of
warps has the tokens that read along the rows of its tiles, another those that are read; a warp moves the tiles that
they need, stages ahead.

mask_decay[h, i, j] = Piecewise((2**Min(0, dA_cs[h, i] - dA_cs[h, j]), i >= j), (0, True))
CB[i, j] = sum over n of C[i, n] * B[j, n]
scores_whole[h, i, j] = CB[i, j]*dt[h, j]*mask_decay[h, i, j]
scores[h, i, j] = Piecewise((scores_whole[h, i, j], Eq(seq[i], seq[j])), (0, True))    if HAS_SEQ_IDX
left_decay_whole[h, i] = 2**Min(0, dA_cs[h, i])
left_decay[h, i] = Piecewise((left_decay_whole[h, i], Eq(seq_before, seq[i])), (0, True))    if HAS_SEQ_IDX
right_decay_whole[h, j] = 2**Min(0, -dA_cs[h, j] + dA_last[h])*dt[h, j]
right_decay[h, j] = Piecewise((right_decay_whole[h, j], Eq(seq_last, seq[j])), (0, True))    if HAS_SEQ_IDX
y_state[h, i, p] = sum over n of C[i, n] * state[h, p, n]
y_diag[h, i, p] = sum over j of scores[h, i, j] * x[h, j, p]
y_ssm[h, i, p] = left_decay[h, i]*y_state[h, i, p] + y_diag[h, i, p]
y_skip[h, i, p] = D[h, p]*x[h, i, p] + y_ssm[h, i, p]    if HAS_D
x_weighted[h, j, p] = right_decay[h, j]*x[h, j, p]
d_centre_decay_terms[h, p, n] = d_state_out[h, p, n]*state[h, p, n]
d_centre_decay[h] = sum over p, n of d_centre_decay_terms[h, p, n]
d_x_weighted[h, j, p] = sum over n of B[j, n] * d_state_out[h, p, n]
d_right_decay_terms[h, j, p] = d_x_weighted[h, j, p]*x[h, j, p]
d_right_decay[h, j] = sum over p of d_right_decay_terms[h, j, p]
d_y_skip[h, i, p] = sigmoid(z[h, i, p])*d_y[h, i, p]*z[h, i, p]    if HAS_Z
d_D_terms[h, i, p] = d_y_skip[h, i, p]*x[h, i, p]
d_D[h, p] = sum over i of d_D_terms[h, i, p]
d_left_decay_terms[h, i, p] = d_y_skip[h, i, p]*y_state[h, i, p]
d_left_decay[h, i] = sum over p of d_left_decay_terms[h, i, p]
d_scores[h, i, j] = sum over p of d_y_skip[h, i, p] * x[h, j, p]
d_x_y_diag[h, j, p] = sum over i of scores[h, i, j] * d_y_skip[h, i, p]
d_y_state[h, i, p] = d_y_skip[h, i, p]*left_decay[h, i]
d_scores_whole[h, i, j] = Piecewise((d_scores[h, i, j], Eq(seq[i], seq[j])), (0, True))    if HAS_SEQ_IDX
d_scores_decayed[h, i, j] = d_scores_whole[h, i, j]*mask_decay[h, i, j]
d_dt_scores_terms[h, i, j] = CB[i, j]*d_scores_decayed[h, i, j]
d_dt_scores[h, j] = sum over i of d_dt_scores_terms[h, i, j]
d_CB_head[h, i, j] = d_scores_decayed[h, i, j]*dt[h, j]
d_dA_cs_scores_terms[h, i, j] = CB[i, j]*d_CB_head[h, i, j]
d_dA_cs_scores_rows[h, i] = sum over j of d_dA_cs_scores_terms[h, i, j]
d_CB[i, j] = sum over h of d_CB_head[h, i, j]
d_C_CB[i, n] = sum over j of d_CB[i, j] * B[j, n]
d_B_CB[j, n] = sum over i of d_CB[i, j] * C[i, n]
d_z[h, i, p] = ((1 - sigmoid(z[h, i, p]))*z[h, i, p] + 1)*sigmoid(z[h, i, p])*d_y[h, i, p]*y_skip[h, i, p]
d_C_head[h, i, n] = sum over p of d_y_state[h, i, p] * state[h, p, n]
d_C_heads[i, n] = sum over h of d_C_head[h, i, n]
d_C[i, n] = d_C_CB[i, n] + d_C_heads[i, n]
d_B_head[h, j, n] = sum over p of x_weighted[h, j, p] * d_state_out[h, p, n]
d_B_heads[j, n] = sum over h of d_B_head[h, j, n]
d_B[j, n] = d_B_CB[j, n] + d_B_heads[j, n]
d_x_base[h, j, p] = d_x_weighted[h, j, p]*right_decay[h, j] + d_x_y_diag[h, j, p]
d_x[h, j, p] = D[h, p]*d_y_skip[h, j, p] + d_x_base[h, j, p]    if HAS_D
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

from .layout_functions import in_vectors
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
    nchunks,
    run,
    C_tiles,
    B_tiles,
    d_y_tiles,
    x_tiles,
    state_tiles,
    dA_cs_tiles,
    dt_tiles,
    d_state_tiles,
    full,
    empty,
    CHUNK: gl.constexpr,
    STAGES: gl.constexpr,
):
    """The warp that moves tiles into shared memory, up to STAGES chunks ahead of the consumers."""
    head = gl.cast(gl.program_id(0), gl.int64)
    group = head
    first = gl.cast(gl.program_id(1) * run, gl.int64)
    chunks = gl.cast(gl.minimum(run, nchunks - first), gl.int32)
    b = gl.cast(gl.program_id(2), gl.int64)
    for step in range(chunks):
        chunk = first + step
        row0 = chunk * CHUNK
        stage = step % STAGES
        ready = full.index(stage)
        mbarrier.wait(empty.index(stage), (step // STAGES & 1) ^ 1)
        shared: gl.constexpr = (
            C_desc.block_type.nbytes
            + B_desc.block_type.nbytes
            + d_y_desc.block_type.nbytes
            + x_desc.block_type.nbytes
            + states_desc.block_type.nbytes
            + dA_cs_desc.block_type.nbytes
            + dt_desc.block_type.nbytes
            + d_states_desc.block_type.nbytes
        )
        mbarrier.expect(ready, shared)
        tma.async_copy_global_to_shared(
            C_desc,
            [gl.cast(b, gl.int32), gl.cast(group, gl.int32), gl.cast(row0, gl.int32), 0],
            ready,
            C_tiles.index(stage),
        )
        tma.async_copy_global_to_shared(
            B_desc,
            [gl.cast(b, gl.int32), gl.cast(group, gl.int32), gl.cast(row0, gl.int32), 0],
            ready,
            B_tiles.index(stage),
        )
        tma.async_copy_global_to_shared(
            d_y_desc,
            [gl.cast(b, gl.int32), gl.cast(head, gl.int32), gl.cast(row0, gl.int32), 0],
            ready,
            d_y_tiles.index(stage),
        )
        tma.async_copy_global_to_shared(
            x_desc,
            [gl.cast(b, gl.int32), gl.cast(head, gl.int32), gl.cast(row0, gl.int32), 0],
            ready,
            x_tiles.index(stage),
        )
        tma.async_copy_global_to_shared(
            states_desc,
            [gl.cast(b, gl.int32), gl.cast(chunk, gl.int32), gl.cast(head, gl.int32), 0, 0],
            ready,
            state_tiles.index(stage),
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
            [gl.cast(b, gl.int32), gl.cast(chunk, gl.int32), gl.cast(head, gl.int32), 0, 0],
            ready,
            d_state_tiles.index(stage),
        )


@gluon.jit
def compute_rows(
    seq_idx_ptr,
    D_ptr,
    z_ptr,
    d_z_desc,
    d_D_ptr,
    d_C_ptr,
    d_dA_cs_scores_rows_ptr,
    d_left_decay_ptr,
    d_centre_decay_ptr,
    stride_D_nheads: gl.int64,
    stride_D_headdim: gl.int64,
    stride_z_batch: gl.int64,
    stride_z_seqlen: gl.int64,
    stride_z_nheads: gl.int64,
    seqlen,
    nheads,
    ngroups,
    nchunks,
    padded,
    run,
    C_tiles,
    B_tiles,
    d_y_tiles,
    x_tiles,
    state_tiles,
    dA_cs_tiles,
    dt_tiles,
    d_state_tiles,
    rows_d_y_skip_own_tiles,
    rows_d_z_tiles,
    full,
    empty,
    HEADDIM: gl.constexpr,
    DSTATE: gl.constexpr,
    CHUNK: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_P: gl.constexpr,
    STAGES: gl.constexpr,
    DOT: gl.constexpr,
    HAS_SEQ_IDX: gl.constexpr,
    HAS_D: gl.constexpr,
    HAS_Z: gl.constexpr,
    NEEDS_Z: gl.constexpr,
    NEEDS_D: gl.constexpr,
    NEEDS_C: gl.constexpr,
    NEEDS_DT: gl.constexpr,
):
    """The consumer that has the rows: four warps that multiply together."""
    BY_BLOCK_N_IN_VECTORS: gl.constexpr = in_vectors(BLOCK_N)
    BY_BLOCK_P: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_P, 16])
    BY_CHUNK: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, CHUNK, 16])
    BY_BLOCK_N: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    d_y_skip_own_tile = rows_d_y_skip_own_tiles.index(0)
    d_z_tile = rows_d_z_tiles.index(0)
    head = gl.cast(gl.program_id(0), gl.int64)
    group = head
    first = gl.cast(gl.program_id(1) * run, gl.int64)
    chunks = gl.cast(gl.minimum(run, nchunks - first), gl.int32)
    b = gl.cast(gl.program_id(2), gl.int64)
    row_rows_block_n_in_vectors = gl.arange(0, CHUNK, gl.SliceLayout(1, BY_BLOCK_N_IN_VECTORS))
    row_rows_block_p = gl.arange(0, CHUNK, gl.SliceLayout(1, BY_BLOCK_P))
    row_rows_chunk = gl.arange(0, CHUNK, gl.SliceLayout(1, BY_CHUNK))
    row_cols = gl.arange(0, CHUNK, gl.SliceLayout(0, BY_CHUNK))
    n = gl.arange(0, BLOCK_N, gl.SliceLayout(0, BY_BLOCK_N_IN_VECTORS))
    p_rows = gl.arange(0, BLOCK_P, gl.SliceLayout(1, BY_CHUNK))
    p_cols = gl.arange(0, BLOCK_P, gl.SliceLayout(0, BY_BLOCK_P))
    n_in = n < DSTATE
    p_in_rows = p_rows < HEADDIM
    p_in_cols = p_cols < HEADDIM
    for step in range(chunks):
        chunk = first + step
        row0 = chunk * CHUNK
        row_in_rows_block_n_in_vectors = row_rows_block_n_in_vectors < seqlen - row0
        row_in_rows_block_p = row_rows_block_p < seqlen - row0
        row_in_rows_chunk = row_rows_chunk < seqlen - row0
        row_in_cols = row_cols < seqlen - row0
        if HAS_SEQ_IDX:
            seq_rows_chunk = gl.load(seq_idx_ptr + b * seqlen + row0 + row_rows_chunk, mask=row_in_rows_chunk, other=0)
            seq_cols = gl.load(seq_idx_ptr + b * seqlen + row0 + row_cols, mask=row_in_cols, other=0)
            seq_rows_block_p = gl.load(
                seq_idx_ptr + b * seqlen + row0 + row_rows_block_p, mask=row_in_rows_block_p, other=0
            )
            seq_before = gl.load(seq_idx_ptr + b * seqlen + gl.maximum(row0 - 1, 0))
        if HAS_Z:
            z_base = z_ptr + b * stride_z_batch + head * stride_z_nheads
            z = gl.load(
                z_base + row0 * stride_z_seqlen + row_rows_block_p[:, None] * stride_z_seqlen + p_cols[None, :],
                mask=row_in_rows_block_p[:, None] & p_in_cols[None, :],
                other=0.0,
            )
        stage = step % STAGES
        mbarrier.wait(full.index(stage), step // STAGES & 1)
        C_tile = C_tiles.index(stage).reshape([CHUNK, BLOCK_N])
        B_tile = B_tiles.index(stage).reshape([CHUNK, BLOCK_N])
        d_y_tile = d_y_tiles.index(stage).reshape([CHUNK, BLOCK_P])
        x_tile = x_tiles.index(stage).reshape([CHUNK, BLOCK_P])
        state_tile = state_tiles.index(stage).reshape([BLOCK_P, BLOCK_N])
        dA_cs_tile = dA_cs_tiles.index(stage).reshape([CHUNK])
        dt_tile = dt_tiles.index(stage).reshape([CHUNK])
        d_state_tile = d_state_tiles.index(stage).reshape([BLOCK_P, BLOCK_N])
        # diagonal block
        CB = warpgroup_mma(
            C_tile, B_tile.permute((1, 0)), gl.zeros([CHUNK, CHUNK], gl.float32, BY_CHUNK), use_acc=False, is_async=True
        )
        d_CB = gl.zeros([CHUNK, CHUNK], gl.float32, BY_CHUNK)
        d_C_heads = gl.zeros([CHUNK, BLOCK_N], gl.float32, BY_BLOCK_N)
        d_y_skip_tile = d_y_tile
        if HAS_Z:
            d_y = d_y_tile.load(BY_BLOCK_P)
            d_y_skip = d_y.to(gl.float32) * z.to(gl.float32) * sigmoid(z.to(gl.float32))
            d_y_skip_own_tile.store(d_y_skip.to(DOT))
            d_y_skip_tile = d_y_skip_own_tile
        # diagonal block
        fence_async_shared()
        d_scores = warpgroup_mma(
            d_y_skip_tile,
            x_tile.permute((1, 0)),
            gl.zeros([CHUNK, CHUNK], gl.float32, BY_CHUNK),
            use_acc=False,
            is_async=True,
        )
        # left factor: the state that enters the chunk
        y = warpgroup_mma(
            C_tile,
            state_tile.permute((1, 0)),
            gl.zeros([CHUNK, BLOCK_P], gl.float32, BY_BLOCK_P),
            use_acc=False,
            is_async=True,
        )
        dA_cs_rows_block_p = dA_cs_tile.load(gl.SliceLayout(1, BY_BLOCK_P))
        left_decay = decay(dA_cs_rows_block_p)
        if HAS_SEQ_IDX:
            left_decay = gl.where(seq_before == seq_rows_block_p, left_decay, 0.0)
        dA_cs_rows_chunk = dA_cs_tile.load(gl.SliceLayout(1, BY_CHUNK))
        dA_cs_cols = dA_cs_tile.load(gl.SliceLayout(0, BY_CHUNK))
        mask_decay = gl.where(
            row_rows_chunk[:, None] >= row_cols[None, :], decay(dA_cs_rows_chunk[:, None] - dA_cs_cols[None, :]), 0.0
        )
        CB, d_scores = warpgroup_mma_wait(1, deps=(CB, d_scores))
        if HAS_SEQ_IDX:
            d_scores = gl.where(seq_rows_chunk[:, None] == seq_cols[None, :], d_scores, 0.0)
        d_scores_decayed = d_scores * mask_decay
        dt = dt_tile.load(gl.SliceLayout(0, BY_CHUNK))
        d_CB_head = d_scores_decayed * dt[None, :]
        d_CB = d_CB + d_CB_head
        d_CB_left = gl.convert_layout(d_CB.to(DOT), gl.DotOperandLayout(0, BY_BLOCK_N, 2))
        d_dA_cs_scores_terms = CB * d_CB_head
        d_dA_cs_scores_rows = gl.sum(d_dA_cs_scores_terms, axis=1)
        if NEEDS_DT:
            gl.store(
                d_dA_cs_scores_rows_ptr + (b * nheads + head) * padded + row0 + row_rows_chunk,
                d_dA_cs_scores_rows.to(d_dA_cs_scores_rows_ptr.dtype.element_ty),
            )
        y = warpgroup_mma_wait(0, deps=(y,))
        d_y_skip = d_y_skip_tile.load(BY_BLOCK_P)
        d_left_decay_terms = d_y_skip.to(gl.float32) * y
        d_left_decay = gl.sum(d_left_decay_terms, axis=1)
        if NEEDS_DT:
            gl.store(
                d_left_decay_ptr + (b * nheads + head) * padded + row0 + row_rows_block_p,
                d_left_decay.to(d_left_decay_ptr.dtype.element_ty),
            )
        d_y_state = d_y_skip.to(gl.float32) * left_decay[:, None]
        d_y_state_left = gl.convert_layout(d_y_state.to(DOT), gl.DotOperandLayout(0, BY_BLOCK_N, 2))
        d_C_heads = warpgroup_mma(d_y_state_left, state_tile, d_C_heads, is_async=True)
        x = x_tile.load(BY_BLOCK_P)
        d_y = d_y_tile.load(BY_BLOCK_P)
        if NEEDS_Z:
            scores = CB * mask_decay * dt[None, :]
            if HAS_SEQ_IDX:
                scores = gl.where(seq_rows_chunk[:, None] == seq_cols[None, :], scores, 0.0)
            scores_left = gl.convert_layout(scores.to(DOT), gl.DotOperandLayout(0, BY_BLOCK_P, 2))
            y = y * left_decay[:, None]
            y = warpgroup_mma(scores_left, x_tile, y, is_async=True)
            if HAS_D:
                D = gl.load(D_ptr + head * stride_D_nheads + p_cols * stride_D_headdim, mask=p_in_cols, other=0.0)
                D = D.to(gl.float32)
            d_C_heads, y, d_y_state_left, scores_left = warpgroup_mma_wait(
                0, deps=(d_C_heads, y, d_y_state_left, scores_left)
            )
            if HAS_D:
                y = y + x.to(gl.float32) * D[None, :]
            d_z = (
                d_y.to(gl.float32)
                * y
                * (z.to(gl.float32) * (1.0 - sigmoid(z.to(gl.float32))) + 1.0)
                * sigmoid(z.to(gl.float32))
            )
            tma.store_wait(0)
            d_z_tile.store(d_z.to(DOT))
            fence_async_shared()
            tma.async_copy_shared_to_global(
                d_z_desc,
                [gl.cast(b, gl.int32), gl.cast(head, gl.int32), gl.cast(row0, gl.int32), 0],
                d_z_tile.reshape([1, 1, CHUNK, BLOCK_P]),
            )
        d_y_skip_turned = d_y_skip_tile.permute((1, 0)).load(BY_CHUNK)
        x_turned = x_tile.permute((1, 0)).load(BY_CHUNK)
        if NEEDS_D:
            d_D_terms = d_y_skip_turned.to(gl.float32) * x_turned.to(gl.float32)
            d_D = gl.sum(d_D_terms, axis=1)
            d_D_base = d_D_ptr + b * nchunks * nheads * HEADDIM + head * HEADDIM
            gl.store(d_D_base + chunk * nheads * HEADDIM + p_rows, d_D.to(d_D_base.dtype.element_ty), mask=p_in_rows)
        d_state = d_state_tile.load(BY_BLOCK_N)
        state = state_tile.load(BY_BLOCK_N)
        d_centre_decay_terms = d_state.to(gl.float32) * state.to(gl.float32)
        d_centre_decay = gl.sum(d_centre_decay_terms, axis=1)
        d_centre_decay = gl.sum(d_centre_decay, axis=0)
        if NEEDS_DT:
            gl.store(
                d_centre_decay_ptr + b * nchunks * nheads + head + chunk * nheads,
                d_centre_decay.to(d_centre_decay_ptr.dtype.element_ty),
            )
        d_C_heads, d_y_state_left = warpgroup_mma_wait(0, deps=(d_C_heads, d_y_state_left))
        d_C = d_C_heads
        d_C = warpgroup_mma(d_CB_left, B_tile, d_C, is_async=True)
        d_C, d_CB_left = warpgroup_mma_wait(0, deps=(d_C, d_CB_left))
        if NEEDS_C:
            d_C_base = d_C_ptr + b * seqlen * ngroups * DSTATE + group * DSTATE
            gl.store(
                d_C_base
                + row0 * ngroups * DSTATE
                + row_rows_block_n_in_vectors[:, None] * ngroups * DSTATE
                + n[None, :],
                gl.convert_layout(d_C.to(d_C_base.dtype.element_ty), BY_BLOCK_N_IN_VECTORS),
                mask=row_in_rows_block_n_in_vectors[:, None] & n_in[None, :],
            )
        mbarrier.arrive(empty.index(stage))
    tma.store_wait(0)


@gluon.jit
def compute_columns(
    seq_idx_ptr,
    D_ptr,
    z_ptr,
    d_x_desc,
    d_B_ptr,
    d_dt_scores_ptr,
    d_right_decay_ptr,
    stride_D_nheads: gl.int64,
    stride_D_headdim: gl.int64,
    stride_z_batch: gl.int64,
    stride_z_seqlen: gl.int64,
    stride_z_nheads: gl.int64,
    seqlen,
    nheads,
    ngroups,
    nchunks,
    padded,
    run,
    C_tiles,
    B_tiles,
    d_y_tiles,
    x_tiles,
    dA_cs_tiles,
    dt_tiles,
    d_state_tiles,
    columns_d_y_skip_own_tiles,
    columns_d_x_tiles,
    full,
    empty,
    HEADDIM: gl.constexpr,
    DSTATE: gl.constexpr,
    CHUNK: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_P: gl.constexpr,
    STAGES: gl.constexpr,
    DOT: gl.constexpr,
    HAS_SEQ_IDX: gl.constexpr,
    HAS_D: gl.constexpr,
    HAS_Z: gl.constexpr,
    NEEDS_X: gl.constexpr,
    NEEDS_B: gl.constexpr,
    NEEDS_DT: gl.constexpr,
):
    """The consumer that has the columns: four warps that multiply together."""
    BY_BLOCK_N_IN_VECTORS: gl.constexpr = in_vectors(BLOCK_N)
    BY_BLOCK_P: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_P, 16])
    BY_CHUNK: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, CHUNK, 16])
    BY_BLOCK_N: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    d_y_skip_own_tile = columns_d_y_skip_own_tiles.index(0)
    d_x_tile = columns_d_x_tiles.index(0)
    head = gl.cast(gl.program_id(0), gl.int64)
    group = head
    first = gl.cast(gl.program_id(1) * run, gl.int64)
    chunks = gl.cast(gl.minimum(run, nchunks - first), gl.int32)
    b = gl.cast(gl.program_id(2), gl.int64)
    row_rows_block_n_in_vectors = gl.arange(0, CHUNK, gl.SliceLayout(1, BY_BLOCK_N_IN_VECTORS))
    row_rows_block_p = gl.arange(0, CHUNK, gl.SliceLayout(1, BY_BLOCK_P))
    row_rows_chunk = gl.arange(0, CHUNK, gl.SliceLayout(1, BY_CHUNK))
    row_cols = gl.arange(0, CHUNK, gl.SliceLayout(0, BY_CHUNK))
    n = gl.arange(0, BLOCK_N, gl.SliceLayout(0, BY_BLOCK_N_IN_VECTORS))
    p = gl.arange(0, BLOCK_P, gl.SliceLayout(0, BY_BLOCK_P))
    n_in = n < DSTATE
    p_in = p < HEADDIM
    for step in range(chunks):
        chunk = first + step
        row0 = chunk * CHUNK
        row_in_rows_block_n_in_vectors = row_rows_block_n_in_vectors < seqlen - row0
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
        if HAS_Z:
            z_base = z_ptr + b * stride_z_batch + head * stride_z_nheads
            z = gl.load(
                z_base + row0 * stride_z_seqlen + row_rows_block_p[:, None] * stride_z_seqlen + p[None, :],
                mask=row_in_rows_block_p[:, None] & p_in[None, :],
                other=0.0,
            )
        if HAS_D:
            D = gl.load(D_ptr + head * stride_D_nheads + p * stride_D_headdim, mask=p_in, other=0.0).to(gl.float32)
        stage = step % STAGES
        mbarrier.wait(full.index(stage), step // STAGES & 1)
        C_tile = C_tiles.index(stage).reshape([CHUNK, BLOCK_N])
        B_tile = B_tiles.index(stage).reshape([CHUNK, BLOCK_N])
        d_y_tile = d_y_tiles.index(stage).reshape([CHUNK, BLOCK_P])
        x_tile = x_tiles.index(stage).reshape([CHUNK, BLOCK_P])
        dA_cs_tile = dA_cs_tiles.index(stage).reshape([CHUNK])
        dt_tile = dt_tiles.index(stage).reshape([CHUNK])
        d_state_tile = d_state_tiles.index(stage).reshape([BLOCK_P, BLOCK_N])
        # diagonal block
        CB = warpgroup_mma(
            B_tile, C_tile.permute((1, 0)), gl.zeros([CHUNK, CHUNK], gl.float32, BY_CHUNK), use_acc=False, is_async=True
        )
        d_CB = gl.zeros([CHUNK, CHUNK], gl.float32, BY_CHUNK)
        d_B_heads = gl.zeros([CHUNK, BLOCK_N], gl.float32, BY_BLOCK_N)
        d_y_skip_tile = d_y_tile
        if HAS_Z:
            d_y = d_y_tile.load(BY_BLOCK_P)
            d_y_skip = d_y.to(gl.float32) * z.to(gl.float32) * sigmoid(z.to(gl.float32))
            d_y_skip_own_tile.store(d_y_skip.to(DOT))
            d_y_skip_tile = d_y_skip_own_tile
        # diagonal block
        fence_async_shared()
        d_scores = warpgroup_mma(
            x_tile,
            d_y_skip_tile.permute((1, 0)),
            gl.zeros([CHUNK, CHUNK], gl.float32, BY_CHUNK),
            use_acc=False,
            is_async=True,
        )
        dA_cs_cols = dA_cs_tile.load(gl.SliceLayout(0, BY_CHUNK))
        dA_cs_rows_chunk = dA_cs_tile.load(gl.SliceLayout(1, BY_CHUNK))
        mask_decay = gl.where(
            row_cols[None, :] >= row_rows_chunk[:, None], decay(dA_cs_cols[None, :] - dA_cs_rows_chunk[:, None]), 0.0
        )
        CB = warpgroup_mma_wait(1, deps=(CB,))
        dt_rows_chunk = dt_tile.load(gl.SliceLayout(1, BY_CHUNK))
        scores = CB * mask_decay * dt_rows_chunk[:, None]
        d_scores = warpgroup_mma_wait(0, deps=(d_scores,))
        if HAS_SEQ_IDX:
            scores = gl.where(seq_cols[None, :] == seq_rows_chunk[:, None], scores, 0.0)
            d_scores = gl.where(seq_cols[None, :] == seq_rows_chunk[:, None], d_scores, 0.0)
        scores_left = gl.convert_layout(scores.to(DOT), gl.DotOperandLayout(0, BY_BLOCK_P, 2))
        d_scores_decayed = d_scores * mask_decay
        d_CB_head = d_scores_decayed * dt_rows_chunk[:, None]
        d_CB = d_CB + d_CB_head
        d_CB_left = gl.convert_layout(d_CB.to(DOT), gl.DotOperandLayout(0, BY_BLOCK_N, 2))
        d_dt_scores_terms = CB * d_scores_decayed
        d_dt_scores = gl.sum(d_dt_scores_terms, axis=1)
        if NEEDS_DT:
            gl.store(
                d_dt_scores_ptr + (b * nheads + head) * padded + row0 + row_rows_chunk,
                d_dt_scores.to(d_dt_scores_ptr.dtype.element_ty),
            )
        # right factor: the state that leaves the chunk
        d_x_weighted = warpgroup_mma(
            B_tile,
            d_state_tile.permute((1, 0)),
            gl.zeros([CHUNK, BLOCK_P], gl.float32, BY_BLOCK_P),
            use_acc=False,
            is_async=True,
        )
        d_x_weighted = warpgroup_mma_wait(0, deps=(d_x_weighted,))
        x = x_tile.load(BY_BLOCK_P)
        d_right_decay_terms = d_x_weighted * x.to(gl.float32)
        d_right_decay = gl.sum(d_right_decay_terms, axis=1)
        if NEEDS_DT:
            gl.store(
                d_right_decay_ptr + (b * nheads + head) * padded + row0 + row_rows_block_p,
                d_right_decay.to(d_right_decay_ptr.dtype.element_ty),
            )
        dA_last = gl.sum(dA_cs_tile.slice(CHUNK - 1, 1).load(gl.SliceLayout(0, BY_CHUNK)), axis=0)
        dA_cs_rows_block_p = dA_cs_tile.load(gl.SliceLayout(1, BY_BLOCK_P))
        dt_rows_block_p = dt_tile.load(gl.SliceLayout(1, BY_BLOCK_P))
        right_decay = dt_rows_block_p * decay(dA_last - dA_cs_rows_block_p)
        if HAS_SEQ_IDX:
            right_decay = gl.where(seq_last == seq_rows_block_p, right_decay, 0.0)
        d_x = d_x_weighted * right_decay[:, None]
        d_x = warpgroup_mma(scores_left, d_y_skip_tile, d_x, is_async=True)
        x_weighted = x.to(gl.float32) * right_decay[:, None]
        x_weighted_left = gl.convert_layout(x_weighted.to(DOT), gl.DotOperandLayout(0, BY_BLOCK_N, 2))
        d_B_heads = warpgroup_mma(x_weighted_left, d_state_tile, d_B_heads, is_async=True)
        d_x, scores_left = warpgroup_mma_wait(1, deps=(d_x, scores_left))
        d_y_skip = d_y_skip_tile.load(BY_BLOCK_P)
        if HAS_D:
            d_x = d_x + d_y_skip.to(gl.float32) * D[None, :]
        if NEEDS_X:
            tma.store_wait(0)
            d_x_tile.store(d_x.to(DOT))
            fence_async_shared()
            tma.async_copy_shared_to_global(
                d_x_desc,
                [gl.cast(b, gl.int32), gl.cast(head, gl.int32), gl.cast(row0, gl.int32), 0],
                d_x_tile.reshape([1, 1, CHUNK, BLOCK_P]),
            )
        d_B_heads, x_weighted_left = warpgroup_mma_wait(0, deps=(d_B_heads, x_weighted_left))
        d_B = d_B_heads
        d_B = warpgroup_mma(d_CB_left, C_tile, d_B, is_async=True)
        d_B, d_CB_left = warpgroup_mma_wait(0, deps=(d_B, d_CB_left))
        if NEEDS_B:
            d_B_base = d_B_ptr + b * seqlen * ngroups * DSTATE + group * DSTATE
            gl.store(
                d_B_base
                + row0 * ngroups * DSTATE
                + row_rows_block_n_in_vectors[:, None] * ngroups * DSTATE
                + n[None, :],
                gl.convert_layout(d_B.to(d_B_base.dtype.element_ty), BY_BLOCK_N_IN_VECTORS),
                mask=row_in_rows_block_n_in_vectors[:, None] & n_in[None, :],
            )
        mbarrier.arrive(empty.index(stage))
    tma.store_wait(0)


# Triton 3.6 fails on programs of several consumers where it knows that there is one head
@gluon.jit(do_not_specialize=["nheads"])
def chunk_gradients_by_head_2consumers(
    x_desc,  # [batch, nheads, seqlen, headdim]
    B_desc,  # [batch, ngroups, seqlen, dstate]
    C_desc,  # [batch, ngroups, seqlen, dstate]
    d_y_desc,  # [batch, nheads, seqlen, headdim]
    dt_desc,  # [batch, nheads, padded]
    dA_cs_desc,  # [batch, nheads, padded]
    seq_idx_ptr,  # [batch, seqlen], if HAS_SEQ_IDX
    D_ptr,  # [nheads, headdim], if HAS_D
    z_ptr,  # [batch, seqlen, nheads, headdim], if HAS_Z
    states_desc,  # [batch, nchunks, nheads, headdim, dstate]
    d_states_desc,  # [batch, nchunks, nheads, headdim, dstate]
    d_x_desc,  # [batch, nheads, seqlen, headdim], if NEEDS_X
    d_z_desc,  # [batch, nheads, seqlen, headdim], if NEEDS_Z
    d_D_ptr,  # [batch, nchunks, nheads, headdim], if NEEDS_D
    d_B_ptr,  # [parts, batch, seqlen, ngroups, dstate], if NEEDS_B
    d_C_ptr,  # [parts, batch, seqlen, ngroups, dstate], if NEEDS_C
    d_dA_cs_scores_rows_ptr,  # [batch, nheads, padded], if NEEDS_DT
    d_dt_scores_ptr,  # [batch, nheads, padded], if NEEDS_DT
    d_right_decay_ptr,  # [batch, nheads, padded], if NEEDS_DT
    d_left_decay_ptr,  # [batch, nheads, padded], if NEEDS_DT
    d_centre_decay_ptr,  # [batch, nchunks, nheads], if NEEDS_DT
    stride_D_nheads: gl.int64,
    stride_D_headdim: gl.int64,
    stride_z_batch: gl.int64,
    stride_z_seqlen: gl.int64,
    stride_z_nheads: gl.int64,
    seqlen,
    nheads,
    ngroups,
    nchunks,
    padded,
    run,
    HEADDIM: gl.constexpr,
    DSTATE: gl.constexpr,
    CHUNK: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_P: gl.constexpr,
    STAGES: gl.constexpr,
    DOT: gl.constexpr,
    HAS_SEQ_IDX: gl.constexpr,
    HAS_D: gl.constexpr,
    HAS_Z: gl.constexpr,
    NEEDS_X: gl.constexpr,
    NEEDS_Z: gl.constexpr,
    NEEDS_D: gl.constexpr,
    NEEDS_B: gl.constexpr,
    NEEDS_C: gl.constexpr,
    NEEDS_DT: gl.constexpr,
):
    C_tiles = gl.allocate_shared_memory(C_desc.dtype, [STAGES, 1, 1, CHUNK, BLOCK_N], C_desc.layout)
    B_tiles = gl.allocate_shared_memory(B_desc.dtype, [STAGES, 1, 1, CHUNK, BLOCK_N], B_desc.layout)
    d_y_tiles = gl.allocate_shared_memory(d_y_desc.dtype, [STAGES, 1, 1, CHUNK, BLOCK_P], d_y_desc.layout)
    x_tiles = gl.allocate_shared_memory(x_desc.dtype, [STAGES, 1, 1, CHUNK, BLOCK_P], x_desc.layout)
    state_tiles = gl.allocate_shared_memory(states_desc.dtype, [STAGES, 1, 1, 1, BLOCK_P, BLOCK_N], states_desc.layout)
    dA_cs_tiles = gl.allocate_shared_memory(dA_cs_desc.dtype, [STAGES, 1, 1, CHUNK], dA_cs_desc.layout)
    dt_tiles = gl.allocate_shared_memory(dt_desc.dtype, [STAGES, 1, 1, CHUNK], dt_desc.layout)
    d_state_tiles = gl.allocate_shared_memory(
        d_states_desc.dtype, [STAGES, 1, 1, 1, BLOCK_P, BLOCK_N], d_states_desc.layout
    )
    rows_d_y_skip_own_tiles = gl.allocate_shared_memory(
        DOT, [1, CHUNK, BLOCK_P], gl.NVMMASharedLayout.get_default_for([CHUNK, BLOCK_P], DOT)
    )
    rows_d_z_tiles = gl.allocate_shared_memory(
        DOT, [1, CHUNK, BLOCK_P], gl.NVMMASharedLayout.get_default_for([CHUNK, BLOCK_P], DOT)
    )
    columns_d_y_skip_own_tiles = gl.allocate_shared_memory(
        DOT, [1, CHUNK, BLOCK_P], gl.NVMMASharedLayout.get_default_for([CHUNK, BLOCK_P], DOT)
    )
    columns_d_x_tiles = gl.allocate_shared_memory(
        DOT, [1, CHUNK, BLOCK_P], gl.NVMMASharedLayout.get_default_for([CHUNK, BLOCK_P], DOT)
    )
    # a stage is full when its tiles have arrived, and empty when every consumer has done with them
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
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
                    D_ptr,
                    z_ptr,
                    d_z_desc,
                    d_D_ptr,
                    d_C_ptr,
                    d_dA_cs_scores_rows_ptr,
                    d_left_decay_ptr,
                    d_centre_decay_ptr,
                    stride_D_nheads,
                    stride_D_headdim,
                    stride_z_batch,
                    stride_z_seqlen,
                    stride_z_nheads,
                    seqlen,
                    nheads,
                    ngroups,
                    nchunks,
                    padded,
                    run,
                    C_tiles,
                    B_tiles,
                    d_y_tiles,
                    x_tiles,
                    state_tiles,
                    dA_cs_tiles,
                    dt_tiles,
                    d_state_tiles,
                    rows_d_y_skip_own_tiles,
                    rows_d_z_tiles,
                    full,
                    empty,
                    HEADDIM,
                    DSTATE,
                    CHUNK,
                    BLOCK_N,
                    BLOCK_P,
                    STAGES,
                    DOT,
                    HAS_SEQ_IDX,
                    HAS_D,
                    HAS_Z,
                    NEEDS_Z,
                    NEEDS_D,
                    NEEDS_C,
                    NEEDS_DT,
                ),
            ),
            (
                compute_columns,
                (
                    seq_idx_ptr,
                    D_ptr,
                    z_ptr,
                    d_x_desc,
                    d_B_ptr,
                    d_dt_scores_ptr,
                    d_right_decay_ptr,
                    stride_D_nheads,
                    stride_D_headdim,
                    stride_z_batch,
                    stride_z_seqlen,
                    stride_z_nheads,
                    seqlen,
                    nheads,
                    ngroups,
                    nchunks,
                    padded,
                    run,
                    C_tiles,
                    B_tiles,
                    d_y_tiles,
                    x_tiles,
                    dA_cs_tiles,
                    dt_tiles,
                    d_state_tiles,
                    columns_d_y_skip_own_tiles,
                    columns_d_x_tiles,
                    full,
                    empty,
                    HEADDIM,
                    DSTATE,
                    CHUNK,
                    BLOCK_N,
                    BLOCK_P,
                    STAGES,
                    DOT,
                    HAS_SEQ_IDX,
                    HAS_D,
                    HAS_Z,
                    NEEDS_X,
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
                    nchunks,
                    run,
                    C_tiles,
                    B_tiles,
                    d_y_tiles,
                    x_tiles,
                    state_tiles,
                    dA_cs_tiles,
                    dt_tiles,
                    d_state_tiles,
                    full,
                    empty,
                    CHUNK,
                    STAGES,
                ),
            ),
        ],
        worker_num_warps=[4, 1],
        worker_num_regs=[240, 24],
    )


def grid(batch, nheads, nchunks, run, **_):
    """Programs along each axis."""
    return nheads, triton.cdiv(nchunks, run), batch


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
        "d_z": ((0, 2, 1, 3), (1, 1, CHUNK, BLOCK_P)),
        "d_x": ((0, 2, 1, 3), (1, 1, CHUNK, BLOCK_P)),
    }
