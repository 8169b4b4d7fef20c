"""Sequence-level distillation: the teacher writes the completions of a step's prompts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from agentrl import objectives, runfile
from agentrl.errors import ConfigError
from agentrl.examples import Example, Text
from agentrl.further import further_examples
from agentrl.learner import Learner
from agentrl.learner.examples import candidates_of
from agentrl.learner.greedy import greedy
from agentrl.quickstart import model_path
from agentrl.rollout.tokenizer import load_tokenizer
from agentrl.written_texts import Author, author_of, trained_kind, with_author

if TYPE_CHECKING:
    from pathlib import Path

BASE = {
    "model": "quickstart",
    "dataset": "rows.jsonl",
    "teacher": [{"model": model_path()}],
    "learner": {"device": "cpu", "threads": 1},
    "sampling": {"max_tokens": 6},
    "steps": 3,
}


def config_of(**values: Any) -> Any:
    return runfile.from_mapping(BASE | {"objective": {"name": "gkd", "seq_kd": True}} | values)


def learner_of(config: Any) -> Learner:
    return Learner(config, objectives.get("gkd"), objectives.validate(config.objective), model_path())


def author(**values: Any) -> Author:
    config = config_of(**values)
    found = author_of(config, learner_of(config))
    assert found is not None
    return found


def prompt(text: str, where: str = "rows.jsonl, line 1", *, completion: str = "") -> Example:
    tokenizer = load_tokenizer(model_path())
    first, more = (tokenizer(one, add_special_tokens=False).input_ids for one in (text, completion))
    ids = np.array([*first, *more], dtype=np.int32)
    return Example(where=where, texts=(Text(ids=ids, trained=np.arange(len(ids)) >= len(first), prompt_length=len(first)),), rewards=(0.0,))


PROMPTS = [prompt("12+34="), prompt("one two three"), prompt("a")]


def ids_of(examples: list[Example]) -> list[list[int]]:
    return [one.texts[0].ids.tolist() for one in examples]


def test_what_is_written_stands_behind_its_prompt_and_is_all_that_is_trained() -> None:
    for before, after in zip(PROMPTS, author().written(0, PROMPTS), strict=True):
        length = len(before.texts[0].ids)
        text = after.texts[0]
        assert text.ids[:length].tolist() == before.texts[0].ids.tolist()
        assert np.flatnonzero(text.trained).tolist() == list(range(length, len(text.ids)))
        assert 1 <= text.num_trained <= 6
        assert after.ended or text.num_trained == 6


def test_the_datasets_own_completion_counts_for_nothing() -> None:
    writer = author()
    assert ids_of(writer.written(0, [prompt("12+34=", completion="46")])) == ids_of(writer.written(0, [prompt("12+34=")]))


def test_a_step_has_the_same_texts_whatever_was_written_before_it() -> None:
    writer = author(sampling={"max_tokens": 6, "temperature": 1.5})
    texts = [ids_of(writer.written(step, PROMPTS)) for step in range(3)]
    assert ids_of(author(sampling={"max_tokens": 6, "temperature": 1.5}).written(2, PROMPTS)) == texts[2]
    assert texts[0] != texts[1]
    assert ids_of(author(sampling={"max_tokens": 6, "temperature": 1.5}, seed=8).written(0, PROMPTS)) != texts[0]


def test_the_teacher_writes_and_not_the_policy() -> None:
    """At a temperature near 0 it is the teacher's likeliest text."""
    learner = learner_of(config_of())
    for parameter in learner.policy.parameters():
        parameter.data.zero_()
    writer = author_of(config_of(sampling={"max_tokens": 6, "temperature": 1e-3}), learner)
    assert writer is not None
    teacher = learner.models.teachers
    assert teacher is not None
    policy = teacher.loaded[0].policy
    assert policy is not None
    asked = [one.texts[0].ids.tolist() for one in PROMPTS]
    expected = greedy(policy, asked, max_tokens=6, stop_ids=writer._stop_ids)
    assert ids_of(writer.written(0, PROMPTS)) == [[*before, *after] for before, after in zip(asked, expected, strict=True)]


def test_how_long_texts_are_and_how_many_were_cut_is_counted() -> None:
    written = author(sampling={"max_tokens": 1}).written(0, PROMPTS)
    needs = objectives.get("gkd").needs(objectives.validate({"name": "gkd", "seq_kd": True}))
    counts = candidates_of(written, needs).counts
    assert counts["written/texts"] == 3.0
    assert counts["written/mean_length"] == 1.0
    assert counts["written/truncated_fraction"] == sum(not one.ended for one in written) / 3
    assert "written/texts" not in candidates_of([prompt("a", completion="b")], needs).counts


def test_a_prompt_that_leaves_no_room_is_told_by_its_row() -> None:
    ids = np.array([5, 6, 7], dtype=np.int32)
    text = Text(ids=ids, trained=np.zeros(3, dtype=np.bool_), prompt_length=3)
    writer, long = author(data={"max_length": 3}), Example(where="rows.jsonl, line 4", texts=(text,), rewards=(0.0,))
    with pytest.raises(ConfigError, match=r"rows\.jsonl, line 4: a prompt of 3 tokens leaves no room .* at most 3"):
        writer.written(0, [long])


def test_rows_beside_the_policys_own_texts_are_written_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{number}+1="}) + "\n" for number in range(8)))
    config = config_of(dataset=str(path), objective={"name": "gkd", "seq_kd": True, "lmbda": 0.5}, group_size=1, groups_per_step=4)
    learner = learner_of(config)
    needs = learner.models.needs
    take = with_author(
        further_examples(config, "supervised", needs, load_tokenizer(model_path()), model_path()), author_of(config, learner)
    )
    assert take is not None
    assert all(one.ended is not None and one.texts[0].num_trained for one in take(0))
    assert len(take(0)) == 4


def test_no_other_run_has_an_author() -> None:
    config = config_of(objective="gkd")
    assert author_of(config, learner_of(config)) is None
    assert trained_kind("supervised", objectives.get("sft").needs(objectives.validate({"name": "sft"}))) == "supervised"
    assert with_author(None, author()) is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"objective": {"name": "gkd", "seq_kd": True, "lmbda": 1.0}}, "lmbda=1 leaves none"),
        ({"teacher": [{"name": "a", "model": "a"}, {"name": "b", "model": "b"}]}, "there are 2: name one"),
        (
            {
                "objective": {"name": "gkd", "seq_kd": True, "top_k": 5, "temperature": 1.0},
                "teacher": [{"model": "a", "servers": ["http://a:1"]}],
            },
            "has the teacher write in process",
        ),
        ({"data": {"packing": "bfd", "max_length": 64}}, r"set data\.packing=none"),
    ],
)
def test_what_makes_no_sense_is_refused(values: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config_of(**values)


def test_a_temperature_of_sampling_is_refused_where_nobody_samples() -> None:
    with pytest.raises(ConfigError, match="rows that nobody sampled"):
        config_of(objective="gkd", sampling={"temperature": 0.7})
    assert config_of(sampling={"temperature": 0.7}).sampling.temperature == 0.7
