import pytest

from agentrl.rewards.unit_tests.projects import grade_project, module_of

TESTS = {
    "test_shop.py": (
        "import pytest\nfrom helper import twice\nfrom shop.prices import total, Basket\nimport shop.tax as tax\n\n"
        "def test_total():\n    assert total([1, 2]) == 3\n\n"
        "@pytest.mark.parametrize('x', [1, 2])\ndef test_tax(x):\n    assert tax.add(x) == twice(x)\n\n"
        "def test_error():\n    with pytest.raises(TypeError):\n        total(1)\n\n"
        "def test_basket():\n    basket = Basket()\n    basket.put('egg', 3)\n    assert basket.count('egg') == 3\n\n"
        "@pytest.mark.skip\ndef test_later():\n    assert False\n"
    ),
    "helper.py": "def twice(x):\n    return 2 * x\n",
    "conftest.py": "import pytest\n",
}
PRICES = (
    "class Basket:\n    def __init__(self): self.n = {}\n    def put(self, k, n): self.n[k] = n\n    def count(self, k): return self.n[k]\n"
)
GOOD = {
    "shop/__init__.py": "",
    "shop/prices.py": PRICES + "def total(x): return sum(x)\n",
    "shop/tax.py": "from .prices import total\ndef add(x): return total([x, x])\n",
}


def test_a_right_project_passes():
    grade = grade_project(GOOD, TESTS)
    assert (grade.verdict, grade.num_passed, len(grade.cases)) == ("pass", 5, 5)


def test_each_test_has_its_verdict():
    grade = grade_project({**GOOD, "shop/tax.py": "def add(x): return 2\n"}, TESTS)
    assert (grade.verdict, grade.num_passed, len(grade.cases)) == ("fail", 4, 5)
    assert "test_tax[2]" in grade.reason


BAD_TOTAL = {**GOOD, "shop/prices.py": PRICES + "def total(x): return 0\n"}


@pytest.mark.parametrize(
    "files",
    [
        {**BAD_TOTAL, "conftest.py": "import os\nos._exit(0)"},
        {**BAD_TOTAL, "test_shop.py": "def test(): pass", "helper.py": "twice = None"},
        {**BAD_TOTAL, "pytest.ini": "[pytest]\naddopts = --collect-only", "pytest.py": "import os; os._exit(0)"},
        {**GOOD, "shop/prices.py": "import sys\nsys.exit(0)"},
        {**GOOD, "shop/prices.py": "import os\nos._exit(0)"},
        {**GOOD, "shop/tax.py": "def add(x) return 1"},
        {"shop/__init__.py": ""},
        {**GOOD, "shop/prices.py": PRICES + "import os\ndef total(x): os._exit(0)"},
        {
            **GOOD,
            "shop/prices.py": PRICES + "import sys, types\nsys.modules['pytest'] = types.ModuleType('pytest')\ndef total(x): return 1",
        },
    ],
)
def test_no_file_of_the_candidates_reaches_pytest(files):
    grade = grade_project(files, TESTS)
    assert grade.verdict == "fail"
    assert grade.num_passed < 5


def test_the_files_of_the_tests_come_before_the_candidates():
    always = "class E:\n    __eq__ = lambda *a: True\ndef twice(x): return 2\n"
    grade = grade_project({**GOOD, "shop/tax.py": "def add(x): return 2\n", "helper.py": always}, TESTS)
    assert (grade.verdict, grade.num_passed) == ("fail", 4)
    test = "from shop.tests.data import N\nfrom shop.prices import total\ndef test_in():\n    assert total([N]) == N\n"
    inside = {"shop/tests/test_in.py": test, "shop/tests/data.py": "N = 5\n"}
    assert grade_project({**GOOD, "shop/tests/data.py": "N = 0\n"}, inside).verdict == "pass"


ORACLE = "class E:\n    __eq__ = lambda *a: True\n\ndef mean(x): return 0\ndef twice(x): return 0\n"


@pytest.mark.parametrize(
    "name", ["statistics.py", "pytest.py", "_pytest/__init__.py", "unittest/mock.py", "tools/oracle.py", "tools/__init__.py"]
)
def test_the_candidate_gives_the_tests_nothing_to_measure_with(name):
    test = "import statistics\nfrom unittest import mock\nimport pytest\nfrom tools import oracle\nfrom solution import f\n"
    test += "def test_f():\n    assert f([1, 3]) == statistics.mean([1, 3]) == oracle.twice(1) == pytest.approx(2)\n"
    tests = {"test_f.py": test, "tools/oracle.py": "def twice(x):\n    return 2 * x\n"}
    more = {name: ORACLE + "oracle = __import__('types').SimpleNamespace(twice=twice)\ndef approx(x): return 0\n"}
    assert grade_project({"solution.py": "def f(x): return 0", **more}, tests).verdict == "fail"
    assert grade_project({"solution.py": "def f(x): return sum(x) / len(x)", **more}, tests).verdict == "pass"


@pytest.mark.parametrize(
    ("tests", "num_tests", "reason"),
    [
        ({"test_x.py": "x = 1"}, None, "found 0 tests"),
        ({"test_x.py": "def test_x(): pass"}, None, "without ever calling"),
        ({"test_x.py": "import nothing_of_that_name"}, None, "nothing_of_that_name"),
        ({"test_x.py": "def test_x(:"}, None, "SyntaxError"),
        ({"../test_x.py": ""}, None, "below the project"),
        ({"/etc/test_x.py": ""}, None, "below the project"),
        (TESTS, 7, "found 6 tests; there should be 7"),
    ],
)
def test_tests_that_are_at_fault_are_unscorable(tests, num_tests, reason):
    grade = grade_project(GOOD, tests, num_tests=num_tests)
    assert grade.verdict == "unscorable"
    assert reason in grade.reason


@pytest.mark.parametrize(("path", "name"), [("a.py", "a"), ("a/b.py", "a.b"), ("a/__init__.py", "a"), ("a-b.py", ""), ("data.txt", "")])
def test_files_are_modules_by_their_paths(path, name):
    assert module_of(path) == name


STARS = {"test_it.py": "from shop.prices import *\n\ndef test_total():\n    assert abs(total([1, 2]) - 3) == 0\n"}


def test_a_star_brings_what_the_tests_read_and_nothing_that_judges():
    assert grade_project(GOOD, STARS).verdict == "pass"
    forged = {**GOOD, "shop/prices.py": "def abs(x): return 0\ndef total(x): return 7\n"}
    assert grade_project(forged, STARS).verdict == "fail"
