"""What is wrong with a plan that does what no kernel may do.  -> interpret"""

from __future__ import annotations


class BrokenPlan(ValueError):
    """A plan does what no kernel may do."""


class OutOfBounds(BrokenPlan):
    """A program reaches a position that a tensor does not have."""


class Race(BrokenPlan):
    """Two programs touch one element of an output."""


class Undefined(BrokenPlan):
    """Something is read that was not made or not given."""


class Misfit(BrokenPlan):
    """Axes or extents do not agree."""
