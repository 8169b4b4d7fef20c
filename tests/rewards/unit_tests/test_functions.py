import pytest

from agentrl.rewards.unit_tests.functions import grade_functions, read_lines
from agentrl.servers.sandbox import Limits

LIMITS = Limits(cpu_s=2, wall_s=120, processes=16, file_mib=4)


def verdict(code, tests, **options):
    grade = grade_functions(code, tests, limits=LIMITS, **options)
    return grade.verdict, grade.num_passed, len(grade.cases)


STACK = """
class Stack:
    def __init__(self, *items):
        self.items = list(items)
    def push(self, item):
        self.items.append(item)
        return self
    def pop(self):
        return self.items.pop()
    def __len__(self):
        return len(self.items)
    def __getitem__(self, at):
        return self.items[at]
    def __str__(self):
        return f"Stack{self.items}"
"""


@pytest.mark.parametrize(
    ("code", "tests"),
    [
        ("def f(a, b=1, *c, d=0): return [a, b, c, d]", ["f(1) == [1, 1, (), 0]", "f(1, 2, 3, d=4) == [1, 2, (3,), 4]"]),
        ("def f(x): return x", ["f({1: {2, 3}, (4,): b'x'}) == {1: {2, 3}, (4,): b'x'}", "f(None) is None", "type(f(True)) is bool"]),
        ("def f(x): return x", ["str(f(float('nan'))) == 'nan'", "f(2**200) == 2**200", "f(1j) == 1j", "type(f(1.0)) is float"]),
        ("def f(x): x.sort()", "x = [3, 1, 2]\nassert f(x) is None\nassert x == [1, 2, 3]"),
        ("def f(d, s, b):\n    d['a'] = 1; s.add(2); b.extend(b'x')",
         "d, s, b = {}, set(), bytearray()\nf(d, s, b)\nassert (d, s, b) == ({'a': 1}, {2}, b'x')"),
        ("def f(m): m[0].append(9); m.append([])", "m = [[1]]\nf(m)\nassert m == [[1, 9], []]"),
        ("def f(n):\n    yield from range(n)", ["list(f(3)) == [0, 1, 2]", "sum(f(4)) == 6"]),
        ("import itertools\ndef f(): return itertools.count(5)", "g = f()\nassert (next(g), next(g)) == (5, 6)"),
        ("def f(g, x): return g(x) + g(1)", ["f(lambda x: x * 2, 4) == 10", "f(abs, -3) == 4", "f(str, 2) == '21'"]),
        ("def f(n): return lambda x: x + n", ["f(2)(3) == 5"]),
        ("def f(x): return 1 / x", "try:\n    f(0)\n    assert False\nexcept ZeroDivisionError as error:\n    assert 'zero' in str(error)"),
        ("class Odd(KeyError): pass\ndef f(x): raise Odd('no')", "try:\n    f(0)\n    assert False\nexcept KeyError:\n    assert True"),
        ("def f(x): raise SystemExit(2)", "try:\n    f(0)\nexcept SystemExit:\n    ok = True\nassert ok"),
        (STACK,
         "s = Stack(1)\ns.push(2).push(3)\nassert s.pop() == 3\nassert len(s) == 2 and s[0] == 1\n"
         "assert str(s) == 'Stack[1, 2]'\nassert s.items == [1, 2]"),
        ("LIMIT = 5\ndef f(x): return x + LIMIT", ["f(1) == 1 + LIMIT"]),
        ("from collections import Counter\ndef f(s): return Counter(s)", ["f('aab') == {'a': 2, 'b': 1}"]),
        ("import sys\nprint('noise', file=sys.stderr)\ndef f(x):\n    print('noise')\n    return x", ["f(1) == 1"]),
        ("def f(x): return x", "def test_one():\n    assert f(1) == 1\ndef test_two():\n    assert f(2) == 2"),
        ("from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\ndef f(x): return P(x).x",
         ["f(3) == 3"]),
    ],
    ids=range(19),
)  # fmt: skip
def test_right_code_passes(code, tests):
    grade = grade_functions(code, tests, limits=LIMITS)
    assert (grade.verdict, grade.reason) == ("pass", "")
    assert grade.num_passed == len(grade.cases) > 0


def test_each_case_has_its_verdict():
    grade = grade_functions("def f(x): return abs(x)", ["f(1) == 1", "f(-1) == -1", "assert f(2) == 2", "f(0) == None"], limits=LIMITS)
    assert [case.passed for case in grade.cases] == [True, False, True, False]
    assert grade.reason == "`f(-1) == -1` is False"
    assert grade.score("all").value == 0
    assert grade.score("fraction").value == 0.5


def test_a_check_of_human_eval_runs_unchanged():
    check = "METADATA = {'author': 'x'}\n\ndef check(candidate):\n    assert candidate([1, 2]) == 3\n    assert candidate([]) == zero()\n"
    before = "from typing import List\n\ndef zero():\n    return 0\n\ndef total(x: List[int]) -> int:\n    '''Sum.'''\n"
    options = {"entry": "total", "before": before}
    assert verdict([before, "def total(x): return sum(x)"], [check, "check(total)"], **options) == ("pass", 1, 1)
    assert (
        verdict([before, "def zero(): return None\ndef total(x): return sum(x) or None"], [check, "check(total)"], **options)[0] == "fail"
    )
    assert verdict("def other(x): return sum(x)", [check, "check(total)"], **options)[0] == "fail"


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        ("", "no case"),
        ("import nothing_of_that_name\nassert f(1) == 1", "ModuleNotFoundError"),
        ("x = 1 / 0\nassert f(1) == 1", "ZeroDivisionError"),
        ("assert 1 == 1", "never asked"),
        ("assert f(object()) == 1", "object, which cannot cross"),
        ("for x in []:\n    assert f(x)", "never asked"),
    ],
)
def test_tests_that_are_at_fault_are_unscorable(tests, reason):
    grade = grade_functions("def f(x): return x", tests, limits=LIMITS)
    assert grade.verdict == "unscorable"
    assert reason in grade.reason
    assert grade.score().value is None


def test_answers_that_leave_nothing_to_assert_fail():
    tests = "for got, wanted in zip(f(3), [1, 2, 3]):\n    assert got == wanted"
    assert verdict("def f(n): return []", tests) == ("fail", 0, 1)
    assert verdict("def f(n): return [1, 2, 3]", tests) == ("pass", 1, 1)


def test_a_name_of_pythons_can_be_tested_where_it_is_told():
    code, tests = "def sum(a, b): return a * 2 + b", ["assert sum(10, 15) == 35"]
    assert verdict(code, tests, names=["sum"]) == ("pass", 1, 1)
    assert verdict(code, tests, entry="sum") == ("pass", 1, 1)
    assert verdict(code, tests)[0] == "unscorable"


def test_a_list_that_was_emptied_measures_nothing():
    tests = "x = [3, 1, 2]\nassert f(x) == sorted(x)"
    assert verdict("def f(x):\n    x.clear()\n    return []", tests)[0] == "fail"
    assert verdict("def f(x):\n    x.sort()\n    return x", tests)[0] == "pass"
    pop = ("def f(x):\n    x.pop()\n    return len(x)", "x = [1, 2, 3]\nassert f(x) == 2\nassert x == [1, 2]")
    assert verdict(*pop)[1:] == (1, 2)
    assert verdict(*pop, in_place=True) == ("pass", 2, 2)


def test_a_candidate_cannot_make_itself_unscorable():
    burn = "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (1, 1))\ndef f(x):\n    while True:\n        pass"
    assert verdict(burn, ["f(1) == 1"])[0] == "fail"
    last = "import os\ntry:\n    os.nice(19)\nexcept OSError:\n    refused = True\ndef f(x): return refused"
    assert verdict(last, ["f(1) is True"])[0] == "pass"
    assert verdict("def f(x): return 1", ["f(N) == 1"])[0] == "fail"
    assert verdict("N = 'x'\ndef f(x): return 1", "n = N + 1\nassert f(n) == 1")[0] == "fail"
    assert verdict("f = 3", ["f(1) == 1"])[0] == "fail"


def test_runs_know_nothing_of_each_other():
    leave = "open('/tmp/left', 'w').write('x')\nimport sys, json\njson.left = 1\nsys.modules['left'] = json\ndef f(): return 1"
    look = "import os, sys, json\ndef f(): return os.path.exists('/tmp/left') or hasattr(json, 'left') or 'left' in sys.modules"
    assert verdict(leave, ["f() == 1"]) == ("pass", 1, 1)
    assert verdict(look, ["f() == False"]) == ("pass", 1, 1)


def test_lines_that_are_no_objects_become_empty_ones():
    assert read_lines(b'{"a": 1}\n[1]\nnonsense\n' + b"[" * 100000) == [{"a": 1}, {}, {}, {}]
