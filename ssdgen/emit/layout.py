"""Line breaks as `ruff format` makes them, for the statements that templates write on one line.  text -> text"""

from __future__ import annotations

WIDTH = 120


def _matching(text: str, close: int) -> int:
    """Where the bracket opens that closes at `close`."""
    depth = 0
    for at in range(close, -1, -1):
        if text[at] in ")]}":
            depth += 1
        elif text[at] in "([{":
            depth -= 1
            if depth == 0:
                return at
    raise ValueError(f"unbalanced brackets in {text!r}")


def _arguments(text: str) -> list[str]:
    """Split at the commas that stand outside brackets."""
    parts, depth, start = [], 0, 0
    for at, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    return [*parts, text[start:].strip()]


def _terms(text: str, operators: tuple[str, ...] = (" + ", " - ")) -> list[str]:
    """Split a sum at the operators that stand outside brackets; each term but the first keeps its operator."""
    parts, depth, start = [], 0, 0
    for at, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if depth == 0 and text[at : at + 3] in operators:
            parts.append(text[start:at])
            start = at + 1
    # a product is split at its factors
    if not parts and "*" not in operators[0]:
        return _terms(text, (" * ",))
    return [*parts, text[start:]]


def fit(statement: str, indent: int, width: int = WIDTH) -> list[str]:
    """A statement as lines at `indent`: whole if it fits, else its last call opened, else a line per argument."""
    pad = " " * indent
    code, _, comment = statement.partition("  # ")
    tail = f"  # {comment}" if comment else ""
    if len(pad + statement) <= width:
        return [pad + statement]
    if tail and len(pad + code) <= width:
        return [pad + code]
    body, suffix = code, ""
    if code.endswith(".to(tl.float32)"):
        body, suffix = code[: -len(".to(tl.float32)")], ".to(tl.float32)"
    if body.startswith("[") and body.endswith("]") and not _matching(body, len(body) - 1):
        # a list has a line for each entry
        entries = [fit(entry, indent + 4, width - 1) for entry in _arguments(body[1:-1])]
        return [f"{pad}[", *(line for lines in entries for line in (*lines[:-1], lines[-1] + ",")), f"{pad}]"]
    target, equals, value = body.partition(" = ")
    call_end = body.endswith(")") and _matching(body, len(body) - 1)
    whole_call = call_end and (
        len(_terms(body[:call_end])) == 1
        if not equals
        else value[: call_end - len(target) - 3].replace(".", "").replace("_", "").isalnum()
    )
    if not whole_call and not equals:
        return [pad + term for term in _terms(body + suffix)]
    if not whole_call:
        return [f"{pad}{target} = (", *fit(value + suffix, indent + 4, width), f"{pad})"]
    head, inside = body[: call_end + 1], body[call_end + 1 : -1]
    if len(pad) + 4 + len(inside) <= width:
        return [pad + head, f"{pad}    {inside}", f"{pad}){suffix}"]
    lines = [pad + head]
    for argument in _arguments(inside):
        broken = fit(argument, indent + 4, width - 1)  # a comma follows
        lines += [*broken[:-1], broken[-1] + ","]
    return [*lines, f"{pad}){suffix}"]
