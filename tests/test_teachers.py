"""Teachers in the run file, and tokenizers that have to be those of the policy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentrl import runfile
from agentrl.config import RunConfig, TeacherConfig
from agentrl.errors import ConfigError
from agentrl.quickstart import model_path
from agentrl.quickstart.tokenizer import build_tokenizer
from agentrl.rollout.tokenizer import load_tokenizer
from agentrl.session import environment_spec
from agentrl.teachers import check_tokenizers, tokenizer_difference, with_teachers

CORPUS = ["the quick brown fox", "jumps over the lazy dog", "12 + 34 = 46"]
BASE = {"model": "m", "dataset": "rows.jsonl"}


def resolved(**values):
    return runfile.from_mapping(BASE | values)


def refused(**values):
    with pytest.raises(ConfigError) as caught:
        resolved(**values)
    return str(caught.value)


@pytest.mark.parametrize("value", ["big", {"model": "big"}, [{"model": "big"}]])
def test_one_teacher_is_named_in_short_or_in_full(value):
    config = resolved(objective="opd", teacher=value)

    assert config.teacher == [TeacherConfig(model="big")]
    assert runfile.from_mapping(config.model_dump(mode="json")) == config


def test_an_objective_with_a_teacher_needs_one_and_no_other_takes_one():
    assert "`teacher: FOLDER`" in refused(objective="opd")
    assert "`teacher: FOLDER`" in refused(objective="gkd")
    assert "remove `teacher`" in refused(objective="grpo", teacher="big", rewards=["r.py:f"])


def test_teachers_have_names_and_models():
    assert "two teachers are called 'teacher'" in refused(objective="opd", teacher=[{"model": "a"}, {"model": "b"}])
    assert "a teacher needs a model" in refused(objective="opd", teacher={"servers": ["http://10.0.0.2:8000"]})
    assert "teacher.0.weight" in refused(objective="opd", teacher={"model": "a", "weight": 0})


@pytest.mark.parametrize("objective", ["opd", "minillm", "iw_opd", {"name": "opd", "estimate": "sampled"}])
def test_prompts_without_rewards_are_enough_where_only_a_teacher_teaches(objective):
    config = resolved(objective=objective, teacher="big", group_size=1)

    assert environment_spec(config) == "dataset?path=rows.jsonl&unscored=true"


def test_rewards_are_needed_where_they_count():
    assert "`dataset` needs `rewards`" in refused(objective={"name": "opd", "reward_coef": 1.0}, teacher="big")
    assert "set group_size >= 2" in refused(objective={"name": "opd", "reward_coef": 1.0}, teacher="big", group_size=1, rewards=["r.py:f"])


def test_options_that_would_have_no_effect_are_refused():
    for options, said in (
        ({"name": "opd", "dynamic_sampling": True}, "dynamic_sampling is about rewards, and reward_coef is 0"),
        ({"name": "opd", "top_k": 5}, "top_k is the number of tokens of estimate top_k"),
        ({"name": "opd", "estimate": "top_k"}, "top_k is the number of tokens of estimate top_k"),
        ({"name": "opd", "estimate": "sampled", "mixture": 0.5}, "mixture=0.5 asks for another divergence"),
        ({"name": "opd", "estimate": "sampled", "temperature": 2.0}, "remove temperature"),
        ({"name": "minillm", "single_step": False}, "counts nowhere"),
        ({"name": "minillm", "gamma": 0.0}, "credits a token with nothing"),
        ({"name": "iw_opd", "corrections": [{"name": "tis"}, {"name": "icepop"}]}, "correct one mismatch twice"),
    ):
        assert said in refused(objective=options, teacher="big")


def test_a_row_names_one_of_several_teachers():
    one = RunConfig(model="m", teacher=[TeacherConfig(model="a")])
    two = RunConfig(model="m", teacher=[TeacherConfig(name="a", model="a"), TeacherConfig(name="b", model="b")])

    assert one.teacher_of("anything", "row 3") is None
    assert two.teacher_of(None, "row 3") is None
    assert two.teacher_of("b", "row 3") == "b"
    for wrong in ("c", 1, ["a"]):
        with pytest.raises(ConfigError, match=r"^rows.jsonl, line 3: field `teacher` got .*one of the run file's teachers: a, b"):
            two.teacher_of(wrong, "rows.jsonl, line 3")


def tokenizer_folder(folder: Path, corpus: list[str] = CORPUS) -> str:
    build_tokenizer(corpus, vocabulary=300).save_pretrained(folder)
    return str(folder)


def edited(folder: str, change) -> str:
    path = Path(folder) / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return folder


def test_the_same_tokens_in_other_files_are_the_same_tokenizer(tmp_path):
    one, other = tokenizer_folder(tmp_path / "one"), tokenizer_folder(tmp_path / "other")
    config = json.loads((tmp_path / "other" / "tokenizer_config.json").read_text())
    (tmp_path / "other" / "tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": 77}))

    check_tokenizers(one, other, "big")


def test_words_with_other_ids_are_named(tmp_path):
    one, other = tokenizer_folder(tmp_path / "one"), tokenizer_folder(tmp_path / "other", ["zebra zebra zebra", "yes yes no"])

    with pytest.raises(ConfigError) as caught:
        check_tokenizers(one, other, "big")

    said = str(caught.value)
    assert "teacher 'big'" in said
    assert "objective: gold" in said
    assert "words are the policy's alone ('" in said
    assert "words" in said


def test_equal_words_with_other_merges_are_found_by_text(tmp_path):
    one = tokenizer_folder(tmp_path / "one")
    other = edited(tokenizer_folder(tmp_path / "other"), lambda content: content["model"]["merges"].clear())

    said = tokenizer_difference(load_tokenizer(one), load_tokenizer(other))

    assert said is not None
    assert "cut 'The quick brown fox" in said


def test_the_run_files_teachers_are_resolved_and_checked(tmp_path):
    config = RunConfig(model="quickstart", teacher=[TeacherConfig(model="quickstart")])
    found = with_teachers(config, model_path(), lambda name: model_path() if name == "quickstart" else name)
    assert found.teacher[0].model == model_path()

    other = RunConfig(model="quickstart", teacher=[TeacherConfig(name="big", model=tokenizer_folder(tmp_path / "other"))])
    with pytest.raises(ConfigError, match="do not match"):
        with_teachers(other, model_path(), str)
    assert with_teachers(RunConfig(model="m"), "nowhere", str) == RunConfig(model="m")


def rows_file(folder: Path, rows: list[dict[str, str]]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prepared(path: str, names: tuple[str, ...], **data: str):
    from agentrl.data.prepare import prepare

    teachers = [{"name": name, "model": "m"} for name in names]
    values = {"model": "m", "dataset": path, "objective": "gkd", "teacher": teachers, "data": data}
    return prepare(runfile.from_mapping(values), "supervised", load_tokenizer(model_path()))


def test_the_rows_of_a_dataset_name_their_teachers(tmp_path):
    rows = [{"text": "2+3=5"}, {"text": "print(1)", "teacher": "code"}, {"text": "1+1=2", "teacher": "math"}]
    path = rows_file(tmp_path, rows)

    assert [one.teacher for one in prepared(path, ("math", "code"))] == [None, "code", "math"]
    assert [one.teacher for one in prepared(path, ("math",))] == [None, None, None]
    assert dict(prepared(path, ("math", "code"))[1].parts) == {}


def test_a_row_of_an_unknown_teacher_is_a_fault_of_its_line(tmp_path):
    path = rows_file(tmp_path, [{"text": "2+3=5"}, {"text": "print(1)", "teacher": "cod"}])

    with pytest.raises(ConfigError, match=r"rows.jsonl, line 2: `teacher` must be one of the run file's teachers \(math, code\), got"):
        prepared(path, ("math", "code"))
    assert len(prepared(path, ("math", "code"), on_bad_row="skip")) == 1


def test_rows_that_name_a_teacher_are_not_packed(tmp_path):
    path = rows_file(tmp_path, [{"text": "2+3=5", "teacher": "math"}])

    with pytest.raises(ConfigError, match=r"set data\.packing=none"):
        prepared(path, ("math", "code"), packing="bfd", max_length=64)
