"""`ssdgen doctor`: what is here, what a call would run with and why, what is wrong.  arguments -> diagnosis -> text"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from .. import gpus
from ..tune import shapes as problems
from ..tune.shapes import DTYPES
from .failures import Failure

if TYPE_CHECKING:
    from .diagnosis import Diagnosis


@click.command()
@click.option("--shape", default="2.7b", show_default=True, help="A name, or six numbers b,L,H,P,N,G.")
@click.option("--dtype", type=click.Choice(DTYPES), default="bfloat16", show_default=True)
@click.option("--gpu", "gpu_name", metavar="NAME", help="A GPU that is not here.  [default: the one that is]")
@click.option("--json", "as_json", is_flag=True, help="For programs, and for reports of bugs.")
def doctor(shape: str, dtype: str, gpu_name: str | None, as_json: bool) -> None:
    """Say what is here, what a call of a shape would run with and why, and what is wrong.

    Every finding has the command that mends it.  Nothing is changed and nothing is compiled.  Exit code 1 if something
    does not work, 0 if it could only be better.

    \b
    Examples:
      ssdgen doctor                              this machine, and the layer of Mamba-2 2.7b
      ssdgen doctor --shape nemotron-h
      ssdgen doctor --shape 1,8192,32,64,128,1 --dtype float16
      ssdgen doctor --gpu h200                   which records and kernels an H200 would get
      ssdgen doctor --json > report.json         to go with a bug report
    """
    found = problems.parse(shape, dtype)
    if len(found) != 1:
        raise Failure(f"--shape is {shape!r}, which means {len(found)} shapes; give one: {', '.join(problems.NAMED)}")
    named = gpus.find(gpu_name) if gpu_name else None
    # torch takes a second, which a typing error need not wait for
    from .diagnosis import diagnose

    (name, problem), *_ = found.items()
    result = diagnose(problem, named)
    click.echo(json.dumps(asdict(result), indent=2, sort_keys=True) if as_json else text(result, name), nl=as_json)
    if any(finding.kind == "error" for finding in result.findings):
        sys.exit(1)


def text(found: Diagnosis, shape: str) -> str:
    """The diagnosis for a person."""
    lines = _section("Versions", found.system)
    lines += _section("GPU", {name: value for name, value in found.gpu.items() if name != "here"})
    folders = {f"{each['for']}": _folder(each) for each in found.folders}
    lines += _section("Folders", folders)
    if found.environment:
        lines += _section("Environment", found.environment)
    packs = {each["name"]: f"{each['version']}: {', '.join(each['gpus'])}; {each['use']}" for each in found.packs}
    lines += _section("Packs", packs or {"none": "`ssdgen pack install FILE.whl` installs one"})
    whole = [use for use in found.uses if use["pass"] in ("forward", "backward")]
    for use in whole:
        lines += _section(f"The {use['pass']} pass of {shape} would run", _use(use))
    if parts := {use["pass"]: _short(use) for use in found.uses if use not in whole}:
        lines += _section(f"The other parts of {shape} would run", parts)
    lines.append("What is wrong" if found.findings else "Nothing is wrong.")
    for finding in found.findings:
        lines += [f"  {finding.kind}: {finding.what}", f"      {finding.mend}"]
    return "\n".join(lines) + "\n"


def _section(title: str, rows: dict[str, Any]) -> list[str]:
    width = max(map(len, rows))
    return [title, *(f"  {name:{width}}  {value}" for name, value in rows.items()), ""]


def _folder(each: dict[str, Any]) -> str:
    state = "" if each["exists"] else ", not made yet"
    return f"{each['path']} ({each['free'] / 2**30:.0f} GiB free{state})"


def _short(use: dict[str, Any]) -> str:
    """A pass on one line."""
    record = f"; {use['record']}, {use['time_us']:.1f} us" if "record" in use else ""
    return f"{use['schedule']}, config from {use['from']}{record}"


def _use(use: dict[str, Any]) -> dict[str, str]:
    rows = {"schedule": use["schedule"], "config from": use["from"]}
    if "record" in use:
        rows["record"] = f"{use['record']}, {use['time_us']:.1f} us for {use['record_shape']}"
    for name, where in use.get("kernels", {}).items():
        rows[name] = where
    return rows
