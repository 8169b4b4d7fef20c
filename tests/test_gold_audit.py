import itertools

import pytest

from agentrl.errors import ConfigError, EnvironmentFailure
from agentrl.gold_audit import audit, good_rows


def fault(row):
    if row["gold"] is None:
        return "the gold is empty"
    return "" if row["gold"].isdigit() else f"the gold does not parse: {row['gold']!r}"


def rows(*golds):
    return [{"gold": gold} for gold in golds]


def test_good_golds_are_said_to_be_good():
    report = audit(rows("1", "2", "3"), fault)
    assert (report.checked, report.bad, report.unchecked, report.share) == (3, (), False, 0.0)
    assert report.summary() == "all 3 golds that were checked grade as correct against themselves"
    assert good_rows(rows("1"), report, what="it", on_bad_gold="refuse") == rows("1")


def test_bad_golds_are_named_and_counted_by_kind():
    given = [*rows("1", None, "x", "2", None), {"gold": "y", "id": "seven"}]
    report = audit(given, fault)
    assert [(one.index, one.row) for one in report.bad] == [(1, "1"), (2, "2"), (4, "4"), (5, "seven")]
    said = report.summary()
    assert said.startswith("4 of 6 golds cannot be graded against: 2 x 'the gold is empty' (rows 1, 4)")
    assert "(rows 2, seven)" in said


def test_many_bad_rows_are_not_all_named():
    assert "(rows 0, 1, 2, 3, 4, ...)" in audit(rows(*[None] * 9), fault).summary()


def test_bad_rows_are_skipped_up_to_a_share_or_refused():
    given = rows(*["1"] * 19, None)
    report = audit(given, fault)
    assert good_rows(given, report, what="it", on_bad_gold="skip") == given[:-1]
    with pytest.raises(ConfigError, match=r"it: 1 of 20 .* \(row 19\).*on_bad_gold=skip"):
        good_rows(given, report, what="it", on_bad_gold="refuse")
    few = rows("1", None)
    with pytest.raises(ConfigError, match="more than 10%"):
        good_rows(few, audit(few, fault), what="it", on_bad_gold="skip")


def test_a_grader_that_raises_is_the_rows_fault_and_infrastructure_is_not():
    assert audit([{}], fault).bad[0].reason == "the grader raised KeyError: 'gold'"

    def down(row):
        raise EnvironmentFailure("no grader")

    with pytest.raises(EnvironmentFailure, match="no grader"):
        audit(rows("1"), down)


def test_an_audit_ends_in_time_and_says_so():
    report = audit(({"gold": "1"} for _ in itertools.count()), fault, within_s=0.05)
    assert report.unchecked
    assert report.checked > 0
    assert "time ran out" in report.summary()


def test_an_empty_data_set_has_no_bad_golds():
    assert audit([], fault).share == 0.0
