"""A page that shows what does not come out, or runs what does not run, is noticed, with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from sybil.example import SybilFailure

from tests.docs import pages


def run(text: str, folder: Path) -> int:
    page = folder / "page.md"
    page.write_text(text)
    return pages.run(page, folder)


def test_blocks_share_names_and_folders(tmp_path: Path) -> None:
    text = """# A page
```python
from pathlib import Path

kept = 3
Path("made").write_text("by Python")
```
Words.
```console
$ cat made
by Python
$ echo one two \\
    three
one two three
$ python -c "print(1)" | cat
1
$ ssdgen show plan dt_cumsum
kernel dt_cumsum
...
```
```python
print("kept", kept)
print("a long line that is left out")
print("end")
```
```text
kept 3
...
end
```
"""
    before = Path.cwd()
    assert run(text, tmp_path) == 6
    assert Path.cwd() == before and (tmp_path / "work" / "made").exists()


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("```python\nprint(1)\n```\n```text\n2\n```\n", "printed\n1\n"),
        ("```console\n$ echo one\ntwo\n```\n", "printed\none\n"),
        ("```console\n$ ls missing\n```\n", "ended with"),
        ("```console\n$ ssdgen show plan no_such_kernel\n```\n", "ended with"),
        ("```console\n$ false | cat\n```\n", "ended with 1"),
    ],
)
def test_what_is_not_so_is_a_failure(block: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SybilFailure) as raised:
        run(f"# A page\n\n{block}", tmp_path)
    assert said in str(raised.value) and "page.md, line" in str(raised.value)


def test_an_exception_has_the_line_of_the_page(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        run("# A page\n\n```python\none = 1\none / 0\n```\n", tmp_path)
    last = raised.traceback[-1]
    assert Path(last.path).name == "page.md" and last.lineno + 1 == 5


def test_a_console_block_without_a_command_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="begins with a command"):
        run("```console\nls\n```\n", tmp_path)
