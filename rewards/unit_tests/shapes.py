"""The tests of a row of a data set, in whichever of the known shapes it has, and the program that an answer makes.

Function tests: `tests` (a text, or a list of texts), `test_list` (MBPP, with `test_setup_code` or `test_imports`), or `test` with
`entry_point` and `prompt` or `starter_code` (HumanEval); the name that is tested in `entry`, `entry_point` or `fn_name`. An answer that
does not define that name goes on from `starter_code`. Input and output: `tests` as a list of `{"input": ..., "output": ...}`, or
`{"inputs": [...], "outputs": [...]}`, also in `input_output`, with `tokens` and `tolerance`. A pytest project: `tests` as
`{"path/test_x.py": text}`, with `num_tests`. A column may also be JSON text.
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentrl.rewards.code_blocks import defines_name, extract_code
from agentrl.rewards.unit_tests.plan import BadTests
from agentrl.rewards.unit_tests.scripts import EXACT, Comparison, InputOutput

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionTests:
    """Tests that call the candidate."""

    tests: str | tuple[str, ...]
    entry: str | None = None
    before: str = ""
    """Trusted code that comes before the candidate's: the imports and helpers of a prompt."""
    names: tuple[str, ...] = ()
    """Of the candidate, beside those that are found in the tests."""
    prompt: str = ""
    """Code that an answer may go on from, where it does not define `entry` itself."""
    in_place: bool = False
    """Whether arguments that a call has changed come back even where it returns something; the column `in_place`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptTests:
    """Tests of what a program prints."""

    cases: tuple[InputOutput, ...]
    comparison: Comparison = EXACT


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectTests:
    """Test files for pytest."""

    files: Mapping[str, str]
    """Path -> text of the tests, and of what belongs to them."""
    num_tests: int | None = None
    """How many tests there must be; None for as many as pytest finds, at least one."""
    entry: str | None = None


Tests = FunctionTests | ScriptTests | ProjectTests


def read_tests(row: Mapping[str, Any]) -> Tests:
    """The tests of a row. Raises `BadTests` saying what is missing, and which columns there are."""
    entry = next((str(row[name]) for name in ("entry", "entry_point", "fn_name") if row.get(name)), None)
    if isinstance(row.get("test"), str) and entry:
        return _human_eval(row, entry)
    value = next((row[name] for name in ("tests", "test_list", "input_output") if row.get(name) is not None), None)
    value = _from_json(value)
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        return ScriptTests(cases=tuple(_case(one) for one in value), comparison=_comparison(row))
    if isinstance(value, dict) and {"inputs", "outputs"} <= value.keys():
        return _columns(value, row)
    if isinstance(value, dict) and value and all(isinstance(text, str) for text in value.values()):
        return ProjectTests(files=value, num_tests=row.get("num_tests"), entry=entry)
    texts = tuple(value) if isinstance(value, list | tuple) else value
    usable = bool(texts.strip()) if isinstance(texts, str) else isinstance(texts, tuple) and all(isinstance(one, str) for one in texts)
    if texts and usable:
        names, prompt = _reference_names(row, texts), str(row.get("starter_code") or "")
        return FunctionTests(
            tests=texts, entry=entry, before=_before(row), names=names, prompt=prompt, in_place=row.get("in_place") is True
        )
    raise BadTests(
        f"the row has no tests: allowed are `tests`, `test_list`, `test` with `entry_point`, and `input_output`; got {_shown(row)}"
    )


def program_of(answer: str, tests: Tests) -> list[str] | None:
    """The code of an answer, as texts that are run one after the other; None where it has none."""
    entry = None if isinstance(tests, ScriptTests) else tests.entry
    code = extract_code(answer, entry)
    if code is None or not code.strip():
        return None
    if not isinstance(tests, FunctionTests):
        return [code]
    if tests.prompt and entry and not defines_name(code, entry):
        return [tests.prompt + code]
    return [tests.before, code] if tests.before else [code]


def _human_eval(row: Mapping[str, Any], entry: str) -> FunctionTests:
    prompt = next((row[name] for name in ("starter_code", "prompt") if isinstance(row.get(name), str)), "")
    tests = (str(row["test"]), f"check({entry})")
    try:
        ast.parse(prompt)
    except (SyntaxError, ValueError):  # it ends in the middle of the function, say, or is no code
        prompt, before = (prompt, "") if defines_name(prompt, entry) else ("", "")
    else:
        before = prompt
    return FunctionTests(tests=tests, entry=entry, before=before, prompt=prompt)


def _before(row: Mapping[str, Any]) -> str:
    imports = _from_json(row.get("test_imports"))
    parts = [*(imports if isinstance(imports, list) else []), row.get("test_setup_code"), row.get("before")]
    return "\n".join(str(part) for part in parts if part)


def _reference_names(row: Mapping[str, Any], tests: str | tuple[str, ...]) -> tuple[str, ...]:
    """Functions and classes of a reference solution that the tests read."""
    reference = next((row[name] for name in ("code", "canonical_solution") if isinstance(row.get(name), str)), "")
    try:
        defined = {node.name for node in ast.parse(reference).body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        tree = ast.parse(tests if isinstance(tests, str) else "\n".join(tests))
    except (SyntaxError, ValueError):
        return ()
    return tuple(sorted(defined & {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}))


def _case(one: Mapping[str, Any]) -> InputOutput:
    if not isinstance(one.get("output"), str) or not isinstance(one.get("input", ""), str):
        raise BadTests(f"a case of input and output holds the texts `input` and `output`; got {_shown(one)}")
    return InputOutput(input=one.get("input", ""), output=one["output"])


def _columns(value: Mapping[str, Any], row: Mapping[str, Any]) -> Tests:
    inputs, outputs = value["inputs"], value["outputs"]
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs) or not inputs:
        raise BadTests("`inputs` and `outputs` must be lists of one length, with at least one case")
    if value.get("fn_name"):
        raise BadTests("`inputs` and `outputs` are for programs that read and print; write calls as expressions: `add(1, 2) == 3`")
    pairs = [{"input": _joined(given), "output": _joined(wanted)} for given, wanted in zip(inputs, outputs, strict=True)]
    return ScriptTests(cases=tuple(_case(pair) for pair in pairs), comparison=_comparison(row))


def _joined(text: Any) -> Any:
    return "\n".join(map(str, text)) if isinstance(text, list) else text


def _comparison(row: Mapping[str, Any]) -> Comparison:
    tolerance = row.get("tolerance") or 0.0
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance < 1:
        raise BadTests(f"`tolerance` is a number from 0 to 1, got {tolerance!r:.40}")
    return Comparison(tokens=bool(row.get("tokens", tolerance > 0)), tolerance=float(tolerance))


def _from_json(value: Any) -> Any:
    """JSON text of a list or an object becomes that; other texts are left."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return found if isinstance(found, list | dict) else value
    return value


def _shown(row: Mapping[str, Any]) -> str:
    return f"the columns {', '.join(map(str, row)) or 'none'}"
