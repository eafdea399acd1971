"""`ssdgen tune`: the best config for each shape, measured or predicted.  arguments -> campaign -> records"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Literal

import click
from click.core import ParameterSource

from .. import gpus
from ..gpus import Gpu
from ..pack import templates
from ..pack.records import BACKWARD, CONV, DECODE, DIRECTIONS, FORWARD, NORM, REPLAY, Direction
from ..plan.problem import OTHER_LAYOUTS
from ..tune import budget as budgets
from ..tune import shapes as problems
from ..tune.errors import TuneError
from .failures import Failure

# a compiled candidate takes seconds and a measured one less, so a campaign of all shapes ends within minutes in both
PREDICTED_TRIALS = 24

# what a run is, and is not changed by those who join it
DECIDED = ("shapes", "which", "dtype", "layout", "trials", "max_error", "seed", "timing", "l2")

# what --pass may say: passes of the scan, parts of the layer, and what a step of training runs of them
SCOPES: dict[str, tuple[Direction, ...]] = {
    "forward": (FORWARD,),
    "backward": (BACKWARD,),
    "both": (FORWARD, BACKWARD),
    "decode": (DECODE, REPLAY),
    "conv": CONV,
    "norm": NORM,
    "layer": (FORWARD, BACKWARD, "conv_forward", "conv_backward", *NORM),
    "all": DIRECTIONS,
}

EPILOG = """
\b
Shapes, as b,L,H,P,N,G (batch, seqlen, nheads, headdim, dstate, ngroups):
""" + "\n".join(f"  {name:12} {','.join(map(str, sizes))}" for name, sizes in problems.NAMED.items())


@click.command(epilog=EPILOG)
@click.option("--gpu", "gpu_name", metavar="NAME", help="The GPU to tune for.  [default: the one that is here]")
@click.option("--predict", is_flag=True, help="Compile and model instead of measuring; where no GPU is, always.")
@click.option("--shapes", default=problems.ALL, show_default=True, help="Names or numbers, separated by commas.")
@click.option(
    "--pass",
    "which",
    type=click.Choice([*SCOPES, *(each for each in DIRECTIONS if each not in SCOPES)]),
    metavar=f"[{'|'.join(SCOPES)}]",
    default="both",
    show_default=True,
    help="Of the scan its result, its gradients or both; its decode step, with and without replay; the convolution; "
    "the gated norms; layer: what training runs of these; all.  One alone goes by its file: norm_backward, replay, ...",
)
@click.option("--dtype", type=click.Choice(problems.DTYPES), default="bfloat16", show_default=True)
@click.option(
    "--layout",
    type=click.Choice(problems.LAYOUTS),
    default=problems.MULTI_INPUT,
    show_default=True,
    help="Which operands have heads of their own, as in `ssd`; the others have ngroups.  For any mask: decays are "
    "given for every token.",
)
@click.option(
    "--budget", default="8m", show_default=True, help="Time for all shapes and passes together: 90s, 8m, 1h30m."
)
@click.option("--trials", type=click.IntRange(min=1), help="Candidates per shape and pass at most.")
@click.option(
    "--max-error",
    type=click.FloatRange(min=0.0, min_open=True),
    metavar="FLOAT",
    help="Leave out what is less accurate, relative to float64 in the 2-norm: in bf16 mamba_ssm's y is within 1.9e-3.  "
    "[default: what rounding explains]",
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of records.  [default: where they are looked up]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the search and of the inputs.")
@click.option("--timing", type=click.Choice(["graph", "eager"]), default="graph", show_default=True)
@click.option(
    "--l2", type=click.Choice(["cold", "warm"]), default="cold", show_default=True, help="Cache before a call."
)
@click.option("--jobs", type=click.IntRange(min=1), help="Processes that compile.  [default: one per core]")
@click.option(
    "--storage",
    envvar="SSDGEN_STORAGE",
    metavar="FILE|URL",
    help="Where trials are kept: a journal file, or a database such as postgresql://... for several machines; also "
    "SSDGEN_STORAGE.  [default: a file of this GPU in ~/.cache/ssdgen/studies]",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the newest run for this GPU in the storage; one that has ended, for --budget.",
)
@click.option("--worker", is_flag=True, help="Help with a run that another process has started in the storage.")
@click.pass_context
def tune(
    context: click.Context,
    gpu_name: str | None,
    predict: bool,
    shapes: str,
    which: str,
    dtype: str,
    layout: str,
    budget: str,
    trials: int | None,
    max_error: float | None,
    out: Path | None,
    seed: int,
    timing: str,
    l2: str,
    jobs: int | None,
    storage: str | None,
    resume: bool,
    worker: bool,
) -> None:
    """Find the fastest configuration for each shape: of the scan's passes, the decode step, the convolution, the norms.

    With a GPU every candidate is compared with float64 first, gradient by gradient in the backward pass, then timed,
    and the best few are timed once more side by side.  Without one, or with --predict, candidates are compiled for the
    GPU and ranked by registers, spills, shared memory and a roofline model; such records are marked as predicted, and a
    measured one always wins.

    Ctrl-C stops and keeps what was found.  Records go to FOLDER/<arch>_<gpu>/ssd_PASS.json and are used from then on by
    `import mamba2_ops`.  Decode records are for one token, several batches and states of 32, 16 and 8 bits; those of
    the convolution for channels or positions side by side, and for one new token.  Every trial is written down before
    it begins and when it ends: after a crash --resume goes on where it stopped, and with a --budget a run that has
    ended goes on for so long.  Other processes, on this GPU's kind, help with --worker.

    \b
    Examples:
      ssdgen tune                                  all shapes on this GPU, in eight minutes
      ssdgen tune --shapes 2.7b,nemotron-h --budget 2m
      ssdgen tune --shapes 1,8192,32,64,128,1      a shape of your own
      ssdgen tune --pass backward --shapes 2.7b    the gradients alone
      ssdgen tune --pass decode --shapes 2.7b --budget 1m   one token, batches of 1 to 256
      ssdgen tune --pass layer --shapes 2.7b       all that a step of training runs
      ssdgen tune --pass norm_backward --shapes 2.7b --budget 1m
      ssdgen tune --layout multi-contract --shapes 2.7b     multi-query attention's heads
      ssdgen tune --gpu h200                       on a laptop: predict for an H200
      ssdgen tune --resume                         after a crash
      ssdgen tune --resume --budget 30m            or, where all searches have ended, for longer
      ssdgen tune --storage postgresql://host/db   and on other machines: the same with --worker
      torchrun --nproc-per-node 4 --no-python ssdgen tune    on four GPUs of this machine
    """
    directions = SCOPES.get(which) or tuple(each for each in DIRECTIONS if each == which)
    if layout in OTHER_LAYOUTS and not set(directions) <= {FORWARD, BACKWARD}:
        raise TuneError(f"--layout {layout} is of the scan alone, and --pass is {which}: leave one of them out")
    wanted = problems.parse(shapes, dtype, layout)
    seconds = budgets.seconds(budget)
    join = _join(context, resume, worker)
    named = gpus.find(gpu_name) if gpu_name else None

    _require_triton()
    # torch and optuna take seconds to import, which `ssdgen --help` and a typing error need not wait for
    from ..tune import device, ranks, session

    ranks.take_own_gpu()
    here = device.name_here()
    predicted = predict or here is None
    gpu = _target(named, here, predicted)
    root = out or default_root()
    own = ranks.here()
    if own.rank == 0:
        click.echo(_announcement(gpu, here, predicted, root))
    options = session.Options(
        root=root,
        predicted=predicted,
        # a worker stops when the run does
        seconds=None if join and not _given(context, "budget") else seconds,
        trials=trials or (PREDICTED_TRIALS if predicted else None),
        seed=seed,
        timing=timing,
        l2=l2,
        jobs=jobs,
        storage=storage,
        join=join,
        ranks=own,
        directions=directions,
        max_error=max_error,
    )
    with _terminate_as_interrupt():
        rows = session.run(wanted, gpu, options)
    if any(row.outcome.stopped for row in rows):
        click.echo("stopped; what was found is kept", err=True)
        sys.exit(130)
    if missing := [row.name for row in rows if row.outcome.best is None]:
        raise Failure(f"no candidate passed for {', '.join(missing)}; the reasons stand above")


def _join(context: click.Context, resume: bool, worker: bool) -> Literal["resume", "work"] | None:
    """How to go on with a run that is there.  Errors: TuneError for options that this run has decided already."""
    if resume and worker:
        raise TuneError("--resume and --worker are both given; --resume goes on alone, --worker beside the others")
    if not (resume or worker):
        return None
    given = [name for name in DECIDED if _given(context, name)]
    if given:
        options = ", ".join("--pass" if name == "which" else f"--{name.replace('_', '-')}" for name in given)
        which = "--resume" if resume else "--worker"
        raise TuneError(f"{which} does what the run was started with: leave out {options}, or start anew")
    return "resume" if resume else "work"


def _given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) == ParameterSource.COMMANDLINE


def default_root() -> Path:
    """The checkout's tuned/, or for an installed package the user's cache, which is looked up before what it ships."""
    from ..mamba2_ops import ladder

    shipped = templates.data_folder("tuned")
    return ladder.user_cache() if shipped.parent.name == "_data" else shipped


def _target(named: Gpu | None, here: str | None, predicted: bool) -> Gpu:
    """Which GPU to tune for.  Errors: TuneError where the one that was named is not the one to measure on."""
    from ..tune import device

    if predicted:
        if named is None and here is None:
            known = ", ".join(gpu.name for gpu in gpus.KNOWN)
            raise TuneError(f"there is no GPU here to measure on; name one to predict for with --gpu: {known}")
        return named or device.gpu_here()
    gpu = device.gpu_here()
    if named is not None and named.name != gpu.name:
        raise TuneError(
            f"--gpu {named.name} is not the GPU that is here, which is {here} ({gpu.name}); leave --gpu out to measure "
            f"on it, or add --predict to compile for {named.name}"
        )
    return gpu


def _announcement(gpu: Gpu, here: str | None, predicted: bool, root: Path) -> str:
    if predicted:
        why = "no GPU here" if here is None else "as asked"
        text = f"Predicting for {gpu.name} ({gpu.arch}) by compiling for it, {why}; records go to {root / gpu.folder}"
        if gpu.arch in gpus.WITHOUT_MATRIX_UNITS:
            text += (
                f"\nTriton does not use the tensor cores of {gpu.arch}: large tiles spill, take minutes to compile and "
                "are mostly rejected; raise --budget, and use --dtype float16, since bf16 is emulated there"
            )
        return text
    return f"Measuring on {here} ({gpu.arch}); records go to {root / gpu.folder}"


def _require_triton() -> None:
    if find_spec("triton") is None:
        raise TuneError("Triton is not installed, and there is no build of it for every system; tune on Linux")


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """A polite kill, by a batch system for example, is a Ctrl-C: what was found is kept."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
