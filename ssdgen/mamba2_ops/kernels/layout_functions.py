"""Layouts of what the kernels that are specialised by warps hold in registers, where Gluon has none ready."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.constexpr_function
def in_vectors(columns):
    """Of 64 rows: four warps have 16 each, as the matrix unit leaves them, and a thread up to 8 neighbours in a row.

    What a warp holds of a matrix stays with it, so that the change from the one layout to the other needs no barrier.
    """
    vector = min(8, columns // 4)
    neighbours = [[0, 2**k] for k in range(vector.bit_length() - 1)]
    further = [[0, 4 * vector * 2**k] for k in range((columns // (4 * vector)).bit_length() - 1)]
    threads = [[0, vector], [0, 2 * vector], [1, 0], [2, 0], [4, 0]]
    return gl.DistributedLinearLayout([*neighbours, [8, 0], *further], threads, [[16, 0], [32, 0]], [], [64, columns])
