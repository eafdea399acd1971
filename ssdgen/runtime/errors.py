"""One class per mistake a caller can make.  All are ValueError, so that old `except` clauses still catch them."""

from __future__ import annotations


class SsdError(ValueError):
    """Base of every error that this package raises itself."""


class OperandError(SsdError, TypeError):
    """An operand is not a tensor at all."""


class ShapeError(SsdError):
    """An operand's shape does not fit the others."""


class DtypeError(SsdError):
    """An operand's dtype is not supported, or does not fit the others."""


class DeviceError(SsdError):
    """Operands are on different devices."""


class OptionError(SsdError):
    """An argument that is no tensor has a value that is not allowed, or misses the argument that it needs."""


class SequenceError(SsdError):
    """The contents of cu_seqlens do not cut the packed row into sequences."""


class SlotError(SsdError):
    """The contents of slot indices: a slot that the state does not have, or one that is named twice."""


class GradientError(SsdError):
    """A gradient that was handed to the backward pass does not fit the output that it is of."""


class DoubleBackwardError(SsdError, RuntimeError):
    """A gradient of a gradient was asked for; the kernels have first derivatives only."""


class CacheError(SsdError):
    """The states that a layer is to go on from do not fit the layer or the call."""


class CheckpointError(SsdError):
    """A checkpoint cannot be loaded; the message names its parameters or files."""


class RecordError(SsdError):
    """A file or folder of tuned records cannot be used; the message names it."""


class UntunedError(SsdError):
    """SSDGEN_ASSERT_TUNED=1 is set and no tuned record was found."""


class SettingError(SsdError):
    """An environment variable has a value that cannot be used."""


class SsdWarning(UserWarning):
    """The result is right, but a slower way than necessary may have been taken."""


class StrideError(SsdError):
    """A tensor that is written in place does not lie in memory as it must."""
