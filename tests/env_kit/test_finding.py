"""How findings are put together."""

from agentrl.env_kit.finding import Finding, Report, counted, judged, plural, skipped


def test_a_fault_outweighs_a_warning_and_both_are_told():
    found = judged("x", "tried", "fine", faults=["broken"], warnings=["odd"], advice="mend it")
    assert (found.status, found.got, found.advice) == ("failed", "broken\nodd", "mend it")
    assert judged("x", "tried", "fine", warnings=["odd"], advice="look").status == "warning"
    good = judged("x", "tried", "fine", advice="mend it", facts={"a": 1})
    assert (good.status, good.got, good.advice, good.facts) == ("ok", "fine", "", {"a": 1})


def test_only_failures_fail_a_report():
    def report(*statuses):
        return Report(spec="x", findings=tuple(Finding(check="x", status=status, tried="", got="") for status in statuses), seconds=1.0)

    assert report("ok", "warning", "skipped").ok
    assert not report("ok", "failed").ok
    assert skipped("x", "no tools").status == "skipped"


def test_texts_are_counted_and_cut():
    assert counted(["a", "b", "a"]) == ["a (2 times)", "b"]
    assert counted(list("abcde")) == ["a", "b", "c", "and 2 more"]
    assert len(counted(["x" * 1000])[0]) == 303


def test_plurals():
    assert [plural(count, "task") for count in (0, 1, 1000)] == ["0 tasks", "1 task", "1,000 tasks"]
