"""What is wrong with a row: one line that names it, and the count of such rows."""

import pytest

from agentrl.data.faults import DataFaults, RowFault, described
from agentrl.errors import ConfigError


def fault(**changed):
    return RowFault(**{"field": "label", "expected": "true or false", "got": "null", **changed})


def test_a_fault_names_place_field_expectation_and_value():
    assert str(fault(where="a.jsonl, line 3")) == "a.jsonl, line 3: `label` must be true or false, got null"
    assert str(fault(field="row", cure="mend it")) == "the row must be true or false, got null; mend it"


def test_a_place_is_added_once():
    assert fault().at("a, row 1").where == "a, row 1"
    assert fault(where="b, row 2").at("a, row 1").where == "b, row 2"


@pytest.mark.parametrize(("inner", "whole"), [("row", "messages[2]"), ("role", "messages[2].role"), ("[0]", "messages[2][0]")])
def test_a_fault_inside_a_column_names_the_way_to_it(inner, whole):
    assert fault(field=inner).inside("messages[2]").field == whole


def test_faults_that_differ_in_their_values_alone_are_of_one_kind():
    assert (
        fault(field="messages[2].role", got="1").kind
        == fault(field="messages[11].role", got="2").kind
        == "messages.role: expected true or false"
    )


def test_a_bad_row_is_an_error_that_says_how_to_leave_it_out():
    with pytest.raises(ConfigError, match=r"a\.jsonl, line 3: `label` must be true or false, got null; .*--on-bad-row skip"):
        DataFaults().add(fault(where="a.jsonl, line 3"))


def test_bad_rows_that_are_left_out_are_counted_and_the_first_are_shown():
    faults = DataFaults("skip")
    assert faults.summary() == ""
    for number in range(7):
        faults.add(fault(where=f"a, row {number}"))
    faults.add(fault(field="prompt", where="a, row 7"))
    assert faults.num_rows == 8
    assert dict(faults.counts) == {"label: expected true or false": 7, "prompt: expected true or false": 1}
    assert [one.where for one in faults.shown] == [f"a, row {number}" for number in range(5)]
    assert "8 bad rows left out" in faults.summary()
    assert "7 x label" in faults.summary()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "null"),
        (True, "true"),
        (3, "the number 3"),
        ("", "an empty text"),
        ("x" * 100, f"the text '{'x' * 57}...'"),
        ([], "an empty list"),
        ([1], "a list of 1: [1]"),
        ({"a": 1}, "an object with the keys a"),
        ({}, "an empty object"),
        (b"", "a bytes"),
    ],
)
def test_a_value_is_shown_with_its_kind_and_shortly(value, shown):
    assert described(value) == shown
