"""The command `agentrl grade`: a verdict a row of a file, to audit a grader or the golds of a data set."""

from __future__ import annotations

import importlib
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from agentrl.errors import ConfigError

KINDS = {
    "math": "agentrl.rewards.math_rows:grade_rows",
    "code": "agentrl.rewards.unit_tests.rows:grade_rows",
    "tool-calls": "agentrl.rollout.toolcall_rows:grade_rows",
}
"""Kind of rows -> `grade_rows(rows) -> iterator of results, one a row and in order`, by its dotted name."""
DIFFERENT = 1
"""Exit status with `--check` where a row's result is not what the row expects."""

File = Annotated[Path, typer.Argument(metavar="FILE.jsonl", help="One JSON object a line.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object a row.")]
Check = Annotated[bool, typer.Option("--check", help="Exit with 1 where a row expects another result.")]


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    grade = typer.Typer(help="Grade the rows of a file, to audit a grader.", no_args_is_help=True, rich_markup_mode=None)
    grade.command("math")(math)
    grade.command("code")(code)
    grade.command("tool-calls")(tool_calls)
    app.add_typer(grade, name="grade")


def math(file: File, as_json: AsJson = False, check: Check = False) -> None:
    """Grade rows with `gold` and `answer`; `grader`, `options` and `policy` are optional."""
    _grade("math", file, as_json=as_json, check=check)


def code(file: File, as_json: AsJson = False, check: Check = False) -> None:
    """Run rows with `solution`, `tests` and `entry` in a sandbox."""
    _grade("code", file, as_json=as_json, check=check)


def tool_calls(file: File, as_json: AsJson = False, check: Check = False) -> None:
    """Read the tool calls in rows with `text` and `tools`."""
    _grade("tool-calls", file, as_json=as_json, check=check)


def _grade(kind: str, file: Path, *, as_json: bool, check: bool) -> None:
    from agentrl.cli import exit_status

    with exit_status():
        module, _, name = KINDS[kind].partition(":")
        grade_rows = getattr(importlib.import_module(module), name)  # by name: the core imports no rewards
        found = graded(file, grade_rows, show=lambda line: typer.echo(line), as_json=as_json)
        typer.echo(summary(found), err=True)
        if check and found["different"]:
            raise typer.Exit(DIFFERENT)


def graded(
    file: Path,
    grade_rows: Callable[[Iterable[Mapping[str, Any]]], Iterator[Mapping[str, Any]]],
    *,
    show: Callable[[str], None],
    as_json: bool,
) -> Counter[str]:
    """Grade a file and show a line a row.

    A row that carries `verdict`, `verdict_in` or `calls` expects them.

    Returns: how many `rows` there were, how many with each verdict (`verdict: correct`), how many that were `expected` to have a result,
        and how many of those were `different`.
    Raises: `ConfigError` naming the line, where the file cannot be read or a row is not what the grader takes.
    """
    reader = _Reader(file)
    counts: Counter[str] = Counter()
    try:
        for result in grade_rows(reader.rows()):
            line, row = reader.waiting.popleft()
            expected = expectation(row)
            differs = expected is not None and not meets(row, result)
            counts.update(
                {
                    "rows": 1,
                    f"verdict: {result.get('verdict', 'read')}": 1,
                    "expected": int(expected is not None),
                    "different": int(differs),
                }
            )
            show(json.dumps({"line": line, **result}) if as_json else _words(line, result, expected if differs else None))
    except ConfigError as error:
        raise error if str(error).startswith(str(file)) else ConfigError(f"{file}, line {reader.line}: {error}") from None
    return counts


def expectation(row: Mapping[str, Any]) -> str | None:
    """What a row expects, in words; None where it expects nothing."""
    if "verdict_in" in row:
        return " or ".join(map(str, row["verdict_in"]))
    return next((json.dumps(row[key]) if key == "calls" else str(row[key]) for key in ("verdict", "calls") if key in row), None)


def meets(row: Mapping[str, Any], result: Mapping[str, Any]) -> bool:
    """Whether a result is what its row expects. Of a call that is expected to be malformed the wording does not matter."""
    if "calls" in row:
        calls, wanted = result.get("calls", []), row["calls"]
        return len(calls) == len(wanted) and all(map(_same_call, wanted, calls))
    return result.get("verdict") in (row["verdict_in"] if "verdict_in" in row else [row["verdict"]])


def summary(counts: Counter[str]) -> str:
    """One line: how many rows, with which verdicts, and how many differ from what they expect."""
    verdicts = [f"{number} {key.partition(': ')[2]}" for key, number in sorted(counts.items()) if key.startswith("verdict: ")]
    checked = f"; {counts['different']} of {counts['expected']} differ from what they expect" if counts["expected"] else ""
    noun = "row" if counts["rows"] == 1 else "rows"
    return f"{counts['rows']} {noun}: {', '.join(verdicts) or 'none'}{checked}"


class _Reader:
    """The rows of a file, and which of them wait for their results."""

    def __init__(self, file: Path) -> None:
        self.line = 0
        self.waiting: deque[tuple[int, Mapping[str, Any]]] = deque()
        self._file = file

    def rows(self) -> Iterator[dict[str, Any]]:
        try:
            with self._file.open(encoding="utf-8") as lines:
                for self.line, text in enumerate(lines, start=1):
                    if text.strip():
                        row = self._row(text)
                        self.waiting.append((self.line, row))
                        yield row
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self._file}, after line {self.line}: cannot be read: {error}") from error

    def _row(self, text: str) -> dict[str, Any]:
        try:
            row = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ConfigError(f"{self._file}, line {self.line}: not JSON ({error}); a row is one JSON object a line") from None
        if not isinstance(row, dict):
            raise ConfigError(f"{self._file}, line {self.line}: a row is a JSON object, got {text.strip()[:80]!r}")
        return row


def _same_call(wanted: Mapping[str, Any], got: Mapping[str, Any]) -> bool:
    if "malformed" in wanted or "malformed" in got:
        return "malformed" in wanted and "malformed" in got
    return all(wanted.get(key) == got.get(key) for key in ("name", "arguments"))


def _words(line: int, result: Mapping[str, Any], expected: str | None) -> str:
    said = result["verdict"] if "verdict" in result else json.dumps(result.get("calls", []))
    wanted = "" if expected is None else f"  (expected {expected})"
    why = result.get("reason") or (f"read {result['answer']}" if result.get("answer") else "")
    return " ".join(f"{line:>5}  {said:<10}  {why}{wanted}".rstrip().splitlines())
