import json

import pytest

from agentrl.envs.problem_rows import Columns, Source, problems, read_source
from agentrl.errors import ConfigError

COLUMNS = Columns(problem=("problem", "prompt"), gold=("answer", "reward.truth"), options=("options", "choices"))
ROWS = [{"problem": f"{n}+1?", "answer": str(n + 1)} for n in range(4)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(path=str(path))


def brought(*rows, columns=COLUMNS):
    return problems(Source(path="rows.jsonl"), rows, columns)


def test_json_lines(tmp_path):
    assert read_source(write(tmp_path / "rows.jsonl", ROWS)) == ROWS


def test_parquet_files_and_folders_of_them(tmp_path):
    from datasets import Dataset

    (tmp_path / "data").mkdir()
    Dataset.from_list(ROWS[:2]).to_parquet(tmp_path / "data" / "train-00000-of-00002.parquet")
    Dataset.from_list(ROWS[2:]).to_parquet(tmp_path / "data" / "train-00001-of-00002.parquet")
    Dataset.from_list(ROWS[:1]).to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    assert read_source(Source(dataset=str(tmp_path))) == ROWS
    assert read_source(Source(dataset=str(tmp_path), split="test")) == ROWS[:1]
    assert read_source(Source(path=str(tmp_path / "data" / "test-00000-of-00001.parquet"))) == ROWS[:1]
    with pytest.raises(ConfigError, match="no parquet file of the split 'validation'"):
        read_source(Source(dataset=str(tmp_path), split="validation"))


def test_saved_data_sets_with_and_without_splits(tmp_path):
    from datasets import Dataset, DatasetDict

    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    DatasetDict({"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:1])}).save_to_disk(tmp_path / "two")
    assert read_source(Source(dataset=str(tmp_path / "one"))) == ROWS
    assert read_source(Source(dataset=str(tmp_path / "two"), split="test")) == ROWS[:1]
    with pytest.raises(ConfigError, match="no split 'eval'; it has: train, test"):
        read_source(Source(dataset=str(tmp_path / "two"), split="eval"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"problem": "x"}\n{"problem"', "line 2: not JSON"),
        ("[1]", "line 1: a row is a JSON object"),
        ("[" * 100_000, "line 1: not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path, text, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_source(Source(path=str(path)))


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b"\xff\xfe")
    (tmp_path / "rows.parquet").write_text("no parquet")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    for name in ("missing.jsonl", "rows.jsonl", "rows.parquet"):
        with pytest.raises(ConfigError, match=f"cannot read the problems in .*{name}"):
            read_source(Source(path=str(tmp_path / name)))
    with pytest.raises(ConfigError, match="cannot read the data set saved in"):
        read_source(Source(dataset=str(tmp_path / "saved")))


def test_columns_are_found_and_named():
    assert brought({"prompt": "1+1?", "reward": {"truth": 2}, "id": "a"}) == [{"problem": "1+1?", "gold": "2", "id": "a"}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    assert brought({"prompt": messages, "answer": ["2"]}) == [{"problem": "1+1?", "gold": "2"}]


def test_a_missing_gold_is_empty_and_a_missing_problem_is_refused():
    assert brought(ROWS[0], {"problem": "2?"})[1] == {"problem": "2?", "gold": ""}
    with pytest.raises(
        ConfigError, match=r"rows.jsonl, row 1: no problem in problem or prompt; its columns: task, answer.*problem_column="
    ):
        brought({"task": "1+1?", "answer": "2"})
    with pytest.raises(ConfigError, match=r"row 1: no gold in answer or reward.truth"):
        brought({"problem": "1+1?"})
    with pytest.raises(ConfigError, match=r"row 2: the problem in problem must be text.*got None"):
        brought(ROWS[0], {"answer": "2"})
    with pytest.raises(ConfigError, match=r"row 1: the problem in prompt must be text, or messages that end with the user's"):
        brought({"prompt": [{"role": "assistant", "content": "hm"}], "answer": "2"})
    with pytest.raises(ConfigError, match=r"row 1: a gold is text or a number, got \['1', '2'\]"):
        brought({"problem": "1+1?", "answer": ["1", "2"]})


@pytest.mark.parametrize(
    ("options", "gold", "expected"),
    [
        (["x", "y"], 1, (["x", "y"], "B")),
        (["x", "y"], "A", (["x", "y"], "A")),
        ({"1": "x", "2": "y"}, "2", ({"1": "x", "2": "y"}, "2")),
        ({"text": ["x", "y"], "label": ["1", "2"]}, "2", ({"1": "x", "2": "y"}, "2")),
    ],
)
def test_options_have_labels(options, gold, expected):
    (row,) = brought({"problem": "?", "choices": options, "answer": gold})
    assert (row["options"], row["gold"]) == expected
