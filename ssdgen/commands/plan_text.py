"""A plan as a person reads it.  plan.Kernel -> text -> show"""

from __future__ import annotations

from collections.abc import Iterator

from ..plan import ir


def text(kernel: ir.Kernel) -> str:
    """What a kernel takes, how it is launched and what it does, one statement a line."""
    lines = [f"kernel {kernel.name}", f"  {kernel.about}", f"  grid: {', '.join(kernel.grid)}", "  tensors:"]
    for tensor in kernel.tensors:
        condition = f", if {tensor.flag}" if tensor.flag else ""
        way = "out" if tensor.out else "in"
        lines.append(f"    {way:3} {tensor.name}[{', '.join(tensor.dims)}]: {tensor.dtype}{condition}")
    for title, names in (
        ("sizes", (*kernel.sizes, *kernel.reals)),
        ("constants", kernel.constants),
        ("options", kernel.flags),
    ):
        lines.append(f"  {title}: {', '.join(names) or 'none'}")
    return "\n".join([*lines, "  body:", *_lines(kernel.body, "    ")]) + "\n"


def _lines(body: tuple[ir.Stmt, ...], pad: str) -> Iterator[str]:
    for stmt in body:
        if isinstance(stmt, ir.When):
            yield f"{pad}when {stmt.condition}"
            yield from _lines(stmt.body, pad + "  ")
            if stmt.otherwise:
                yield f"{pad}otherwise"
                yield from _lines(stmt.otherwise, pad + "  ")
        elif isinstance(stmt, ir.For):
            yield f"{pad}for {stmt.var} in 0 .. {stmt.trips}"
            yield from _lines(stmt.body, pad + "  ")
        elif isinstance(stmt, ir.Aside):
            yield f"{pad}aside    {', '.join(map(_value, stmt.values))} by another warp"
            yield from _lines(stmt.body, pad + "  ")
        else:
            yield pad + _line(stmt)


def _line(stmt: ir.Stmt) -> str:
    match stmt:
        case ir.Note():
            return f"# {stmt.text}"
        case ir.Scalar():
            return f"scalar   {stmt.name} = {stmt.expr}"
        case ir.Arange():
            return f"offsets  {stmt.name}[{stmt.axis}] = 0 .. {stmt.size}"
        case ir.Mask():
            also = "".join(f" and {condition}" for condition in stmt.also)
            return f"mask     {stmt.name}[{stmt.axis}] = {stmt.offsets} < {stmt.limit}{also}"
        case ir.Load():
            return f"load     {_value(stmt.out)} = {stmt.tensor}[{_index(stmt.index)}]{_how(stmt.descriptor)}"
        case ir.Store():
            return f"store    {stmt.tensor}[{_index(stmt.index)}] = {_value(stmt.value)}{_how(stmt.descriptor)}"
        case ir.Full():
            return f"fill     {_value(stmt.out)} = {stmt.value:g}"
        case ir.Let():
            return f"compute  {_value(stmt.out)} = {stmt.formula}"
        case ir.Dot():
            sign = "+=" if stmt.acc else "="
            return f"contract {_value(stmt.out)} {sign} {_value(stmt.left)} . {_value(stmt.right)} over {stmt.over}"
        case ir.Rest():
            return f"rest     {_value(stmt.out)} = what rounding {_value(stmt.of)} leaves out"
        case ir.Cumsum():
            way = " from its end" if stmt.reverse else ""
            return f"scan     {_value(stmt.out)} = running sum of {_value(stmt.of)} along {stmt.along}{way}"
        case ir.Sum():
            return f"sum      {_value(stmt.out)} = sum of {_value(stmt.of)} along {stmt.along}"
        case ir.Largest():
            return f"largest  {_value(stmt.out)} = largest |{_value(stmt.of)}| along {stmt.along}"
        case ir.Widen():
            return f"widen    {_value(stmt.out)} = {_value(stmt.of)} as fp32"
        case ir.Narrow():
            return f"narrow   {_value(stmt.out)} = {_value(stmt.of)} in the state's format"
        case ir.InWords():
            return f"pack     {_value(stmt.out)} = {_value(stmt.of)}, two of 16 bits to a word"
        case ir.FromWords():
            return f"unpack   {_value(stmt.out)} = {_value(stmt.of)} as fp32"
        case ir.Split():
            return f"split    {_value(stmt.first)}, {_value(stmt.second)} = numbers of each pair of {_value(stmt.of)}"
        case ir.Join():
            return f"join     {_value(stmt.out)} = pairs of {_value(stmt.first)} and {_value(stmt.second)}"
        case ir.Wait():
            return "wait for the kernel before"
        case ir.Release():
            return "let the kernel behind start"
        case ir.Begun():
            return "all loads above are on their way"
        case ir.Leave():
            return "leave"
    raise TypeError(f"no text for a {type(stmt).__name__}")


def _value(value: ir.Value) -> str:
    return f"{value.name}[{', '.join(value.axes)}]" if value.axes else value.name


def _index(index: tuple[ir.Index, ...]) -> str:
    return ", ".join(item if isinstance(item, str) else _span(item) for item in index)


def _span(span: ir.Span) -> str:
    start = "" if span.origin == "0" else f"{span.origin} + "
    return start + span.offsets + (f" where {span.mask}" if span.mask else "")


def _how(descriptor: bool) -> str:
    return "  (tensor descriptor)" if descriptor else ""
