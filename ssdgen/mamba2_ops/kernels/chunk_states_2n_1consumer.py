"""One program walks the chunks of a segment for one head, the state in registers; it writes the state that enters each
chunk. Another warp moves the tiles that they read, stages ahead.

right_decay_whole[h, j] = 2**Min(0, -dA_cs[h, j] + dA_last[h])*dt[h, j]
right_decay[h, j] = Piecewise((right_decay_whole[h, j], Eq(seq_last, seq[j])), (0, True))    if HAS_SEQ_IDX
centre_decay_whole[h] = 2**Min(0, dA_last[h])
centre_decay[h] = Piecewise((centre_decay_whole[h], Eq(seq_before, seq_last)), (0, True))    if HAS_SEQ_IDX
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

from .warpgroup_functions import decay, leading


@gluon.jit
def load_tiles(
    x_desc,
    B_desc,
    dt_desc,
    dA_cs_desc,
    seqlen,
    nheads,
    ngroups,
    segment_len,
    dA_cs_tiles,
    dt_tiles,
    x_tiles,
    B_0_tiles,
    B_1_tiles,
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
    programs = gl.cdiv(walks, 1)
    group = gl.cast(gl.program_id(0) // programs, gl.int64)
    segment = gl.cast(gl.program_id(1), gl.int64)
    b = gl.cast(gl.program_id(2), gl.int64)
    first = segment * (segment_len // CHUNK)
    stop = gl.minimum(segment * segment_len + segment_len, seqlen)
    chunks = gl.cast(gl.cdiv(stop - segment * segment_len, CHUNK), gl.int32)
    for step in range(chunks):
        chunk = first + step
        row0 = chunk * CHUNK
        stage = step % STAGES
        ready = full.index(stage)
        mbarrier.wait(empty.index(stage), (step // STAGES & 1) ^ 1)
        shared: gl.constexpr = B_desc.block_type.nbytes + B_desc.block_type.nbytes
        own: gl.constexpr = dA_cs_desc.block_type.nbytes + dt_desc.block_type.nbytes + x_desc.block_type.nbytes
        mbarrier.expect(ready, shared + 1 * own)
        tma.async_copy_global_to_shared(
            B_desc,
            [gl.cast(b, gl.int32), gl.cast(group, gl.int32), gl.cast(row0, gl.int32), 0],
            ready,
            B_0_tiles.index(stage),
        )
        tma.async_copy_global_to_shared(
            B_desc,
            [gl.cast(b, gl.int32), gl.cast(group, gl.int32), gl.cast(row0, gl.int32), BLOCK_N],
            ready,
            B_1_tiles.index(stage),
        )
        for consumer in gl.static_range(1):
            slot = stage * 1 + consumer
            walk = gl.program_id(0) % programs * 1 + consumer
            at = gl.minimum(walk, walks - 1)
            head = group * (nheads // ngroups) + at // p_blocks
            p0 = at % p_blocks * BLOCK_P
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
            tma.async_copy_global_to_shared(
                x_desc,
                [gl.cast(b, gl.int32), gl.cast(head, gl.int32), gl.cast(row0, gl.int32), p0],
                ready,
                x_tiles.index(slot),
            )


@gluon.jit
def compute(
    dA_cs_ptr,
    seq_idx_ptr,
    entering_ptr,
    states_desc,
    seqlen,
    nheads,
    ngroups,
    nsegments,
    segment_len,
    padded,
    dA_cs_tiles,
    dt_tiles,
    x_tiles,
    B_0_tiles,
    B_1_tiles,
    state_0_tiles,
    state_1_tiles,
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
    HAS_ENTERING: gl.constexpr,
):
    """One consumer: four warps that multiply together."""
    BY_CHUNK: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, CHUNK, 16])
    BY_BLOCK_N: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    state_0_tile = state_0_tiles.index(consumer)
    state_1_tile = state_1_tiles.index(consumer)
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
    first = segment * (segment_len // CHUNK)
    stop = gl.minimum(segment * segment_len + segment_len, seqlen)
    chunks = gl.cast(gl.cdiv(stop - segment * segment_len, CHUNK), gl.int32)
    row = gl.arange(0, CHUNK, gl.SliceLayout(0, BY_CHUNK))
    n_0 = gl.arange(0, BLOCK_N, gl.SliceLayout(0, BY_BLOCK_N))
    n_1 = gl.arange(0, BLOCK_N, gl.SliceLayout(0, BY_BLOCK_N))
    p = gl.arange(0, BLOCK_P, gl.SliceLayout(1, BY_BLOCK_N))
    n_0_in = n_0 < DSTATE
    n_1_in = n_1 < DSTATE - BLOCK_N
    p_in = p < HEADDIM - p0
    if HAS_ENTERING:
        state_0_base = entering_ptr + ((b * nsegments + segment) * nheads + head) * HEADDIM * DSTATE + p0 * DSTATE
        state_0 = gl.load(
            state_0_base + p[:, None] * DSTATE + n_0[None, :], mask=p_in[:, None] & n_0_in[None, :], other=0.0
        )
        state_0 = state_0.to(gl.float32)
        state_1_base = (
            entering_ptr + ((b * nsegments + segment) * nheads + head) * HEADDIM * DSTATE + p0 * DSTATE + BLOCK_N
        )
        state_1 = gl.load(
            state_1_base + p[:, None] * DSTATE + n_1[None, :], mask=p_in[:, None] & n_1_in[None, :], other=0.0
        )
        state_1 = state_1.to(gl.float32)
    else:
        state_0 = gl.zeros([BLOCK_P, BLOCK_N], gl.float32, BY_BLOCK_N)
        state_1 = gl.zeros([BLOCK_P, BLOCK_N], gl.float32, BY_BLOCK_N)
    dA_cs_base = dA_cs_ptr + (b * nheads + head) * padded
    for step in range(chunks):
        chunk = first + step
        row0 = chunk * CHUNK
        row_in = row < stop - row0
        dA_last = gl.load(dA_cs_base + row0 + CHUNK - 1)
        if HAS_SEQ_IDX:
            seq = gl.load(seq_idx_ptr + b * seqlen + row0 + row, mask=row_in, other=0)
            seq_last = gl.load(seq_idx_ptr + b * seqlen + gl.minimum(row0 + CHUNK, stop) - 1)
        if HAS_SEQ_IDX:
            seq_before = gl.load(seq_idx_ptr + b * seqlen + gl.maximum(row0 - 1, 0))
        stage = step % STAGES
        slot = stage * 1 + consumer
        mbarrier.wait(full.index(stage), step // STAGES & 1)
        dA_cs_tile = dA_cs_tiles.index(slot).reshape([CHUNK])
        dt_tile = dt_tiles.index(slot).reshape([CHUNK])
        x_tile = x_tiles.index(slot).reshape([CHUNK, BLOCK_P])
        B_0_tile = B_0_tiles.index(stage).reshape([CHUNK, BLOCK_N])
        B_1_tile = B_1_tiles.index(stage).reshape([CHUNK, BLOCK_N])
        if walk < walks:
            tma.store_wait(1)
            state_0_tile.store(state_0.to(DOT))
            fence_async_shared()
            tma.async_copy_shared_to_global(
                states_desc,
                [gl.cast(b, gl.int32), gl.cast(chunk, gl.int32), gl.cast(head, gl.int32), p0, 0],
                state_0_tile.reshape([1, 1, 1, BLOCK_P, BLOCK_N]),
            )
            tma.store_wait(1)
            state_1_tile.store(state_1.to(DOT))
            fence_async_shared()
            tma.async_copy_shared_to_global(
                states_desc,
                [gl.cast(b, gl.int32), gl.cast(chunk, gl.int32), gl.cast(head, gl.int32), p0, BLOCK_N],
                state_1_tile.reshape([1, 1, 1, BLOCK_P, BLOCK_N]),
            )
        dA_cs = dA_cs_tile.load(gl.SliceLayout(0, BY_CHUNK))
        dt = dt_tile.load(gl.SliceLayout(0, BY_CHUNK))
        right_decay = dt * decay(dA_last - dA_cs)
        if HAS_SEQ_IDX:
            right_decay = gl.where(seq_last == seq, right_decay, 0.0)
        x_turned = x_tile.permute((1, 0)).load(BY_CHUNK)
        x_weighted = x_turned.to(gl.float32) * right_decay[None, :]
        x_weighted_rest = x_weighted - leading(x_weighted, DOT)
        # centre and right factor: the state that leaves the chunk
        centre_decay = decay(dA_last)
        if HAS_SEQ_IDX:
            centre_decay = gl.where(seq_before == seq_last, centre_decay, 0.0)
        state_0 = state_0 * centre_decay
        x_weighted_left = gl.convert_layout(leading(x_weighted, DOT).to(DOT), gl.DotOperandLayout(0, BY_BLOCK_N, 2))
        state_0 = warpgroup_mma(x_weighted_left, B_0_tile, state_0, is_async=True)
        state_0, x_weighted_left = warpgroup_mma_wait(0, deps=(state_0, x_weighted_left))
        x_weighted_rest_left = gl.convert_layout(x_weighted_rest.to(DOT), gl.DotOperandLayout(0, BY_BLOCK_N, 2))
        state_0 = warpgroup_mma(x_weighted_rest_left, B_0_tile, state_0, is_async=True)
        state_1 = state_1 * centre_decay
        state_1 = warpgroup_mma(x_weighted_left, B_1_tile, state_1, is_async=True)
        state_0, state_1, x_weighted_rest_left, x_weighted_left = warpgroup_mma_wait(
            0, deps=(state_0, state_1, x_weighted_rest_left, x_weighted_left)
        )
        state_1 = warpgroup_mma(x_weighted_rest_left, B_1_tile, state_1, is_async=True)
        state_1, x_weighted_rest_left = warpgroup_mma_wait(0, deps=(state_1, x_weighted_rest_left))
        mbarrier.arrive(empty.index(stage))
    tma.store_wait(0)


# Triton 3.6 fails on programs of several consumers where it knows that there is one head
@gluon.jit(do_not_specialize=["nheads"])
def chunk_states_2n_1consumer(
    x_desc,  # [batch, nheads, seqlen, headdim]
    B_desc,  # [batch, ngroups, seqlen, dstate]
    dt_desc,  # [batch, nheads, padded]
    dA_cs_desc,  # [batch, nheads, padded]
    dA_cs_ptr,  # [batch, nheads, padded]
    seq_idx_ptr,  # [batch, seqlen], if HAS_SEQ_IDX
    entering_ptr,  # [batch, nsegments, nheads, headdim, dstate], if HAS_ENTERING
    states_desc,  # [batch, nchunks, nheads, headdim, dstate]
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
    HAS_ENTERING: gl.constexpr,
):
    dA_cs_tiles = gl.allocate_shared_memory(dA_cs_desc.dtype, [STAGES * 1, 1, 1, CHUNK], dA_cs_desc.layout)
    dt_tiles = gl.allocate_shared_memory(dt_desc.dtype, [STAGES * 1, 1, 1, CHUNK], dt_desc.layout)
    x_tiles = gl.allocate_shared_memory(x_desc.dtype, [STAGES * 1, 1, 1, CHUNK, BLOCK_P], x_desc.layout)
    B_0_tiles = gl.allocate_shared_memory(B_desc.dtype, [STAGES, 1, 1, CHUNK, BLOCK_N], B_desc.layout)
    B_1_tiles = gl.allocate_shared_memory(B_desc.dtype, [STAGES, 1, 1, CHUNK, BLOCK_N], B_desc.layout)
    state_0_tiles = gl.allocate_shared_memory(
        DOT, [1, BLOCK_P, BLOCK_N], gl.NVMMASharedLayout.get_default_for([BLOCK_P, BLOCK_N], DOT)
    )
    state_1_tiles = gl.allocate_shared_memory(
        DOT, [1, BLOCK_P, BLOCK_N], gl.NVMMASharedLayout.get_default_for([BLOCK_P, BLOCK_N], DOT)
    )
    # a stage is full when its tiles have arrived, and empty when every consumer has done with them
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=1)
    # up to here beside the kernel before, whose results come next
    gdc_wait()
    gdc_launch_dependents()
    gl.warp_specialize(
        [
            (
                compute,
                (
                    dA_cs_ptr,
                    seq_idx_ptr,
                    entering_ptr,
                    states_desc,
                    seqlen,
                    nheads,
                    ngroups,
                    nsegments,
                    segment_len,
                    padded,
                    dA_cs_tiles,
                    dt_tiles,
                    x_tiles,
                    B_0_tiles,
                    B_1_tiles,
                    state_0_tiles,
                    state_1_tiles,
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
                    HAS_ENTERING,
                ),
            ),
            (
                load_tiles,
                (
                    x_desc,
                    B_desc,
                    dt_desc,
                    dA_cs_desc,
                    seqlen,
                    nheads,
                    ngroups,
                    segment_len,
                    dA_cs_tiles,
                    dt_tiles,
                    x_tiles,
                    B_0_tiles,
                    B_1_tiles,
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
        worker_num_warps=[1],
        worker_num_regs=[24],
    )


def grid(batch, nheads, ngroups, nsegments, HEADDIM, BLOCK_P, **_):
    """Programs along each axis."""
    return ngroups * triton.cdiv(nheads // ngroups * triton.cdiv(HEADDIM, BLOCK_P), 1), nsegments, batch


def blocks(CHUNK, BLOCK_N, BLOCK_P, **_):
    """Order of the dimensions and block of each tensor descriptor."""
    return {
        "dA_cs": ((0, 1, 2), (1, 1, CHUNK)),
        "dt": ((0, 1, 2), (1, 1, CHUNK)),
        "x": ((0, 2, 1, 3), (1, 1, CHUNK, BLOCK_P)),
        "B": ((0, 2, 1, 3), (1, 1, CHUNK, BLOCK_N)),
        "states": ((0, 1, 2, 3, 4), (1, 1, 1, BLOCK_P, BLOCK_N)),
    }
