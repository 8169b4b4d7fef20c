import pytest

from agentrl.rewards.unit_tests.plan import BadTests, free_names, modules_meant, num_cases, plan_of

CHECK = "METADATA = {}\ndef check(candidate):\n    assert candidate(1) == 2\n"


@pytest.mark.parametrize(
    ("tests", "kinds"),
    [
        ("add(1, 2) == 3", ["true"]),
        ("assert add(1, 2) == 3\nassert add(2, 2) == 4", ["run", "run"]),
        ("x = [1]\nsort(x)\nassert x == [1]", ["prepare", "prepare", "run"]),
        ("prime(7)", ["true"]),
        ("s = Stack()\ns.push(1)\ns.pop() == 1", ["prepare", "prepare", "true"]),
        ("for x in range(3):\n    assert f(x) == x", ["run"]),
        ("assert_equal(f(1), 2)", ["run"]),
        ("'''About.'''\nassert f(1)", ["prepare", "run"]),
        (["prime(7)", "not prime(8)"], ["true", "true"]),
        (["x = 1", "assert f(x) == 2", "y = f(2)\nassert y\nassert not f(y)"], ["prepare", "run", "run"]),
        ([CHECK, "check(f)"], ["prepare", "run"]),
        (CHECK + "check(f)", ["prepare", "prepare", "run"]),
        ("def test_a():\n    assert f(1)\ndef test_b():\n    assert f(2)\ndef test_c(x):\n    pass", ["prepare"] * 3 + ["run"] * 2),
        ("def test_a():\n    assert f(1)\ntest_a()", ["prepare", "run"]),
    ],
)
def test_statements_become_steps(tests, kinds):
    steps = plan_of(tests)
    assert [step.kind for step in steps] == kinds
    assert num_cases(steps) == sum(kind != "prepare" for kind in kinds)


@pytest.mark.parametrize("tests", ["", "x = 1", "import math", "def f(): pass", [], ["x = 1"], [""], "'only text'", CHECK])
def test_tests_without_a_case_are_refused(tests):
    with pytest.raises(BadTests, match="no case"):
        plan_of(tests)


@pytest.mark.parametrize("tests", ["assert add(1 == 2", ["f(1)", "x ="], "a\0b", "(" * 5000])
def test_tests_that_do_not_parse_are_refused(tests):
    with pytest.raises(BadTests, match="do not parse"):
        plan_of(tests)


@pytest.mark.parametrize(
    ("tests", "before", "names"),
    [
        ("assert add(1, 2) == sum([1, 2])", "", {"add"}),
        ("import math\nassert math.floor(f(2)) == helper(1)", "def helper(x): return x", {"f"}),
        ("assert math.floor(f(2)) == 1", "", {"f"}),
        ("assert calendar(3) == 1", "", {"calendar"}),
        ("def check(candidate):\n    x = 1\n    assert candidate(x) == other(x)\ncheck(f)", "", {"f", "other"}),
        ("assert [g(i) for i in range(3)] == [0]", "", {"g"}),
    ],
)
def test_free_names_are_the_candidates(tests, before, names):
    assert free_names(tests, before) == names


def test_modules_are_those_whose_attributes_are_read():
    assert modules_meant("math.floor(1)\nre.compile\ncopy(3)\nstring.x\nstring(2)") == {"math", "re"}
