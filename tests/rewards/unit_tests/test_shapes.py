import json

import pytest

from agentrl.rewards.unit_tests.plan import BadTests
from agentrl.rewards.unit_tests.scripts import Comparison, InputOutput
from agentrl.rewards.unit_tests.shapes import FunctionTests, ProjectTests, ScriptTests, program_of, read_tests

CASES = (InputOutput(input="1", output="2"), InputOutput(input="", output="3"))


@pytest.mark.parametrize(
    ("row", "tests"),
    [
        ({"tests": "add(1, 2) == 3", "entry": "add"}, FunctionTests(tests="add(1, 2) == 3", entry="add")),
        ({"tests": ["f(1) == 1"], "fn_name": "f", "starter_code": "def f(x):\n"},
         FunctionTests(tests=("f(1) == 1",), entry="f", prompt="def f(x):\n")),
        (
            {"test_list": ["assert f(1)"], "test_setup_code": "a = 1", "test_imports": ["import math"],
             "code": "def f(x): ...\ndef g(): ..."},
            FunctionTests(tests=("assert f(1)",), before="import math\na = 1", names=("f",)),
        ),
        ({"tests": [{"input": "1", "output": "2"}, {"output": "3"}]}, ScriptTests(cases=CASES)),
        ({"tests": json.dumps([{"input": "1", "output": "2"}, {"output": "3"}])}, ScriptTests(cases=CASES)),
        ({"input_output": json.dumps({"inputs": ["1", ""], "outputs": ["2", "3"]})}, ScriptTests(cases=CASES)),
        ({"tests": {"inputs": [["1"], []], "outputs": [["2"], "3"]}, "tolerance": 1e-6},
         ScriptTests(cases=CASES, comparison=Comparison(tokens=True, tolerance=1e-6))),
        ({"tests": {"test_a.py": "x"}, "num_tests": 3}, ProjectTests(files={"test_a.py": "x"}, num_tests=3)),
        (
            {"prompt": "import re\ndef f(x):\n    '''F.'''\n", "test": "def check(candidate): ...", "entry_point": "f"},
            FunctionTests(
                tests=("def check(candidate): ...", "check(f)"), entry="f",
                before="import re\ndef f(x):\n    '''F.'''\n", prompt="import re\ndef f(x):\n    '''F.'''\n",
            ),
        ),
        ({"prompt": "Write f.", "test": "def check(candidate): ...", "entry_point": "f"},
         FunctionTests(tests=("def check(candidate): ...", "check(f)"), entry="f")),
    ],
    ids=range(10),
)  # fmt: skip
def test_known_shapes_are_read(row, tests):
    assert read_tests(row) == tests


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"tests": ""},
        {"tests": []},
        {"tests": None},
        {"tests": [1]},
        {"tests": [{"input": "1"}]},
        {"tests": [{"input": 1, "output": "1"}]},
        {"tests": {}},
        {"tests": {"inputs": [], "outputs": []}},
        {"tests": {"inputs": ["1"], "outputs": []}},
        {"tests": {"inputs": [[1]], "outputs": [1], "fn_name": "f"}},
        {"tests": [{"output": "1"}], "tolerance": "x"},
        {"tests": [{"output": "1"}], "tolerance": -1},
        {"test": "def check(candidate): ..."},
    ],
    ids=str,
)
def test_rows_without_usable_tests_are_refused(row):
    with pytest.raises(BadTests):
        read_tests(row)


TESTS = FunctionTests(tests="f(1)", entry="f", before="import re\n", prompt="def f(x):\n    return ")


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("def f(x):\n    return 1\n", ["import re\n", "def f(x):\n    return 1\n"]),
        ("Sure.\n```python\ndef f(x):\n    return 1\n```\n", ["import re\n", "def f(x):\n    return 1\n"]),
        ("x + 1", ["def f(x):\n    return x + 1"]),
        ("```\nx + 1\n```", ["def f(x):\n    return x + 1\n"]),
        ("  ", None),
        ("```python\ndef f(x):", None),
        ("<think>def f(x): return 1", None),
    ],
)
def test_an_answer_defines_the_name_or_goes_on_from_the_prompt(answer, program):
    assert program_of(answer, TESTS) == program
