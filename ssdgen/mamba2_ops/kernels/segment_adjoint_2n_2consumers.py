"""Each of 2 groups of warps walks the chunks of a segment for one head from the last to the first, the adjoint of the
state in registers; it writes what a segment adds to the adjoint of the state that enters it. Another warp moves the
tiles that they read, stages ahead.

left_decay_whole[h, i] = 2**Min(0, dA_cs[h, i])
left_decay[h, i] = Piecewise((left_decay_whole[h, i], Eq(seq_before, seq[i])), (0, True))    if HAS_SEQ_IDX
centre_decay_whole[h] = 2**Min(0, dA_last[h])
centre_decay[h] = Piecewise((centre_decay_whole[h], Eq(seq_before, seq_last)), (0, True))    if HAS_SEQ_IDX
d_y_skip[h, i, p] = sigmoid(z[h, i, p])*d_y[h, i, p]*z[h, i, p]    if HAS_Z
d_y_state[h, i, p] = d_y_skip[h, i, p]*left_decay[h, i]
d_state_y_state[h, p, n] = sum over i of d_y_state[h, i, p] * C[i, n]
d_state[h, p, n] = centre_decay[h]*d_state_out[h, p, n] + d_state_y_state[h, p, n]
"""

import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .warpgroup_functions import decay, leading, sigmoid


@gluon.jit
def load_tiles(
    C_desc,
    d_y_desc,
    dA_cs_desc,
    seqlen,
    nheads,
    ngroups,
    segment_len,
    d_y_tiles,
    dA_cs_tiles,
    C_0_tiles,
    C_1_tiles,
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
    walks = nheads // ngroups * p_blocks
    programs = gl.cdiv(walks, 2)
    group = gl.cast(gl.program_id(0) // programs, gl.int64)
    segment = gl.cast(gl.program_id(1), gl.int64)
    b = gl.cast(gl.program_id(2), gl.int64)
    first = segment * (segment_len // CHUNK)
    stop = gl.minimum(segment * segment_len + segment_len, seqlen)
    chunks = gl.cast(gl.cdiv(stop - segment * segment_len, CHUNK), gl.int32)
    for step in range(chunks):
        chunk = first + chunks - 1 - step
        row0 = chunk * CHUNK
        stage = step % STAGES
        ready = full.index(stage)
        mbarrier.wait(empty.index(stage), (step // STAGES & 1) ^ 1)
        shared: gl.constexpr = C_desc.block_type.nbytes + C_desc.block_type.nbytes
        own: gl.constexpr = d_y_desc.block_type.nbytes + dA_cs_desc.block_type.nbytes
        mbarrier.expect(ready, shared + 2 * own)
        tma.async_copy_global_to_shared(
            C_desc,
            [gl.cast(b, gl.int32), gl.cast(group, gl.int32), gl.cast(row0, gl.int32), 0],
            ready,
            C_0_tiles.index(stage),
        )
        tma.async_copy_global_to_shared(
            C_desc,
            [gl.cast(b, gl.int32), gl.cast(group, gl.int32), gl.cast(row0, gl.int32), BLOCK_N],
            ready,
            C_1_tiles.index(stage),
        )
        for consumer in gl.static_range(2):
            slot = stage * 2 + consumer
            walk = gl.program_id(0) % programs * 2 + consumer
            at = gl.minimum(walk, walks - 1)
            head = group * (nheads // ngroups) + at // p_blocks
            p0 = at % p_blocks * BLOCK_P
            tma.async_copy_global_to_shared(
                d_y_desc,
                [gl.cast(b, gl.int32), gl.cast(head, gl.int32), gl.cast(row0, gl.int32), p0],
                ready,
                d_y_tiles.index(slot),
            )
            tma.async_copy_global_to_shared(
                dA_cs_desc,
                [gl.cast(b, gl.int32), gl.cast(head, gl.int32), gl.cast(row0, gl.int32)],
                ready,
                dA_cs_tiles.index(slot),
            )


@gluon.jit
def compute(
    dA_cs_ptr,
    seq_idx_ptr,
    z_ptr,
    summary_ptr,
    stride_z_batch: gl.int64,
    stride_z_seqlen: gl.int64,
    stride_z_nheads: gl.int64,
    seqlen,
    nheads,
    ngroups,
    nsegments,
    segment_len,
    padded,
    d_y_tiles,
    dA_cs_tiles,
    C_0_tiles,
    C_1_tiles,
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
    HAS_Z: gl.constexpr,
):
    """One consumer: four warps that multiply together."""
    BY_CHUNK: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, CHUNK, 16])
    BY_BLOCK_N: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    p_blocks = gl.cdiv(HEADDIM, BLOCK_P)
    walks = nheads // ngroups * p_blocks
    programs = gl.cdiv(walks, 2)
    group = gl.cast(gl.program_id(0) // programs, gl.int64)
    walk = gl.program_id(0) % programs * 2 + consumer
    at = gl.minimum(walk, walks - 1)
    head = group * (nheads // ngroups) + at // p_blocks
    p0 = at % p_blocks * BLOCK_P
    segment = gl.cast(gl.program_id(1), gl.int64)
    b = gl.cast(gl.program_id(2), gl.int64)
    first = segment * (segment_len // CHUNK)
    stop = gl.minimum(segment * segment_len + segment_len, seqlen)
    chunks = gl.cast(gl.cdiv(stop - segment * segment_len, CHUNK), gl.int32)
    row = gl.arange(0, CHUNK, gl.SliceLayout(0, BY_CHUNK))
    n_0 = gl.arange(0, BLOCK_N, gl.SliceLayout(0, BY_BLOCK_N))
    n_1 = gl.arange(0, BLOCK_N, gl.SliceLayout(0, BY_BLOCK_N))
    p_rows_block_n = gl.arange(0, BLOCK_P, gl.SliceLayout(1, BY_BLOCK_N))
    p_rows_chunk = gl.arange(0, BLOCK_P, gl.SliceLayout(1, BY_CHUNK))
    n_0_in = n_0 < DSTATE
    n_1_in = n_1 < DSTATE - BLOCK_N
    p_in_rows_block_n = p_rows_block_n < HEADDIM - p0
    p_in_rows_chunk = p_rows_chunk < HEADDIM - p0
    d_state_0 = gl.zeros([BLOCK_P, BLOCK_N], gl.float32, BY_BLOCK_N)
    d_state_1 = gl.zeros([BLOCK_P, BLOCK_N], gl.float32, BY_BLOCK_N)
    dA_cs_base = dA_cs_ptr + (b * nheads + head) * padded
    for step in range(chunks):
        chunk = first + chunks - 1 - step
        row0 = chunk * CHUNK
        row_in = row < stop - row0
        if HAS_Z:
            z_base = z_ptr + b * stride_z_batch + head * stride_z_nheads + p0
            z = gl.load(
                z_base + row0 * stride_z_seqlen + row[None, :] * stride_z_seqlen + p_rows_chunk[:, None],
                mask=p_in_rows_chunk[:, None] & row_in[None, :],
                other=0.0,
            )
        if HAS_SEQ_IDX:
            seq = gl.load(seq_idx_ptr + b * seqlen + row0 + row, mask=row_in, other=0)
            seq_before = gl.load(seq_idx_ptr + b * seqlen + gl.maximum(row0 - 1, 0))
        dA_last = gl.load(dA_cs_base + row0 + CHUNK - 1)
        if HAS_SEQ_IDX:
            seq_last = gl.load(seq_idx_ptr + b * seqlen + gl.minimum(row0 + CHUNK, stop) - 1)
        stage = step % STAGES
        slot = stage * 2 + consumer
        mbarrier.wait(full.index(stage), step // STAGES & 1)
        d_y_tile = d_y_tiles.index(slot).reshape([CHUNK, BLOCK_P])
        dA_cs_tile = dA_cs_tiles.index(slot).reshape([CHUNK])
        C_0_tile = C_0_tiles.index(stage).reshape([CHUNK, BLOCK_N])
        C_1_tile = C_1_tiles.index(stage).reshape([CHUNK, BLOCK_N])
        d_y_turned = d_y_tile.permute((1, 0)).load(BY_CHUNK)
        d_y_skip = d_y_turned
        if HAS_Z:
            d_y_skip = d_y_turned.to(gl.float32) * z.to(gl.float32) * sigmoid(z.to(gl.float32))
        dA_cs = dA_cs_tile.load(gl.SliceLayout(0, BY_CHUNK))
        left_decay = decay(dA_cs)
        if HAS_SEQ_IDX:
            left_decay = gl.where(seq_before == seq, left_decay, 0.0)
        d_y_state = d_y_skip.to(gl.float32) * left_decay[None, :]
        d_y_state_rest = d_y_state - leading(d_y_state, DOT)
        centre_decay = decay(dA_last)
        if HAS_SEQ_IDX:
            centre_decay = gl.where(seq_before == seq_last, centre_decay, 0.0)
        d_state_0 = d_state_0 * centre_decay
        d_y_state_left = gl.convert_layout(leading(d_y_state, DOT).to(DOT), gl.DotOperandLayout(0, BY_BLOCK_N, 2))
        d_state_0 = warpgroup_mma(d_y_state_left, C_0_tile, d_state_0, is_async=True)
        d_state_0, d_y_state_left = warpgroup_mma_wait(0, deps=(d_state_0, d_y_state_left))
        d_y_state_rest_left = gl.convert_layout(d_y_state_rest.to(DOT), gl.DotOperandLayout(0, BY_BLOCK_N, 2))
        d_state_0 = warpgroup_mma(d_y_state_rest_left, C_0_tile, d_state_0, is_async=True)
        d_state_1 = d_state_1 * centre_decay
        d_state_1 = warpgroup_mma(d_y_state_left, C_1_tile, d_state_1, is_async=True)
        d_state_0, d_state_1, d_y_state_rest_left, d_y_state_left = warpgroup_mma_wait(
            0, deps=(d_state_0, d_state_1, d_y_state_rest_left, d_y_state_left)
        )
        d_state_1 = warpgroup_mma(d_y_state_rest_left, C_1_tile, d_state_1, is_async=True)
        d_state_1, d_y_state_rest_left = warpgroup_mma_wait(0, deps=(d_state_1, d_y_state_rest_left))
        mbarrier.arrive(empty.index(stage))
    if walk < walks:
        summary_base = summary_ptr + ((b * nsegments + segment) * nheads + head) * HEADDIM * DSTATE + p0 * DSTATE
        gl.store(
            summary_base + p_rows_block_n[:, None] * DSTATE + n_0[None, :],
            d_state_0.to(summary_base.dtype.element_ty),
            mask=p_in_rows_block_n[:, None] & n_0_in[None, :],
        )
        summary_base = (
            summary_ptr + ((b * nsegments + segment) * nheads + head) * HEADDIM * DSTATE + p0 * DSTATE + BLOCK_N
        )
        gl.store(
            summary_base + p_rows_block_n[:, None] * DSTATE + n_1[None, :],
            d_state_1.to(summary_base.dtype.element_ty),
            mask=p_in_rows_block_n[:, None] & n_1_in[None, :],
        )


# Triton 3.6 fails on programs of several consumers where it knows that there is one head
@gluon.jit(do_not_specialize=["nheads"])
def segment_adjoint_2n_2consumers(
    C_desc,  # [batch, ngroups, seqlen, dstate]
    d_y_desc,  # [batch, nheads, seqlen, headdim]
    dA_cs_desc,  # [batch, nheads, padded]
    dA_cs_ptr,  # [batch, nheads, padded]
    seq_idx_ptr,  # [batch, seqlen], if HAS_SEQ_IDX
    z_ptr,  # [batch, seqlen, nheads, headdim], if HAS_Z
    summary_ptr,  # [batch, nsegments, nheads, headdim, dstate]
    stride_z_batch: gl.int64,
    stride_z_seqlen: gl.int64,
    stride_z_nheads: gl.int64,
    seqlen,
    nheads,
    ngroups,
    nsegments,
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
    HAS_Z: gl.constexpr,
    BESIDE: gl.constexpr,
):
    d_y_tiles = gl.allocate_shared_memory(d_y_desc.dtype, [STAGES * 2, 1, 1, CHUNK, BLOCK_P], d_y_desc.layout)
    dA_cs_tiles = gl.allocate_shared_memory(dA_cs_desc.dtype, [STAGES * 2, 1, 1, CHUNK], dA_cs_desc.layout)
    C_0_tiles = gl.allocate_shared_memory(C_desc.dtype, [STAGES, 1, 1, CHUNK, BLOCK_N], C_desc.layout)
    C_1_tiles = gl.allocate_shared_memory(C_desc.dtype, [STAGES, 1, 1, CHUNK, BLOCK_N], C_desc.layout)
    # a stage is full when its tiles have arrived, and empty when every consumer has done with them
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
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
                    dA_cs_ptr,
                    seq_idx_ptr,
                    z_ptr,
                    summary_ptr,
                    stride_z_batch,
                    stride_z_seqlen,
                    stride_z_nheads,
                    seqlen,
                    nheads,
                    ngroups,
                    nsegments,
                    segment_len,
                    padded,
                    d_y_tiles,
                    dA_cs_tiles,
                    C_0_tiles,
                    C_1_tiles,
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
                    HAS_Z,
                ),
            ),
            (
                compute,
                (
                    dA_cs_ptr,
                    seq_idx_ptr,
                    z_ptr,
                    summary_ptr,
                    stride_z_batch,
                    stride_z_seqlen,
                    stride_z_nheads,
                    seqlen,
                    nheads,
                    ngroups,
                    nsegments,
                    segment_len,
                    padded,
                    d_y_tiles,
                    dA_cs_tiles,
                    C_0_tiles,
                    C_1_tiles,
                    full,
                    empty,
                    1,
                    HEADDIM,
                    DSTATE,
                    CHUNK,
                    BLOCK_N,
                    BLOCK_P,
                    STAGES,
                    DOT,
                    HAS_SEQ_IDX,
                    HAS_Z,
                ),
            ),
            (
                load_tiles,
                (
                    C_desc,
                    d_y_desc,
                    dA_cs_desc,
                    seqlen,
                    nheads,
                    ngroups,
                    segment_len,
                    d_y_tiles,
                    dA_cs_tiles,
                    C_0_tiles,
                    C_1_tiles,
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


def grid(batch, nheads, ngroups, nsegments, HEADDIM, BLOCK_P, **_):
    """Programs along each axis."""
    return ngroups * triton.cdiv(nheads // ngroups * triton.cdiv(HEADDIM, BLOCK_P), 2), nsegments, batch


def blocks(CHUNK, BLOCK_N, BLOCK_P, **_):
    """Order of the dimensions and block of each tensor descriptor."""
    return {
        "d_y": ((0, 2, 1, 3), (1, 1, CHUNK, BLOCK_P)),
        "dA_cs": ((0, 1, 2), (1, 1, CHUNK)),
        "C": ((0, 2, 1, 3), (1, 1, CHUNK, BLOCK_N)),
    }
