"""One program walks all chunks of a sequence for one head, the state in registers; it writes y, and the final state.
Another warp moves the tiles that they read, stages ahead.

dt_biased[h, j] = dt_bias[h] + dt_raw[h, j]    if HAS_DT_BIAS
dt_positive[h, j] = softplus(dt_biased[h, j])    if DT_SOFTPLUS
dt[h, j] = Min(dt_max, Max(dt_min, dt_positive[h, j]))
log_decay[h, j] = A[h]*dt[h, j]/log(2)
dA_cs[h, j] = running sum of log_decay[h, j] over j
dA_last[h] = last dA_cs[h, j]
CB[i, j] = sum over n of C[i, n] * B[j, n]
scores_whole[h, i, j] = Piecewise((2**Min(0, dA_cs[h, i] - dA_cs[h, j])*CB[i, j]*dt[h, j], i >= j), (0, True))
scores[h, i, j] = Piecewise((scores_whole[h, i, j], Eq(seq[i], seq[j])), (0, True))    if HAS_SEQ_IDX
left_decay_whole[h, i] = 2**Min(0, dA_cs[h, i])
left_decay[h, i] = Piecewise((left_decay_whole[h, i], Eq(seq_before, seq[i])), (0, True))    if HAS_SEQ_IDX
right_decay_whole[h, j] = 2**Min(0, -dA_cs[h, j] + dA_last[h])*dt[h, j]
right_decay[h, j] = Piecewise((right_decay_whole[h, j], Eq(seq_last, seq[j])), (0, True))    if HAS_SEQ_IDX
centre_decay_whole[h] = 2**Min(0, dA_last[h])
centre_decay[h] = Piecewise((centre_decay_whole[h], Eq(seq_before, seq_last)), (0, True))    if HAS_SEQ_IDX
y_state[h, i, p] = sum over n of C[i, n] * state[h, p, n]
y_diag[h, i, p] = sum over j of scores[h, i, j] * x[h, j, p]
y_ssm[h, i, p] = left_decay[h, i]*y_state[h, i, p] + y_diag[h, i, p]
y_skip[h, i, p] = D[h, p]*x[h, i, p] + y_ssm[h, i, p]    if HAS_D
y[h, i, p] = sigmoid(z[h, i, p])*y_skip[h, i, p]*z[h, i, p]    if HAS_Z
x_weighted[h, j, p] = right_decay[h, j]*x[h, j, p]
local_state[h, p, n] = sum over j of x_weighted[h, j, p] * B[j, n]
state_out[h, p, n] = centre_decay[h]*state[h, p, n] + local_state[h, p, n]
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

from .warpgroup_functions import decay, leading, maximum, minimum, running_sum, sigmoid, softplus


@gluon.jit
def load_tiles(
    x_desc,
    B_desc,
    C_desc,
    seqlen,
    nheads,
    ngroups,
    segment_len,
    C_tiles,
    B_tiles,
    x_tiles,
    full,
    empty,
    HEADDIM: gl.constexpr,
    CHUNK: gl.constexpr,
    BLOCK_P: gl.constexpr,
    STAGES: gl.constexpr,
):
    """The warp that moves tiles into shared memory, up to STAGES chunks ahead of the consumers."""
    p_blocks = gl.cdiv(HEADDIM, BLOCK_P)
    walks = nheads // ngroups * p_blocks
    programs = gl.cdiv(walks, 1)
    group = gl.cast(gl.program_id(0) // programs, gl.int64)
    segment = gl.cast(gl.program_id(1), gl.int64)
    b = gl.cast(gl.program_id(2), gl.int64)
    start = segment * segment_len
    stop = gl.minimum(start + segment_len, seqlen)
    chunks = gl.cast(gl.cdiv(stop - start, CHUNK), gl.int32)
    for step in range(chunks):
        row0 = start + step * CHUNK
        stage = step % STAGES
        ready = full.index(stage)
        mbarrier.wait(empty.index(stage), (step // STAGES & 1) ^ 1)
        shared: gl.constexpr = C_desc.block_type.nbytes + B_desc.block_type.nbytes
        own: gl.constexpr = x_desc.block_type.nbytes
        mbarrier.expect(ready, shared + 1 * own)
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
        for consumer in gl.static_range(1):
            slot = stage * 1 + consumer
            walk = gl.program_id(0) % programs * 1 + consumer
            at = gl.minimum(walk, walks - 1)
            head = group * (nheads // ngroups) + at // p_blocks
            p0 = at % p_blocks * BLOCK_P
            tma.async_copy_global_to_shared(
                x_desc,
                [gl.cast(b, gl.int32), gl.cast(head, gl.int32), gl.cast(row0, gl.int32), p0],
                ready,
                x_tiles.index(slot),
            )


@gluon.jit
def make_steps(
    dt_ptr,
    dt_bias_ptr,
    A_ptr,
    stride_dt_batch: gl.int64,
    stride_dt_seqlen: gl.int64,
    stride_dt_nheads: gl.int64,
    seqlen,
    nheads,
    ngroups,
    segment_len,
    dt_min,
    dt_max,
    dt_tiles,
    dA_cs_tiles,
    dA_last_tiles,
    full,
    empty,
    consumer: gl.constexpr,
    HEADDIM: gl.constexpr,
    CHUNK: gl.constexpr,
    BLOCK_P: gl.constexpr,
    STAGES: gl.constexpr,
    HAS_DT_BIAS: gl.constexpr,
    DT_SOFTPLUS: gl.constexpr,
):
    """The warp that makes dt, dA_cs and dA_last of each stage for one consumer."""
    LANES: gl.constexpr = gl.BlockedLayout([CHUNK // 32], [32], [1], [0])
    p_blocks = gl.cdiv(HEADDIM, BLOCK_P)
    walks = nheads // ngroups * p_blocks
    programs = gl.cdiv(walks, 1)
    group = gl.cast(gl.program_id(0) // programs, gl.int64)
    walk = gl.program_id(0) % programs * 1 + consumer
    at = gl.minimum(walk, walks - 1)
    head = group * (nheads // ngroups) + at // p_blocks
    segment = gl.cast(gl.program_id(1), gl.int64)
    b = gl.cast(gl.program_id(2), gl.int64)
    start = segment * segment_len
    stop = gl.minimum(start + segment_len, seqlen)
    chunks = gl.cast(gl.cdiv(stop - start, CHUNK), gl.int32)
    row = gl.arange(0, CHUNK, LANES)
    for step in range(chunks):
        row0 = start + step * CHUNK
        row_in = row < stop - row0
        dt_base = dt_ptr + b * stride_dt_batch + row0 * stride_dt_seqlen + head * stride_dt_nheads
        dt = gl.load(dt_base + row * stride_dt_seqlen, mask=row_in, other=0.0).to(gl.float32)
        if HAS_DT_BIAS:
            dt_bias = gl.load(dt_bias_ptr + head).to(gl.float32)
            dt = dt + dt_bias
        if DT_SOFTPLUS:
            dt = softplus(dt)
        dt = gl.where(row_in, minimum(dt_max, maximum(dt_min, dt)), 0.0)
        A = gl.load(A_ptr + head).to(gl.float32)
        log_decay = dt * A * 1.4426950408889634
        dA_cs = running_sum(log_decay)
        dA_last = gl.sum(log_decay, axis=0)
        stage = step % STAGES
        slot = stage * 1 + consumer
        mbarrier.wait(empty.index(stage), (step // STAGES & 1) ^ 1)
        dt_tiles.index(slot).store(dt)
        dA_cs_tiles.index(slot).store(dA_cs)
        dA_last_tiles.index(slot).store(gl.full([1], dA_last, gl.float32, LANES))
        mbarrier.arrive(full.index(stage))


@gluon.jit
def compute(
    seq_idx_ptr,
    D_ptr,
    z_ptr,
    entering_ptr,
    summary_ptr,
    total_ptr,
    y_desc,
    final_states_ptr,
    stride_D_nheads: gl.int64,
    stride_D_headdim: gl.int64,
    stride_z_batch: gl.int64,
    stride_z_seqlen: gl.int64,
    stride_z_nheads: gl.int64,
    seqlen,
    nheads,
    ngroups,
    nsegments,
    segment_len,
    nentering,
    nsummaries,
    C_tiles,
    B_tiles,
    x_tiles,
    dt_tiles,
    dA_cs_tiles,
    dA_last_tiles,
    scores_tiles,
    scores_rest_tiles,
    y_tiles,
    full,
    empty,
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
    HAS_Z: gl.constexpr,
    HAS_ENTERING: gl.constexpr,
    STORE_FINAL: gl.constexpr,
    HAS_SUMMARIES: gl.constexpr,
):
    """One consumer: four warps that multiply together."""
    BY_CHUNK: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, CHUNK, 16])
    BY_BLOCK_N: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    scores_tile = scores_tiles.index(consumer)
    scores_rest_tile = scores_rest_tiles.index(consumer)
    y_tile = y_tiles.index(consumer)
    p_blocks = gl.cdiv(HEADDIM, BLOCK_P)
    walks = nheads // ngroups * p_blocks
    programs = gl.cdiv(walks, 1)
    group = gl.cast(gl.program_id(0) // programs, gl.int64)
    walk = gl.program_id(0) % programs * 1 + consumer
    at = gl.minimum(walk, walks - 1)
    head = group * (nheads // ngroups) + at // p_blocks
    p0 = at % p_blocks * BLOCK_P
    segment = gl.cast(gl.program_id(1), gl.int64)
    b = gl.cast(gl.program_id(2), gl.int64)
    start = segment * segment_len
    stop = gl.minimum(start + segment_len, seqlen)
    chunks = gl.cast(gl.cdiv(stop - start, CHUNK), gl.int32)
    row_cols = gl.arange(0, CHUNK, gl.SliceLayout(0, BY_CHUNK))
    row_rows = gl.arange(0, CHUNK, gl.SliceLayout(1, BY_CHUNK))
    n = gl.arange(0, BLOCK_N, gl.SliceLayout(0, BY_BLOCK_N))
    p_rows_block_n = gl.arange(0, BLOCK_P, gl.SliceLayout(1, BY_BLOCK_N))
    p_rows_chunk = gl.arange(0, BLOCK_P, gl.SliceLayout(1, BY_CHUNK))
    n_in = n < DSTATE
    p_in_rows_block_n = p_rows_block_n < HEADDIM - p0
    p_in_rows_chunk = p_rows_chunk < HEADDIM - p0
    if HAS_ENTERING:
        state_base = (
            entering_ptr
            + ((b * nentering + gl.minimum(segment, nentering - 1)) * nheads + head) * HEADDIM * DSTATE
            + p0 * DSTATE
        )
        state = gl.load(
            state_base + p_rows_block_n[:, None] * DSTATE + n[None, :],
            mask=p_in_rows_block_n[:, None] & n_in[None, :],
            other=0.0,
        )
        state = state.to(gl.float32)
    else:
        state = gl.zeros([BLOCK_P, BLOCK_N], gl.float32, BY_BLOCK_N)
    if HAS_SUMMARIES:
        for earlier in range(segment):
            total = gl.load(total_ptr + b * nsummaries * nheads + head + earlier * nheads)
            centre_decay = decay(total)
            local_state_base = (
                summary_ptr + b * nsummaries * nheads * HEADDIM * DSTATE + head * HEADDIM * DSTATE + p0 * DSTATE
            )
            local_state = gl.load(
                local_state_base + earlier * nheads * HEADDIM * DSTATE + p_rows_block_n[:, None] * DSTATE + n[None, :],
                mask=p_in_rows_block_n[:, None] & n_in[None, :],
                other=0.0,
            )
            local_state = local_state.to(gl.float32)
            state = local_state + state * centre_decay
    if HAS_D:
        D = gl.load(
            D_ptr + head * stride_D_nheads + p0 * stride_D_headdim + p_rows_chunk * stride_D_headdim,
            mask=p_in_rows_chunk,
            other=0.0,
        )
        D = D.to(gl.float32)
    gl.static_assert(STAGES > 1)
    mbarrier.wait(full.index(0), 0)
    C_next_tile = C_tiles.index(0).reshape([CHUNK, BLOCK_N])
    B_next_tile = B_tiles.index(0).reshape([CHUNK, BLOCK_N])
    CB = warpgroup_mma(
        B_next_tile,
        C_next_tile.permute((1, 0)),
        gl.zeros([CHUNK, CHUNK], gl.float32, BY_CHUNK),
        use_acc=False,
        is_async=True,
    )
    for step in range(chunks):
        row0 = start + step * CHUNK
        row_in_cols = row_cols < stop - row0
        row_in_rows = row_rows < stop - row0
        if HAS_SEQ_IDX:
            seq_cols = gl.load(seq_idx_ptr + b * seqlen + row0 + row_cols, mask=row_in_cols, other=0)
            seq_rows = gl.load(seq_idx_ptr + b * seqlen + row0 + row_rows, mask=row_in_rows, other=0)
            seq_before = gl.load(seq_idx_ptr + b * seqlen + gl.maximum(row0 - 1, 0))
        if HAS_SEQ_IDX:
            seq_last = gl.load(seq_idx_ptr + b * seqlen + gl.minimum(row0 + CHUNK, stop) - 1)
        if HAS_Z:
            z_base = z_ptr + b * stride_z_batch + head * stride_z_nheads + p0
            z = gl.load(
                z_base + row0 * stride_z_seqlen + row_cols[None, :] * stride_z_seqlen + p_rows_chunk[:, None],
                mask=p_in_rows_chunk[:, None] & row_in_cols[None, :],
                other=0.0,
            )
        stage = step % STAGES
        slot = stage * 1 + consumer
        C_tile = C_tiles.index(stage).reshape([CHUNK, BLOCK_N])
        B_tile = B_tiles.index(stage).reshape([CHUNK, BLOCK_N])
        x_tile = x_tiles.index(slot).reshape([CHUNK, BLOCK_P])
        CB = warpgroup_mma_wait(0, deps=(CB,))
        dt_tile = dt_tiles.index(slot)
        dA_cs_tile = dA_cs_tiles.index(slot)
        dA_last = gl.sum(dA_last_tiles.index(slot).load(gl.SliceLayout(0, BY_CHUNK)), axis=0)
        # left factor: what the entering state gives to every row
        state_left = gl.convert_layout(state.to(DOT), gl.DotOperandLayout(0, BY_CHUNK, 2))
        y = warpgroup_mma(
            state_left,
            C_tile.permute((1, 0)),
            gl.zeros([BLOCK_P, CHUNK], gl.float32, BY_CHUNK),
            use_acc=False,
            is_async=True,
        )
        dA_cs_cols = dA_cs_tile.load(gl.SliceLayout(0, BY_CHUNK))
        left_decay = decay(dA_cs_cols)
        if HAS_SEQ_IDX:
            left_decay = gl.where(seq_before == seq_cols, left_decay, 0.0)
        # diagonal block: what the rows before give, inside the chunk
        dA_cs_rows = dA_cs_tile.load(gl.SliceLayout(1, BY_CHUNK))
        dt_rows = dt_tile.load(gl.SliceLayout(1, BY_CHUNK))
        scores = gl.where(
            row_cols[None, :] >= row_rows[:, None],
            CB * dt_rows[:, None] * decay(dA_cs_cols[None, :] - dA_cs_rows[:, None]),
            0.0,
        )
        if HAS_SEQ_IDX:
            scores = gl.where(seq_cols[None, :] == seq_rows[:, None], scores, 0.0)
        scores_tile.store(leading(scores, DOT).to(DOT))
        scores_rest = scores - leading(scores, DOT)
        scores_rest_tile.store(scores_rest.to(DOT))
        y, state_left = warpgroup_mma_wait(0, deps=(y, state_left))
        y = y * left_decay[None, :]
        fence_async_shared()
        x_turned = x_tile.permute((1, 0)).load(BY_CHUNK)
        x_left = gl.convert_layout(x_turned, gl.DotOperandLayout(0, BY_CHUNK, 2))
        y = warpgroup_mma(x_left, scores_tile, y, is_async=True)
        y = warpgroup_mma(x_left, scores_rest_tile, y, is_async=True)
        dt_cols = dt_tile.load(gl.SliceLayout(0, BY_CHUNK))
        right_decay = dt_cols * decay(dA_last - dA_cs_cols)
        if HAS_SEQ_IDX:
            right_decay = gl.where(seq_last == seq_cols, right_decay, 0.0)
        x_weighted = x_turned.to(gl.float32) * right_decay[None, :]
        # centre and right factor: the state that leaves the chunk
        centre_decay = decay(dA_last)
        if HAS_SEQ_IDX:
            centre_decay = gl.where(seq_before == seq_last, centre_decay, 0.0)
        state = state * centre_decay
        x_weighted_left = gl.convert_layout(x_weighted.to(DOT), gl.DotOperandLayout(0, BY_BLOCK_N, 2))
        state = warpgroup_mma(x_weighted_left, B_tile, state, is_async=True)
        y, x_left = warpgroup_mma_wait(1, deps=(y, x_left))
        if HAS_D:
            y = y + x_turned.to(gl.float32) * D[:, None]
        if HAS_Z:
            y = y * z.to(gl.float32) * sigmoid(z.to(gl.float32))
        if walk < walks:
            tma.store_wait(0)
            y_tile.permute((1, 0)).store(y.to(DOT))
            fence_async_shared()
            tma.async_copy_shared_to_global(
                y_desc,
                [gl.cast(b, gl.int32), gl.cast(head, gl.int32), gl.cast(row0, gl.int32), p0],
                y_tile.reshape([1, 1, CHUNK, BLOCK_P]),
            )
        following = (step + 1) % STAGES
        mbarrier.wait(full.index(following), (step + 1) // STAGES & 1, pred=step + 1 < chunks)
        C_next_tile = C_tiles.index(following).reshape([CHUNK, BLOCK_N])
        B_next_tile = B_tiles.index(following).reshape([CHUNK, BLOCK_N])
        CB = warpgroup_mma(
            B_next_tile,
            C_next_tile.permute((1, 0)),
            gl.zeros([CHUNK, CHUNK], gl.float32, BY_CHUNK),
            use_acc=False,
            is_async=True,
        )
        state, x_weighted_left = warpgroup_mma_wait(1, deps=(state, x_weighted_left))
        mbarrier.arrive(empty.index(stage))
    CB = warpgroup_mma_wait(0, deps=(CB,))
    if STORE_FINAL:
        if (walk < walks) & (segment == nsegments - 1):
            final_states_base = final_states_ptr + (b * nheads + head) * HEADDIM * DSTATE + p0 * DSTATE
            gl.store(
                final_states_base + p_rows_block_n[:, None] * DSTATE + n[None, :],
                state.to(final_states_base.dtype.element_ty),
                mask=p_in_rows_block_n[:, None] & n_in[None, :],
            )
    tma.store_wait(0)


# Triton 3.6 fails on programs of several consumers where it knows that there is one head
@gluon.jit(do_not_specialize=["nheads"])
def single_pass_2terms_inline_1consumer_ahead(
    x_desc,  # [batch, nheads, seqlen, headdim]
    B_desc,  # [batch, ngroups, seqlen, dstate]
    C_desc,  # [batch, ngroups, seqlen, dstate]
    dt_ptr,  # [batch, seqlen, nheads]
    dt_bias_ptr,  # [nheads], if HAS_DT_BIAS
    A_ptr,  # [nheads]
    seq_idx_ptr,  # [batch, seqlen], if HAS_SEQ_IDX
    D_ptr,  # [nheads, headdim], if HAS_D
    z_ptr,  # [batch, seqlen, nheads, headdim], if HAS_Z
    entering_ptr,  # [batch, nentering, nheads, headdim, dstate], if HAS_ENTERING
    summary_ptr,  # [batch, nsummaries, nheads, headdim, dstate], if HAS_SUMMARIES
    total_ptr,  # [batch, nsummaries, nheads], if HAS_SUMMARIES
    y_desc,  # [batch, nheads, seqlen, headdim]
    final_states_ptr,  # [batch, nheads, headdim, dstate], if STORE_FINAL
    stride_dt_batch: gl.int64,
    stride_dt_seqlen: gl.int64,
    stride_dt_nheads: gl.int64,
    stride_D_nheads: gl.int64,
    stride_D_headdim: gl.int64,
    stride_z_batch: gl.int64,
    stride_z_seqlen: gl.int64,
    stride_z_nheads: gl.int64,
    seqlen,
    nheads,
    ngroups,
    nsegments,
    segment_len,
    nentering,
    nsummaries,
    dt_min,
    dt_max,
    HEADDIM: gl.constexpr,
    DSTATE: gl.constexpr,
    CHUNK: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_P: gl.constexpr,
    STAGES: gl.constexpr,
    DOT: gl.constexpr,
    HAS_SEQ_IDX: gl.constexpr,
    HAS_DT_BIAS: gl.constexpr,
    DT_SOFTPLUS: gl.constexpr,
    HAS_D: gl.constexpr,
    HAS_Z: gl.constexpr,
    HAS_ENTERING: gl.constexpr,
    STORE_FINAL: gl.constexpr,
    HAS_SUMMARIES: gl.constexpr,
):
    C_tiles = gl.allocate_shared_memory(C_desc.dtype, [STAGES, 1, 1, CHUNK, BLOCK_N], C_desc.layout)
    B_tiles = gl.allocate_shared_memory(B_desc.dtype, [STAGES, 1, 1, CHUNK, BLOCK_N], B_desc.layout)
    x_tiles = gl.allocate_shared_memory(x_desc.dtype, [STAGES * 1, 1, 1, CHUNK, BLOCK_P], x_desc.layout)
    dt_tiles = gl.allocate_shared_memory(gl.float32, [STAGES * 1, CHUNK], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    dA_cs_tiles = gl.allocate_shared_memory(gl.float32, [STAGES * 1, CHUNK], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    dA_last_tiles = gl.allocate_shared_memory(gl.float32, [STAGES * 1, 1], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    scores_tiles = gl.allocate_shared_memory(
        DOT, [1, CHUNK, CHUNK], gl.NVMMASharedLayout.get_default_for([CHUNK, CHUNK], DOT)
    )
    scores_rest_tiles = gl.allocate_shared_memory(
        DOT, [1, CHUNK, CHUNK], gl.NVMMASharedLayout.get_default_for([CHUNK, CHUNK], DOT)
    )
    y_tiles = gl.allocate_shared_memory(
        DOT, [1, CHUNK, BLOCK_P], gl.NVMMASharedLayout.get_default_for([CHUNK, BLOCK_P], DOT)
    )
    # a stage is full when its tiles have arrived, and empty when every consumer has done with them
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=2)
        mbarrier.init(empty.index(stage), count=1)
    # up to here beside the kernel before, whose results come next
    gdc_wait()
    gdc_launch_dependents()
    gl.warp_specialize(
        [
            (
                compute,
                (
                    seq_idx_ptr,
                    D_ptr,
                    z_ptr,
                    entering_ptr,
                    summary_ptr,
                    total_ptr,
                    y_desc,
                    final_states_ptr,
                    stride_D_nheads,
                    stride_D_headdim,
                    stride_z_batch,
                    stride_z_seqlen,
                    stride_z_nheads,
                    seqlen,
                    nheads,
                    ngroups,
                    nsegments,
                    segment_len,
                    nentering,
                    nsummaries,
                    C_tiles,
                    B_tiles,
                    x_tiles,
                    dt_tiles,
                    dA_cs_tiles,
                    dA_last_tiles,
                    scores_tiles,
                    scores_rest_tiles,
                    y_tiles,
                    full,
                    empty,
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
                    HAS_Z,
                    HAS_ENTERING,
                    STORE_FINAL,
                    HAS_SUMMARIES,
                ),
            ),
            (
                make_steps,
                (
                    dt_ptr,
                    dt_bias_ptr,
                    A_ptr,
                    stride_dt_batch,
                    stride_dt_seqlen,
                    stride_dt_nheads,
                    seqlen,
                    nheads,
                    ngroups,
                    segment_len,
                    dt_min,
                    dt_max,
                    dt_tiles,
                    dA_cs_tiles,
                    dA_last_tiles,
                    full,
                    empty,
                    0,
                    HEADDIM,
                    CHUNK,
                    BLOCK_P,
                    STAGES,
                    HAS_DT_BIAS,
                    DT_SOFTPLUS,
                ),
            ),
            (
                load_tiles,
                (
                    x_desc,
                    B_desc,
                    C_desc,
                    seqlen,
                    nheads,
                    ngroups,
                    segment_len,
                    C_tiles,
                    B_tiles,
                    x_tiles,
                    full,
                    empty,
                    HEADDIM,
                    CHUNK,
                    BLOCK_P,
                    STAGES,
                ),
            ),
        ],
        worker_num_warps=[1, 1],
        worker_num_regs=[32, 24],
    )


def grid(batch, nheads, ngroups, nsegments, HEADDIM, BLOCK_P, **_):
    """Programs along each axis."""
    return ngroups * triton.cdiv(nheads // ngroups * triton.cdiv(HEADDIM, BLOCK_P), 1), nsegments, batch


def blocks(CHUNK, BLOCK_N, BLOCK_P, **_):
    """Order of the dimensions and block of each tensor descriptor."""
    return {
        "C": ((0, 2, 1, 3), (1, 1, CHUNK, BLOCK_N)),
        "B": ((0, 2, 1, 3), (1, 1, CHUNK, BLOCK_N)),
        "x": ((0, 2, 1, 3), (1, 1, CHUNK, BLOCK_P)),
        "y": ((0, 2, 1, 3), (1, 1, CHUNK, BLOCK_P)),
    }
