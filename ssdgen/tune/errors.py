"""What can go wrong in a search.  -> everything in tune, commands"""

from __future__ import annotations


class RejectedError(Exception):
    """A candidate is out: it does not compile, does not fit, is wrong or does not end.  The search goes on."""


class CompileError(RejectedError):
    """The compiler refused a kernel, or its code needs more than the GPU has."""


class WrongResultError(RejectedError):
    """A candidate's output is not the layer's."""


class ProblemError(Exception):
    """No candidate can be judged for a problem: its inputs do not fit.  Other problems may."""


class TuneError(RuntimeError):
    """The search cannot go on; the message says what to do."""
