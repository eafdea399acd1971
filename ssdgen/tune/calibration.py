"""The model's constants from measured candidates, and how well it ranks those it has not seen.  Sample -> Constants

A coordinate search on the logarithms: each constant in turn is multiplied and divided by a step that shrinks.  What it
makes small is the error of the logarithm of the time: what ranks is the ratio of two times, not their difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from math import exp, log
from statistics import fmean, median

from ..gpus import Gpu
from . import model
from .compile import Compiled
from .counted import Work
from .model import Constants

# where a search begins: round numbers of the right order
BEGIN = Constants(
    launch_us=2.5,
    memory_share=0.9,
    l2_over_memory=2.0,
    trip=700.0,
    product=350.0,
    load=1400.0,
    entry=8.0,
    entry_apart=4.0,
    spill=20.0,
    crossing=1.5,
    overlap=0.2,
)
# of a constant that is a share
MOST = {"memory_share": 1.0, "l2_over_memory": 3.0, "overlap": 0.95}
LEAST = {"crossing": 1.0, "launch_us": 0.5}
# an error of the logarithm that counts as far
FAR = 0.3
# the steps of the search, as factors
STEPS = (1.6, 1.25, 1.1, 1.04)


@dataclass(frozen=True)
class Timed:
    """One launch of a candidate.  us: what it took alone, or None if only the whole call was timed."""

    work: Work
    code: Compiled
    dtype: str
    num_stages: int
    us: float | None = None


@dataclass(frozen=True)
class Sample:
    """A measured candidate.  shape: what is held out together; run: candidates of one compare.  us: of the call."""

    gpu: Gpu
    direction: str
    shape: str
    run: str
    launches: tuple[Timed, ...]
    us: float


def predicted(sample: Sample, constants: Constants | None = None) -> float:
    """Microseconds of a call."""
    return sum(_time(sample, launch, constants) for launch in sample.launches)


def fit(samples: Sequence[Sample], begin: Constants = BEGIN) -> Constants:
    """The constants that agree best.  Errors: ValueError without samples."""
    if not samples:
        raise ValueError("there is nothing to fit to; measure candidates with benchmarks/candidates.py")
    best, error = begin, loss(samples, begin)
    for step in STEPS:
        improved = True
        while improved:
            improved = False
            for name, value in asdict(best).items():
                for factor in (step, 1 / step):
                    changed = min(MOST.get(name, 1e9), max(LEAST.get(name, 1e-6), value * factor))
                    tried = replace(best, **{name: changed})
                    if (now := loss(samples, tried)) < error * (1 - 1e-4):
                        best, error, improved = tried, now, True
                        break
    return best


def loss(samples: Iterable[Sample], constants: Constants) -> float:
    """Mean error of the logarithm of the time, squared as far as it is small; of launches where they were timed."""
    errors: list[float] = []
    for sample in samples:
        timed = [launch for launch in sample.launches if launch.us]
        pairs = [(_time(sample, launch, constants), launch.us) for launch in timed if launch.us]
        # what a kernel of a few microseconds takes decides nothing
        weights = [measured / sample.us for _, measured in pairs]
        if not timed:
            pairs, weights = [(predicted(sample, constants), sample.us)], [1.0]
        errors += [weight * _error(guess / measured) for (guess, measured), weight in zip(pairs, weights, strict=True)]
    return fmean(errors)


def held_out(samples: Sequence[Sample], fit: Callable[[Sequence[Sample]], Constants] = fit) -> list[float]:
    """What is predicted for each sample by constants that were fitted without any of its shape."""
    found: dict[str, Constants] = {}
    for shape in {sample.shape for sample in samples}:
        found[shape] = fit([sample for sample in samples if sample.shape != shape])
    return [predicted(sample, found[sample.shape]) for sample in samples]


@dataclass(frozen=True)
class Quality:
    """How candidates of one group were ranked.

    rho: Spearman's rank correlation; ratio: what the predicted best was measured to take, over the measured best;
    scale: median of predicted over measured time.
    """

    count: int
    rho: float
    ratio: float
    scale: float


def quality(pairs: Sequence[tuple[float, float]]) -> Quality:
    """pairs: (predicted, measured) microseconds of candidates that compare."""
    guesses, times = zip(*pairs, strict=True)
    ratio = min(pairs)[1] / min(times)
    return Quality(len(pairs), spearman(guesses, times), ratio, median(g / t for g, t in pairs))


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation; equal values have their mean rank.  0 where one side has but one value."""
    a, b = _ranks(first), _ranks(second)
    mean = (len(a) - 1) / 2
    top = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    bottom = (sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b)) ** 0.5
    return top / bottom if bottom else 0.0


def geometric(values: Sequence[float]) -> float:
    """Geometric mean."""
    return exp(fmean(log(value) for value in values))


def _error(ratio: float) -> float:
    """Of one time: quadratic near 1, linear far from it, so that a freak does not bend everything."""
    far = abs(log(ratio))
    return far * far if far < FAR else FAR * (2 * far - FAR)


def _time(sample: Sample, launch: Timed, constants: Constants | None) -> float:
    return model.launch_time(launch.work, launch.code, sample.gpu, launch.dtype, launch.num_stages, constants).us


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    at = 0
    while at < len(order):
        end = at
        while end + 1 < len(order) and values[order[end + 1]] == values[order[at]]:
            end += 1
        for place in order[at : end + 1]:
            ranks[place] = (at + end) / 2
        at = end + 1
    return ranks
