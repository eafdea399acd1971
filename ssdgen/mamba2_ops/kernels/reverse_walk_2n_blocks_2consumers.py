"""Each of 2 groups of warps walks the chunks of a segment for a tile of headdim of one head from the last to the first,
the adjoint of the state in registers; it writes the gradients of x and D, its part of those of each chunk's decays
and step sizes, and each chunk's d_state_out. Another warp moves the tiles that they read, stages ahead.

CB[i, j] = sum over n of C[i, n] * B[j, n]
CB_decayed[h, i, j] = Piecewise((2**Min(0, dA_cs[h, i] - dA_cs[h, j])*CB[i, j], i >= j), (0, True))
scores_whole[h, i, j] = CB_decayed[h, i, j]*dt[h, j]
scores[h, i, j] = Piecewise((scores_whole[h, i, j], Eq(seq[i], seq[j])), (0, True))    if HAS_SEQ_IDX
left_decay_whole[h, i] = 2**Min(0, dA_cs[h, i])
left_decay[h, i] = Piecewise((left_decay_whole[h, i], Eq(seq_before, seq[i])), (0, True))    if HAS_SEQ_IDX
right_decay_whole[h, j] = 2**Min(0, -dA_cs[h, j] + dA_last[h])*dt[h, j]
right_decay[h, j] = Piecewise((right_decay_whole[h, j], Eq(seq_last, seq[j])), (0, True))    if HAS_SEQ_IDX
centre_decay_whole[h] = 2**Min(0, dA_last[h])
centre_decay[h] = Piecewise((centre_decay_whole[h], Eq(seq_before, seq_last)), (0, True))    if HAS_SEQ_IDX
d_x_weighted[h, j, p] = sum over n of B[j, n] * d_state_out[h, p, n]
d_right_decay_terms[h, j, p] = d_x_weighted[h, j, p]*x[h, j, p]
d_right_decay[h, j] = sum over p of d_right_decay_terms[h, j, p]
d_D_terms[h, i, p] = d_y_skip[h, i, p]*x[h, i, p]
d_D[h, p] = sum over i of d_D_terms[h, i, p]
d_scores[h, i, j] = sum over p of d_y_skip[h, i, p] * x[h, j, p]
d_x_y_diag[h, j, p] = sum over i of scores[h, i, j] * d_y_skip[h, i, p]
d_y_state[h, i, p] = d_y_skip[h, i, p]*left_decay[h, i]
d_state_y_state[h, p, n] = sum over i of d_y_state[h, i, p] * C[i, n]
d_scores_whole[h, i, j] = Piecewise((d_scores[h, i, j], Eq(seq[i], seq[j])), (0, True))    if HAS_SEQ_IDX
d_dt_scores_terms[h, i, j] = CB_decayed[h, i, j]*d_scores_whole[h, i, j]
d_dt_scores[h, j] = sum over i of d_dt_scores_terms[h, i, j]
d_dA_cs_scores_terms[h, i, j] = d_dt_scores_terms[h, i, j]*dt[h, j]
d_dA_cs_scores_rows[h, i] = sum over j of d_dA_cs_scores_terms[h, i, j]
d_state[h, p, n] = centre_decay[h]*d_state_out[h, p, n] + d_state_y_state[h, p, n]
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

from .loop_functions import hidden
from .warpgroup_functions import decay


@gluon.jit
def load_tiles(
    x_desc,
    B_desc,
    C_desc,
    d_y_desc,
    dt_desc,
    dA_cs_desc,
    seqlen,
    nheads,
    ngroups,
    segment_len,
    C_0_tiles,
    B_0_tiles,
    C_1_tiles,
    B_1_tiles,
    d_y_tiles,
    x_tiles,
    dA_cs_tiles,
    dt_tiles,
    full,
    empty,
    HEADDIM: gl.constexpr,
    CHUNK: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_P: gl.constexpr,
    STAGES: gl.constexpr,
):
    """The warp that moves tiles into shared memory, up to STAGES chunks ahead of the consumers."""
    p_blocks = gl.cdiv(HEADDIM, BLOCK_P)
    programs = nheads // ngroups * p_blocks // 2
    group = gl.cast(gl.program_id(0) // programs, gl.int64)
    segment = gl.cast(gl.program_id(1), gl.int64)
    b = gl.cast(gl.program_id(2), gl.int64)
    first = segment * (segment_len // CHUNK)
    stop = gl.minimum(segment * segment_len + segment_len, seqlen)
    chunks = gl.cast(gl.cdiv(stop - segment * segment_len, CHUNK), gl.int32)
    for step in range(chunks):
        chunk = first + chunks - 1 - hidden(step)
        row0 = chunk * CHUNK
        stage = step % STAGES
        ready = full.index(stage)
        mbarrier.wait(empty.index(stage), (step // STAGES & 1) ^ 1)
        shared: gl.constexpr = (
            C_desc.block_type.nbytes + B_desc.block_type.nbytes + C_desc.block_type.nbytes + B_desc.block_type.nbytes
        )
        own: gl.constexpr = (
            d_y_desc.block_type.nbytes
            + x_desc.block_type.nbytes
            + dA_cs_desc.block_type.nbytes
            + dt_desc.block_type.nbytes
        )
        mbarrier.expect(ready, shared + 2 * own)
        tma.async_copy_global_to_shared(
            C_desc,
            [gl.cast(b, gl.int32), gl.cast(group, gl.int32), gl.cast(row0, gl.int32), 0],
            ready,
            C_0_tiles.index(stage),
        )
        tma.async_copy_global_to_shared(
            B_desc,
            [gl.cast(b, gl.int32), gl.cast(group, gl.int32), gl.cast(row0, gl.int32), 0],
            ready,
            B_0_tiles.index(stage),
        )
        tma.async_copy_global_to_shared(
            C_desc,
            [gl.cast(b, gl.int32), gl.cast(group, gl.int32), gl.cast(row0, gl.int32), BLOCK_N],
            ready,
            C_1_tiles.index(stage),
        )
        tma.async_copy_global_to_shared(
            B_desc,
            [gl.cast(b, gl.int32), gl.cast(group, gl.int32), gl.cast(row0, gl.int32), BLOCK_N],
            ready,
            B_1_tiles.index(stage),
        )
        for consumer in gl.static_range(2):
            slot = stage * 2 + consumer
            walk = gl.program_id(0) % programs * 2 + consumer
            head = group * (nheads // ngroups) + walk // p_blocks
            p0 = walk % p_blocks * BLOCK_P
            tma.async_copy_global_to_shared(
                d_y_desc,
                [gl.cast(b, gl.int32), gl.cast(head, gl.int32), gl.cast(row0, gl.int32), p0],
                ready,
                d_y_tiles.index(slot),
            )
            tma.async_copy_global_to_shared(
                x_desc,
                [gl.cast(b, gl.int32), gl.cast(head, gl.int32), gl.cast(row0, gl.int32), p0],
                ready,
                x_tiles.index(slot),
            )
            tma.async_copy_global_to_shared(
                dA_cs_desc,
                [gl.cast(b, gl.int32), gl.cast(head, gl.int32), gl.cast(row0, gl.int32)],
                ready,
                dA_cs_tiles.index(slot),
            )
            tma.async_copy_global_to_shared(
                dt_desc,
                [gl.cast(b, gl.int32), gl.cast(head, gl.int32), gl.cast(row0, gl.int32)],
                ready,
                dt_tiles.index(slot),
            )


@gluon.jit
def compute(
    seq_idx_ptr,
    D_ptr,
    leaving_ptr,
    d_x_desc,
    d_D_ptr,
    d_dA_cs_scores_rows_ptr,
    d_dt_scores_ptr,
    d_right_decay_ptr,
    d_states_desc,
    d_initial_ptr,
    stride_D_nheads: gl.int64,
    stride_D_headdim: gl.int64,
    batch,
    seqlen,
    nheads,
    ngroups,
    nsegments,
    nchunks,
    segment_len,
    padded,
    C_0_tiles,
    B_0_tiles,
    C_1_tiles,
    B_1_tiles,
    d_y_tiles,
    x_tiles,
    dA_cs_tiles,
    dt_tiles,
    outgoing_tiles,
    full,
    empty,
    turn,
    consumer: gl.constexpr,
    HEADDIM: gl.constexpr,
    DSTATE: gl.constexpr,
    CHUNK: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_P: gl.constexpr,
    STAGES: gl.constexpr,
    DOT: gl.constexpr,
    HAS_SEQ_IDX: gl.constexpr,
    HAS_D: gl.constexpr,
    HAS_LEAVING: gl.constexpr,
    STORE_INITIAL: gl.constexpr,
    NEEDS_X: gl.constexpr,
    NEEDS_D: gl.constexpr,
    NEEDS_DT: gl.constexpr,
):
    """One consumer: four warps that multiply together."""
    BY_BLOCK_P: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_P, 16])
    BY_CHUNK: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, CHUNK, 16])
    BY_BLOCK_N: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    outgoing_tile = outgoing_tiles.index(consumer)
    p_blocks = gl.cdiv(HEADDIM, BLOCK_P)
    programs = nheads // ngroups * p_blocks // 2
    group = gl.cast(gl.program_id(0) // programs, gl.int64)
    walk = gl.program_id(0) % programs * 2 + consumer
    head = group * (nheads // ngroups) + walk // p_blocks
    p_block = gl.cast(walk % p_blocks, gl.int64)
    p0 = walk % p_blocks * BLOCK_P
    segment = gl.cast(gl.program_id(1), gl.int64)
    b = gl.cast(gl.program_id(2), gl.int64)
    first = segment * (segment_len // CHUNK)
    stop = gl.minimum(segment * segment_len + segment_len, seqlen)
    chunks = gl.cast(gl.cdiv(stop - segment * segment_len, CHUNK), gl.int32)
    row_rows_block_p = gl.arange(0, CHUNK, gl.SliceLayout(1, BY_BLOCK_P))
    row_cols = gl.arange(0, CHUNK, gl.SliceLayout(0, BY_CHUNK))
    row_rows_chunk = gl.arange(0, CHUNK, gl.SliceLayout(1, BY_CHUNK))
    n_0 = gl.arange(0, BLOCK_N, gl.SliceLayout(0, BY_BLOCK_N))
    n_1 = gl.arange(0, BLOCK_N, gl.SliceLayout(0, BY_BLOCK_N))
    p_rows = gl.arange(0, BLOCK_P, gl.SliceLayout(1, BY_BLOCK_N))
    p_cols = gl.arange(0, BLOCK_P, gl.SliceLayout(0, BY_BLOCK_P))
    n_0_in = n_0 < DSTATE
    n_1_in = n_1 < DSTATE - BLOCK_N
    p_in_rows = p_rows < HEADDIM - p0
    p_in_cols = p_cols < HEADDIM - p0
    if HAS_LEAVING:
        d_state_0_base = leaving_ptr + ((b * nsegments + segment) * nheads + head) * HEADDIM * DSTATE + p0 * DSTATE
        d_state_0 = gl.load(
            d_state_0_base + p_rows[:, None] * DSTATE + n_0[None, :],
            mask=p_in_rows[:, None] & n_0_in[None, :],
            other=0.0,
        )
        d_state_0 = d_state_0.to(gl.float32)
        d_state_1_base = (
            leaving_ptr + ((b * nsegments + segment) * nheads + head) * HEADDIM * DSTATE + p0 * DSTATE + BLOCK_N
        )
        d_state_1 = gl.load(
            d_state_1_base + p_rows[:, None] * DSTATE + n_1[None, :],
            mask=p_in_rows[:, None] & n_1_in[None, :],
            other=0.0,
        )
        d_state_1 = d_state_1.to(gl.float32)
    else:
        d_state_0 = gl.zeros([BLOCK_P, BLOCK_N], gl.float32, BY_BLOCK_N)
        d_state_1 = gl.zeros([BLOCK_P, BLOCK_N], gl.float32, BY_BLOCK_N)
    for step in range(chunks):
        chunk = first + chunks - 1 - hidden(step)
        row0 = chunk * CHUNK
        row_in_cols = row_cols < stop - row0
        row_in_rows_block_p = row_rows_block_p < stop - row0
        row_in_rows_chunk = row_rows_chunk < stop - row0
        stage = step % STAGES
        slot = stage * 2 + consumer
        mbarrier.wait(full.index(stage), step // STAGES & 1)
        C_0_tile = C_0_tiles.index(stage).reshape([CHUNK, BLOCK_N])
        B_0_tile = B_0_tiles.index(stage).reshape([CHUNK, BLOCK_N])
        C_1_tile = C_1_tiles.index(stage).reshape([CHUNK, BLOCK_N])
        B_1_tile = B_1_tiles.index(stage).reshape([CHUNK, BLOCK_N])
        d_y_tile = d_y_tiles.index(slot).reshape([CHUNK, BLOCK_P])
        x_tile = x_tiles.index(slot).reshape([CHUNK, BLOCK_P])
        dA_cs_tile = dA_cs_tiles.index(slot).reshape([CHUNK])
        dt_tile = dt_tiles.index(slot).reshape([CHUNK])
        # diagonal block, once more and its adjoint
        mbarrier.wait(turn.index(consumer), (step & 1) ^ (1 - consumer))
        CB = warpgroup_mma(
            B_0_tile,
            C_0_tile.permute((1, 0)),
            gl.zeros([CHUNK, CHUNK], gl.float32, BY_CHUNK),
            use_acc=False,
            is_async=True,
        )
        CB = warpgroup_mma(B_1_tile, C_1_tile.permute((1, 0)), CB, is_async=True)
        d_scores = warpgroup_mma(
            x_tile,
            d_y_tile.permute((1, 0)),
            gl.zeros([CHUNK, CHUNK], gl.float32, BY_CHUNK),
            use_acc=False,
            is_async=True,
        )
        if NEEDS_D:
            d_y = d_y_tile.load(BY_BLOCK_P)
            x = x_tile.load(BY_BLOCK_P)
            d_D_terms = d_y.to(gl.float32) * x.to(gl.float32)
            d_D = gl.sum(d_D_terms, axis=0)
            d_D_base = d_D_ptr + b * nchunks * nheads * HEADDIM + head * HEADDIM + p0
            gl.store(d_D_base + chunk * nheads * HEADDIM + p_cols, d_D.to(d_D_base.dtype.element_ty), mask=p_in_cols)
        CB = warpgroup_mma_wait(1, deps=(CB,))
        mbarrier.arrive(turn.index(1 - consumer))
        dA_cs_cols = dA_cs_tile.load(gl.SliceLayout(0, BY_CHUNK))
        dA_cs_rows_chunk = dA_cs_tile.load(gl.SliceLayout(1, BY_CHUNK))
        CB_decayed = gl.where(
            row_cols[None, :] >= row_rows_chunk[:, None],
            CB * decay(dA_cs_cols[None, :] - dA_cs_rows_chunk[:, None]),
            0.0,
        )
        dt_rows_chunk = dt_tile.load(gl.SliceLayout(1, BY_CHUNK))
        scores = CB_decayed * dt_rows_chunk[:, None]
        d_scores = warpgroup_mma_wait(0, deps=(d_scores,))
        if HAS_SEQ_IDX:
            seq_cols = gl.load(seq_idx_ptr + b * seqlen + row0 + row_cols, mask=row_in_cols, other=0)
            seq_rows_block_p = gl.load(
                seq_idx_ptr + b * seqlen + row0 + row_rows_block_p, mask=row_in_rows_block_p, other=0
            )
            seq_rows_chunk = gl.load(seq_idx_ptr + b * seqlen + row0 + row_rows_chunk, mask=row_in_rows_chunk, other=0)
            scores = gl.where(seq_cols[None, :] == seq_rows_chunk[:, None], scores, 0.0)
            d_scores = gl.where(seq_cols[None, :] == seq_rows_chunk[:, None], d_scores, 0.0)
        scores_left = gl.convert_layout(scores.to(DOT), gl.DotOperandLayout(0, BY_BLOCK_P, 2))
        d_dt_scores_terms = CB_decayed * d_scores
        d_dt_scores = gl.sum(d_dt_scores_terms, axis=1)
        if NEEDS_DT:
            d_dt_scores_base = d_dt_scores_ptr + ((p_block * batch + b) * nheads + head) * padded
            gl.store(d_dt_scores_base + row0 + row_rows_chunk, d_dt_scores.to(d_dt_scores_base.dtype.element_ty))
        dt_rows_chunk = dt_tile.load(gl.SliceLayout(1, BY_CHUNK))
        d_dA_cs_scores_terms = d_dt_scores_terms * dt_rows_chunk[:, None]
        d_dA_cs_scores_rows = gl.sum(d_dA_cs_scores_terms, axis=0)
        if NEEDS_DT:
            d_dA_cs_scores_rows_base = d_dA_cs_scores_rows_ptr + ((p_block * batch + b) * nheads + head) * padded
            gl.store(
                d_dA_cs_scores_rows_base + row0 + row_cols,
                d_dA_cs_scores_rows.to(d_dA_cs_scores_rows_base.dtype.element_ty),
            )
        tma.store_wait(0)
        outgoing_tile.store(d_state_0.to(DOT))
        fence_async_shared()
        tma.async_copy_shared_to_global(
            d_states_desc,
            [gl.cast(b, gl.int32), gl.cast(chunk, gl.int32), gl.cast(head, gl.int32), p0, 0],
            outgoing_tile.reshape([1, 1, 1, BLOCK_P, BLOCK_N]),
        )
        d_x_weighted = warpgroup_mma(
            B_0_tile,
            outgoing_tile.permute((1, 0)),
            gl.zeros([CHUNK, BLOCK_P], gl.float32, BY_BLOCK_P),
            use_acc=False,
            is_async=True,
        )
        d_x_weighted = warpgroup_mma_wait(0, deps=(d_x_weighted,))
        tma.store_wait(0)
        outgoing_tile.store(d_state_1.to(DOT))
        fence_async_shared()
        tma.async_copy_shared_to_global(
            d_states_desc,
            [gl.cast(b, gl.int32), gl.cast(chunk, gl.int32), gl.cast(head, gl.int32), p0, BLOCK_N],
            outgoing_tile.reshape([1, 1, 1, BLOCK_P, BLOCK_N]),
        )
        d_x_weighted = warpgroup_mma(B_1_tile, outgoing_tile.permute((1, 0)), d_x_weighted, is_async=True)
        d_x_weighted = warpgroup_mma_wait(0, deps=(d_x_weighted,))
        x = x_tile.load(BY_BLOCK_P)
        d_right_decay_terms = d_x_weighted * x.to(gl.float32)
        d_right_decay = gl.sum(d_right_decay_terms, axis=1)
        if NEEDS_DT:
            d_right_decay_base = d_right_decay_ptr + ((p_block * batch + b) * nheads + head) * padded
            gl.store(
                d_right_decay_base + row0 + row_rows_block_p, d_right_decay.to(d_right_decay_base.dtype.element_ty)
            )
        dA_last = gl.sum(dA_cs_tile.slice(CHUNK - 1, 1).load(gl.SliceLayout(0, BY_CHUNK)), axis=0)
        dA_cs_rows_block_p = dA_cs_tile.load(gl.SliceLayout(1, BY_BLOCK_P))
        dt_rows_block_p = dt_tile.load(gl.SliceLayout(1, BY_BLOCK_P))
        right_decay = dt_rows_block_p * decay(dA_last - dA_cs_rows_block_p)
        if HAS_SEQ_IDX:
            seq_last = gl.load(seq_idx_ptr + b * seqlen + gl.minimum(row0 + CHUNK, stop) - 1)
            right_decay = gl.where(seq_last == seq_rows_block_p, right_decay, 0.0)
        d_x = d_x_weighted * right_decay[:, None]
        d_x = warpgroup_mma(scores_left, d_y_tile, d_x, is_async=True)
        # left and centre factor: the adjoint of the state that enters the chunk
        dA_cs_cols = dA_cs_tile.load(gl.SliceLayout(0, BY_CHUNK))
        left_decay = decay(dA_cs_cols)
        if HAS_SEQ_IDX:
            seq_before = gl.load(seq_idx_ptr + b * seqlen + gl.maximum(row0 - 1, 0))
            left_decay = gl.where(seq_before == seq_cols, left_decay, 0.0)
        d_y_turned = d_y_tile.permute((1, 0)).load(BY_CHUNK)
        d_y_state = d_y_turned.to(gl.float32) * left_decay[None, :]
        centre_decay = decay(dA_last)
        if HAS_SEQ_IDX:
            centre_decay = gl.where(seq_before == seq_last, centre_decay, 0.0)
        d_state_0 = d_state_0 * centre_decay
        d_y_state_left = gl.convert_layout(d_y_state.to(DOT), gl.DotOperandLayout(0, BY_BLOCK_N, 2))
        d_state_0 = warpgroup_mma(d_y_state_left, C_0_tile, d_state_0, is_async=True)
        d_state_1 = d_state_1 * centre_decay
        d_state_1 = warpgroup_mma(d_y_state_left, C_1_tile, d_state_1, is_async=True)
        d_x, scores_left = warpgroup_mma_wait(2, deps=(d_x, scores_left))
        if HAS_D:
            D = gl.load(
                D_ptr + head * stride_D_nheads + p0 * stride_D_headdim + p_cols * stride_D_headdim,
                mask=p_in_cols,
                other=0.0,
            )
            D = D.to(gl.float32)
            d_y = d_y_tile.load(BY_BLOCK_P)
            d_x = d_x + d_y.to(gl.float32) * D[None, :]
        if NEEDS_X:
            tma.store_wait(0)
            outgoing_tile.store(d_x.to(DOT))
            fence_async_shared()
            tma.async_copy_shared_to_global(
                d_x_desc,
                [gl.cast(b, gl.int32), gl.cast(head, gl.int32), gl.cast(row0, gl.int32), p0],
                outgoing_tile.reshape([1, 1, CHUNK, BLOCK_P]),
            )
        d_state_0, d_state_1, d_y_state_left = warpgroup_mma_wait(0, deps=(d_state_0, d_state_1, d_y_state_left))
        mbarrier.arrive(empty.index(stage))
    if STORE_INITIAL:
        d_initial_base = d_initial_ptr + (b * nheads + head) * HEADDIM * DSTATE + p0 * DSTATE
        gl.store(
            d_initial_base + p_rows[:, None] * DSTATE + n_0[None, :],
            d_state_0.to(d_initial_base.dtype.element_ty),
            mask=p_in_rows[:, None] & n_0_in[None, :],
        )
        d_initial_base = d_initial_ptr + (b * nheads + head) * HEADDIM * DSTATE + p0 * DSTATE + BLOCK_N
        gl.store(
            d_initial_base + p_rows[:, None] * DSTATE + n_1[None, :],
            d_state_1.to(d_initial_base.dtype.element_ty),
            mask=p_in_rows[:, None] & n_1_in[None, :],
        )
    tma.store_wait(0)


# Triton 3.6 fails on programs of several consumers where it knows that there is one head
@gluon.jit(do_not_specialize=["nheads"])
def reverse_walk_2n_blocks_2consumers(
    x_desc,  # [batch, nheads, seqlen, headdim]
    B_desc,  # [batch, ngroups, seqlen, dstate]
    C_desc,  # [batch, ngroups, seqlen, dstate]
    d_y_desc,  # [batch, nheads, seqlen, headdim]
    dt_desc,  # [batch, nheads, padded]
    dA_cs_desc,  # [batch, nheads, padded]
    seq_idx_ptr,  # [batch, seqlen], if HAS_SEQ_IDX
    D_ptr,  # [nheads, headdim], if HAS_D
    leaving_ptr,  # [batch, nsegments, nheads, headdim, dstate], if HAS_LEAVING
    d_x_desc,  # [batch, nheads, seqlen, headdim], if NEEDS_X
    d_D_ptr,  # [batch, nchunks, nheads, headdim], if NEEDS_D
    d_dA_cs_scores_rows_ptr,  # [p_blocks, batch, nheads, padded], if NEEDS_DT
    d_dt_scores_ptr,  # [p_blocks, batch, nheads, padded], if NEEDS_DT
    d_right_decay_ptr,  # [p_blocks, batch, nheads, padded], if NEEDS_DT
    d_states_desc,  # [batch, nchunks, nheads, headdim, dstate]
    d_initial_ptr,  # [batch, nheads, headdim, dstate], if STORE_INITIAL
    stride_D_nheads: gl.int64,
    stride_D_headdim: gl.int64,
    batch,
    seqlen,
    nheads,
    ngroups,
    nsegments,
    nchunks,
    segment_len,
    padded,
    HEADDIM: gl.constexpr,
    DSTATE: gl.constexpr,
    CHUNK: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_P: gl.constexpr,
    STAGES: gl.constexpr,
    DOT: gl.constexpr,
    HAS_SEQ_IDX: gl.constexpr,
    HAS_D: gl.constexpr,
    HAS_LEAVING: gl.constexpr,
    STORE_INITIAL: gl.constexpr,
    NEEDS_X: gl.constexpr,
    NEEDS_D: gl.constexpr,
    NEEDS_DT: gl.constexpr,
    BESIDE: gl.constexpr,
):
    C_0_tiles = gl.allocate_shared_memory(C_desc.dtype, [STAGES, 1, 1, CHUNK, BLOCK_N], C_desc.layout)
    B_0_tiles = gl.allocate_shared_memory(B_desc.dtype, [STAGES, 1, 1, CHUNK, BLOCK_N], B_desc.layout)
    C_1_tiles = gl.allocate_shared_memory(C_desc.dtype, [STAGES, 1, 1, CHUNK, BLOCK_N], C_desc.layout)
    B_1_tiles = gl.allocate_shared_memory(B_desc.dtype, [STAGES, 1, 1, CHUNK, BLOCK_N], B_desc.layout)
    d_y_tiles = gl.allocate_shared_memory(d_y_desc.dtype, [STAGES * 2, 1, 1, CHUNK, BLOCK_P], d_y_desc.layout)
    x_tiles = gl.allocate_shared_memory(x_desc.dtype, [STAGES * 2, 1, 1, CHUNK, BLOCK_P], x_desc.layout)
    dA_cs_tiles = gl.allocate_shared_memory(dA_cs_desc.dtype, [STAGES * 2, 1, 1, CHUNK], dA_cs_desc.layout)
    dt_tiles = gl.allocate_shared_memory(dt_desc.dtype, [STAGES * 2, 1, 1, CHUNK], dt_desc.layout)
    outgoing_tiles = gl.allocate_shared_memory(
        DOT, [2, BLOCK_P, BLOCK_N], gl.NVMMASharedLayout.get_default_for([BLOCK_P, BLOCK_N], DOT)
    )
    # a stage is full when its tiles have arrived, and empty when every consumer has done with them
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    # which of the two consumers multiplies next
    turn = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for consumer in gl.static_range(2):
        mbarrier.init(turn.index(consumer), count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=2)
    # up to here beside the kernel before; where its results are not needed, to the end
    if not BESIDE:
        gdc_wait()
    gdc_launch_dependents()
    gl.warp_specialize(
        [
            (
                compute,
                (
                    seq_idx_ptr,
                    D_ptr,
                    leaving_ptr,
                    d_x_desc,
                    d_D_ptr,
                    d_dA_cs_scores_rows_ptr,
                    d_dt_scores_ptr,
                    d_right_decay_ptr,
                    d_states_desc,
                    d_initial_ptr,
                    stride_D_nheads,
                    stride_D_headdim,
                    batch,
                    seqlen,
                    nheads,
                    ngroups,
                    nsegments,
                    nchunks,
                    segment_len,
                    padded,
                    C_0_tiles,
                    B_0_tiles,
                    C_1_tiles,
                    B_1_tiles,
                    d_y_tiles,
                    x_tiles,
                    dA_cs_tiles,
                    dt_tiles,
                    outgoing_tiles,
                    full,
                    empty,
                    turn,
                    0,
                    HEADDIM,
                    DSTATE,
                    CHUNK,
                    BLOCK_N,
                    BLOCK_P,
                    STAGES,
                    DOT,
                    HAS_SEQ_IDX,
                    HAS_D,
                    HAS_LEAVING,
                    STORE_INITIAL,
                    NEEDS_X,
                    NEEDS_D,
                    NEEDS_DT,
                ),
            ),
            (
                compute,
                (
                    seq_idx_ptr,
                    D_ptr,
                    leaving_ptr,
                    d_x_desc,
                    d_D_ptr,
                    d_dA_cs_scores_rows_ptr,
                    d_dt_scores_ptr,
                    d_right_decay_ptr,
                    d_states_desc,
                    d_initial_ptr,
                    stride_D_nheads,
                    stride_D_headdim,
                    batch,
                    seqlen,
                    nheads,
                    ngroups,
                    nsegments,
                    nchunks,
                    segment_len,
                    padded,
                    C_0_tiles,
                    B_0_tiles,
                    C_1_tiles,
                    B_1_tiles,
                    d_y_tiles,
                    x_tiles,
                    dA_cs_tiles,
                    dt_tiles,
                    outgoing_tiles,
                    full,
                    empty,
                    turn,
                    1,
                    HEADDIM,
                    DSTATE,
                    CHUNK,
                    BLOCK_N,
                    BLOCK_P,
                    STAGES,
                    DOT,
                    HAS_SEQ_IDX,
                    HAS_D,
                    HAS_LEAVING,
                    STORE_INITIAL,
                    NEEDS_X,
                    NEEDS_D,
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
                    seqlen,
                    nheads,
                    ngroups,
                    segment_len,
                    C_0_tiles,
                    B_0_tiles,
                    C_1_tiles,
                    B_1_tiles,
                    d_y_tiles,
                    x_tiles,
                    dA_cs_tiles,
                    dt_tiles,
                    full,
                    empty,
                    HEADDIM,
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
    if BESIDE:
        # whoever waits for this kernel waits for the one before, too
        gdc_wait()


def grid(batch, nheads, nsegments, HEADDIM, BLOCK_P, **_):
    """Programs along each axis."""
    return nheads * triton.cdiv(HEADDIM, BLOCK_P) // 2, nsegments, batch


def blocks(CHUNK, BLOCK_N, BLOCK_P, **_):
    """Order of the dimensions and block of each tensor descriptor."""
    return {
        "C": ((0, 2, 1, 3), (1, 1, CHUNK, BLOCK_N)),
        "B": ((0, 2, 1, 3), (1, 1, CHUNK, BLOCK_N)),
        "d_y": ((0, 2, 1, 3), (1, 1, CHUNK, BLOCK_P)),
        "x": ((0, 2, 1, 3), (1, 1, CHUNK, BLOCK_P)),
        "dA_cs": ((0, 1, 2), (1, 1, CHUNK)),
        "dt": ((0, 1, 2), (1, 1, CHUNK)),
        "d_states": ((0, 1, 2, 3, 4), (1, 1, 1, BLOCK_P, BLOCK_N)),
        "d_x": ((0, 2, 1, 3), (1, 1, CHUNK, BLOCK_P)),
    }
