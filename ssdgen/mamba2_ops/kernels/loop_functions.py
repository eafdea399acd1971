"""What keeps a compiler from spending registers on a loop."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def hidden(count):
    """The same 32-bit number, of which the compiler does not know that it grows by one from trip to trip.

    Else it keeps a pointer for each of a trip's addresses, and moves all of them on.
    """
    return gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [count], dtype=gl.int32, is_pure=True, pack=1)
