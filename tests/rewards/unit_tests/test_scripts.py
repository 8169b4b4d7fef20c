import pytest

from agentrl.rewards.unit_tests.scripts import Comparison, InputOutput, grade_script
from agentrl.servers.sandbox import Limits

LIMITS = Limits(cpu_s=2, wall_s=120, processes=16, file_mib=4, output_kib=64)
ADD = "a, b = map(int, input().split())\nprint(a + b)"
CASES = [InputOutput(input="1 2", output="3"), InputOutput(input="20 22\n", output="42\n")]


@pytest.mark.parametrize(
    ("code", "passed"),
    [
        (ADD, [True, True]),
        ("import sys\na, b = map(int, sys.stdin.read().split())\nsys.stdout.write(f'{a + b}  \\n\\n')", [True, True]),
        ("def main():\n    print(sum(map(int, input().split())))\nif __name__ == '__main__':\n    main()", [True, True]),
        ("print(3)", [True, False]),
        ("print(3); print(3)", [False, False]),
        (ADD + "\nraise ValueError", [False, False]),
        (ADD + "\nimport sys; sys.exit(1)", [False, False]),
        (ADD + "\nimport sys; sys.exit(0)", [True, True]),
        (ADD + "\nwhile True: pass", [False, False]),
        ("print('x' * 10**6)", [False, False]),
        ("this is no code", [False, False]),
        ("import os; os._exit(0)", [False, False]),
        ("import os; os.write(1, b'\\xff\\xfe')", [False, False]),
    ],
)
def test_what_is_printed_decides(code, passed):
    limits = Limits(cpu_s=1, wall_s=120, processes=16, file_mib=4, output_kib=64)
    grade = grade_script(code, CASES, limits=limits)
    assert [case.passed for case in grade.cases] == passed
    assert grade.verdict == ("pass" if all(passed) else "fail")


def test_no_cases_cannot_be_scored():
    assert grade_script(ADD, []).verdict == "unscorable"


def test_later_cases_may_be_left_out():
    grade = grade_script("print(4)", CASES, limits=LIMITS, all_cases=False)
    assert (len(grade.cases), grade.num_passed) == (2, 0)
    assert "not run" in grade.cases[1].reason


def test_large_inputs_and_outputs_pass_through():
    numbers = " ".join(map(str, range(50_000)))
    case = InputOutput(input=numbers, output=numbers)
    limits = Limits(cpu_s=5, wall_s=120, output_kib=1024)
    assert grade_script("print(input())", [case], limits=limits).verdict == "pass"
    assert grade_script("print(1)", [InputOutput(input=numbers, output="1")], limits=limits).verdict == "pass"


@pytest.mark.parametrize(
    ("expected", "printed", "options", "same"),
    [
        ("a b", "a b\n", {}, True),
        ("a b", "a  b", {}, False),
        ("a\nb", "a  \r\nb\n\n", {}, True),
        ("a\nb", "a\n\nb", {}, False),
        ("a b", " a\n\tb", {"tokens": True}, True),
        ("a b", "a", {"tokens": True}, False),
        ("", "", {"tokens": True}, True),
        ("", "x", {}, False),
        ("0.3333", "0.33334", {"tokens": True, "tolerance": 1e-4}, True),
        ("0.3333", "0.3343", {"tokens": True, "tolerance": 1e-4}, False),
        ("1000000.0", "1000001.0", {"tokens": True, "tolerance": 1e-5}, True),
        ("10", "11", {"tokens": True, "tolerance": 0.5}, False),
        ("10", "10.0", {"tokens": True, "tolerance": 1e-6}, True),
        ("1", "nan", {"tokens": True, "tolerance": 0.5}, False),
        ("1", "inf", {"tokens": True, "tolerance": 0.5}, False),
        ("1e3", "1000.0001", {"tokens": True, "tolerance": 1e-6}, True),
        ("1.0", "1_0", {"tokens": True, "tolerance": 0.9}, False),
        ("yes", "Yes", {"tokens": True, "tolerance": 0.5}, False),
    ],
)
def test_outputs_are_compared_as_asked(expected, printed, options, same):
    assert Comparison(**options).same(expected, printed) is same


@pytest.mark.parametrize(
    "code",
    [
        "print(9)\nexit()",
        "print(9)\nquit(0)",
        "import atexit\natexit.register(print, 9)",
        "import atexit\natexit.register(print, 9)\nexit()",
        "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.05), print(9))).start()",
        "import io, os, sys, atexit\nout = sys.stdout = io.StringIO()\n"
        "atexit.register(lambda: os.write(1, out.getvalue().encode()))\nprint(9)",
    ],
)
def test_programs_end_as_under_python_itself(code):
    assert grade_script(code, [InputOutput(input="", output="9")]).verdict == "pass"


@pytest.mark.parametrize("code", ["print(9)\nexit(1)", "print(9)\nexit('no')"])
def test_a_program_that_exits_with_a_status_fails(code):
    assert grade_script(code, [InputOutput(input="", output="9")]).verdict == "fail"
