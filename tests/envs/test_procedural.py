import pytest

from agentrl.envs.procedural import Procedural, split_of


def draw(stream):
    number = stream.randrange(1000)
    return str(number), {"number": number}


def sequence(split, size=200, name="test"):
    return Procedural(draw, split=split, size=size, name=name)


def test_rows_depend_on_index_split_and_name_alone():
    rows = sequence("train")
    assert rows[7] == rows[7] == list(rows)[7] == rows[-193]
    assert rows[5:8] == [rows[5], rows[6], rows[7]]
    assert rows[:50] != sequence("train", name="other")[:50]


def test_a_key_is_in_one_split_only():
    train, held_out = ({row["number"] for row in sequence(split)} for split in ("train", "eval"))
    assert train
    assert held_out
    assert not train & held_out
    assert {split_of(str(number)) for number in held_out} == {"eval"}


def test_the_end_is_an_index_error():
    with pytest.raises(IndexError):
        sequence("train")[200]
