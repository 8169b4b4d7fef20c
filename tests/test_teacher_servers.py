"""Teachers on servers around a run: what rollout processes are told, and the rows of an offline run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import teacher_fakes as fakes

from agentrl import objectives, runfile
from agentrl.dispatch import TeacherPlace
from agentrl.engines.teacher_client import TeacherServers
from agentrl.errors import ConfigError, SamplerUnavailable
from agentrl.examples import Example, Text
from agentrl.teacher_servers import TaughtBatches, Tutor, scored, taught, teaching_of

URL, OTHER = "http://a:1", "http://b:1"
ONLINE = {"model": "m", "dataset": "rows.jsonl"}
SERVED = {"model": "big", "servers": [URL]}


def config_of(**values: Any) -> Any:
    return runfile.from_mapping(ONLINE | values)


def teaching(**values: Any) -> Any:
    config = config_of(**values)
    return teaching_of(config, objectives.get(config.objective["name"]).needs(objectives.validate(config.objective)))


def refused(**values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        config_of(**values)
    return str(caught.value)


def test_rollout_processes_ask_the_teachers_that_are_on_servers() -> None:
    told = teaching(objective={"name": "opd", "estimate": "sampled"}, teacher=[SERVED | {"timeout_s": 7.0, "weight": 2.0}])
    assert told.places == (TeacherPlace(name="teacher", servers=(URL,), weight=2.0, timeout_s=7.0, api_key_env="AGENTRL_TEACHER_API_KEY"),)
    assert (told.top_k, told.routed, told.prompt) == (0, False, None)
    assert teaching(objective={"name": "opd", "estimate": "top_k", "top_k": 5}, teacher=[SERVED]).top_k == 5


def test_a_teacher_in_process_is_nothing_to_them() -> None:
    assert teaching(objective="opd", teacher="big") is None


def test_they_write_the_prompt_of_a_policy_that_teaches_itself() -> None:
    told = teaching(objective={"name": "sdft", "template": "{privileged_context}: {prompt}"})
    assert told.prompt.template == "{privileged_context}: {prompt}"
    assert told.places == ()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"objective": "opd", "teacher": [SERVED]}, "set objective.top_k"),
        ({"objective": {"name": "opd", "estimate": "sampled"}, "teacher": [SERVED], "sampling": {"temperature": 0.7}}, "asked for at 0.7"),
        ({"objective": {"name": "opd", "estimate": "sampled"}, "teacher": [SERVED, {"name": "b", "model": "b"}]}, "all be the one or"),
        ({"objective": {"name": "gkd", "top_k": 5}, "teacher": [SERVED]}, "asked for at 0.9"),
        ({"objective": "gold", "teacher": [SERVED]}, "without servers"),
        ({"objective": "gold", "teacher": [{"model": "a"}, {"name": "b", "model": "b"}]}, "name one `model`"),
        ({"objective": "sdft", "teacher": "big"}, "learns from itself: remove `teacher`"),
        ({"objective": "opd", "teacher": [{"model": "big", "servers": ["here"]}]}, "a server is http://HOST:PORT"),
    ],
)
def test_what_servers_cannot_be_asked_is_refused_with_what_to_set(values: Any, said: str) -> None:
    assert said in refused(**values)


def example(where: str, *lengths: int, teacher: str | None = None) -> Example:
    texts = []
    for length in lengths:
        trained = np.arange(length) >= 2
        texts.append(Text(ids=np.arange(5, 5 + length, dtype=np.int32), trained=trained, prompt_length=2))
    return Example(where=where, texts=tuple(texts), rewards=(0.0,) * len(texts), teacher=teacher)


def tutor(*servers: fakes.FakeTeacher, top_k: int = 0, timeout_s: float = 60.0) -> Tutor:
    names = ("teacher", "second")
    teaching = {
        "places": tuple(
            TeacherPlace(name=name, servers=(one.url,), weight=1.0, timeout_s=timeout_s, api_key_env="NONE")
            for name, one in zip(names, servers, strict=False)
        ),
        "top_k": top_k,
    }
    by_url = {one.url: one for one in servers}

    def connect(place: TeacherPlace, top_k: int, vocab_size: int | None) -> TeacherServers:
        return TeacherServers(place.servers, timeout_s=place.timeout_s, top_k=top_k, connect=lambda url, headers: by_url[url])

    from agentrl.dispatch import Teaching

    return Tutor(Teaching(**teaching), connect)


def test_the_rows_of_a_dataset_are_scored_at_their_trained_tokens() -> None:
    server = fakes.FakeTeacher(URL, turn_s=0.0)
    one, other = tutor(server).taught([example("line 1", 6), example("line 2", 4, 5)])
    for text in (*one.texts, *other.texts):
        table = fakes.table(text.ids.tolist())
        np.testing.assert_allclose(text.known["teacher"], table[np.arange(2, len(text.ids)), text.ids[2:]], rtol=1e-6)
    assert one.where == "line 1"
    (top,) = tutor(server, top_k=3).taught([example("line 1", 6)])
    assert {name: values.shape for name, values in top.texts[0].known.items()} == {
        "teacher_ids:teacher": (4, 3),
        "teacher_top:teacher": (4, 3),
    }


def test_a_row_that_names_its_teacher_asks_no_other() -> None:
    one, other = fakes.FakeTeacher(URL, turn_s=0.0), fakes.FakeTeacher(OTHER, turn_s=0.0)
    tutor(one, other).taught([example("a", 6, teacher="second"), example("b", 6)])
    assert (len(one.asked), len(other.asked)) == (1, 2)


def test_a_text_that_the_teacher_cannot_hold_is_told_by_its_row() -> None:
    with pytest.raises(ConfigError, match=r"rows\.jsonl, line 3: a text of 9 tokens does not fit the teacher"):
        tutor(fakes.FakeTeacher(URL, context_length=9)).taught([example("rows.jsonl, line 3", 9)])


def test_a_server_that_is_down_is_told_once_its_time_is_over() -> None:
    with pytest.raises(SamplerUnavailable, match="no server of the teacher scored"):
        tutor(fakes.FakeTeacher(URL, turn_s=0.0, fault=lambda call: fakes.lost(URL)), timeout_s=0.2).taught([example("a", 5)])


class Plain:
    """Batches of one example, which tell what was taken."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.counts: dict[str, float] = {"data/rows": 3.0}
        self.fingerprint = "f"

    def take(self, step: int) -> list[Example]:
        self.taken.append(step)
        return [example(f"row {step}", 4 + step)]

    def epoch(self, step: int) -> float:
        return step / 2

    def place_of(self, step: int) -> dict[str, int]:
        return {"rows": step}

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int, /) -> Example:
        return example(f"row {index}", 4 + index)

    def order(self, seed: int | None, epoch: int) -> np.ndarray:
        return np.arange(3)[:: -1 if seed else 1]


def test_the_next_step_is_scored_while_one_is_taken_and_none_beyond_the_last() -> None:
    plain, server = Plain(), fakes.FakeTeacher(URL, turn_s=0.0)
    batches = TaughtBatches(plain, tutor(server), 3)
    got = [batches.take(step)[0] for step in range(3)]
    batches.close()
    assert [len(one.texts[0].known["teacher"]) for one in got] == [2, 3, 4]
    assert plain.taken == [0, 1, 2]
    assert batches.place_of(2) == {"rows": 2}
    assert len(server.asked) == 3
    assert batches.epoch(1) == 0.5


def test_a_resumed_run_scores_the_step_that_it_goes_on_with() -> None:
    plain = Plain()
    batches = TaughtBatches(plain, tutor(fakes.FakeTeacher(URL, turn_s=0.0)), 6)
    assert len(batches.take(4)[0].texts[0].known["teacher"]) == 6
    batches.close()
    assert plain.taken[0] == 4


def test_held_out_rows_are_scored_once() -> None:
    server = fakes.FakeTeacher(URL, turn_s=0.0)
    rows = taught(Plain(), tutor(server))
    assert len(rows) == 3
    assert len(rows[2].texts[0].known["teacher"]) == len(rows[2].texts[0].known["teacher"]) == 4
    assert len(server.asked) == 3
    assert rows.counts == {"data/rows": 3.0}
    assert rows.order(1, 0).tolist() == [2, 1, 0]


def test_texts_beside_the_policys_own_are_scored_as_they_are_taken() -> None:
    given = scored(Plain().take, tutor(fakes.FakeTeacher(URL, turn_s=0.0)))
    assert given is not None
    assert len(given(1)[0].texts[0].known["teacher"]) == 3
    assert scored(None, tutor(fakes.FakeTeacher(URL))) is None
