from __future__ import annotations

import httpx
import pytest
from reward_models import save_reward_model

from agentrl.rewards.remote import Patience, Remote
from agentrl.rewards.reward_model import reward_model, reward_server
from agentrl.servers.reward_rows import RewardOptions, RewardRow
from agentrl.servers.reward_scorer import RewardScorer

GIVEN = {"prompts": ["two? ", "so "], "completions": ["four", "on"], "completion_ids": [[1], [1]], "answer": ["4", "5"]}
CHAT = [{"role": "user", "content": "two?"}]


def test_a_model_in_this_process(tmp_path):
    folder = save_reward_model(tmp_path)
    reward = reward_model(folder, device="cpu", max_length=20)
    scorer = RewardScorer(RewardOptions(model=folder, device="cpu"))
    expected = [
        score.value for score in scorer.score([RewardRow(prompt="two? ", completion="four"), RewardRow(prompt="so ", completion="on")])
    ]
    assert reward(**GIVEN) == pytest.approx(expected)
    assert reward_model(folder, device="cpu", max_length=20)(**GIVEN) == pytest.approx(expected)
    logged = {}
    values = reward(prompts=[CHAT, "x" * 500], completions=[[{"role": "assistant", "content": "4"}], ""], log_extra=logged.__setitem__)
    assert [value is None for value in values] == [False, True]
    assert "nothing is cut off" in logged["reward_model/failure"][1]


def test_steps_are_logged(tmp_path):
    reward = reward_model(save_reward_model(tmp_path, process=True, labels=2), device="cpu", aggregate="product")
    logged = {}
    (value,) = reward(prompts=["two?"], completions=["so\n\nfour"], log_extra=logged.__setitem__)
    ((first, second),) = logged["reward_model/steps"]
    assert value == pytest.approx(first * second)
    assert reward.scores([RewardRow(prompt="two?", completion="", steps=("so", "four"))])[0].steps == (first, second)


def test_options_are_checked_before_anything_is_loaded():
    with pytest.raises(ValueError, match="options are model, kind"):
        reward_model("m", modle="x")
    with pytest.raises(ValueError, match="aggregate is 'max'"):
        reward_model("m", aggregate="max")


def server(answer, **patience):
    seen = []

    def handle(request):
        seen.append(request)
        return answer(request) if callable(answer) else answer

    remote = Remote(
        "http://rm.test",
        key_env="NO_KEY",
        patience=Patience(attempts=2, **patience),
        sleep=lambda _: None,
        transport=httpx.MockTransport(handle),
    )
    return reward_server("http://rm.test", remote=remote), seen


def test_a_model_on_a_server():
    reward, seen = server(httpx.Response(200, json={"scores": [1, -0.5], "errors": [None, None]}))
    assert reward(**GIVEN) == [1.0, -0.5]
    assert seen[0].url.path == "/score"
    assert seen[0].content == b'{"prompts": ["two? ", "so "], "completions": ["four", "on"]}'
    assert reward(prompts=[], completions=[]) == []
    assert reward.agentrl_required


def test_steps_go_to_a_server_and_come_back():
    reward, seen = server(httpx.Response(200, json={"scores": [0.5], "errors": [None], "steps": [[0.5, 0.75]]}))
    (score,) = reward.scores([RewardRow(prompt="p", completion="", steps=("a", "b"))])
    assert (score.value, score.steps) == (0.5, (0.5, 0.75))
    assert seen[0].content == b'{"prompts": ["p"], "steps": [["a", "b"]]}'


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (httpx.Response(500, text="broken"), "HTTP 500: broken, after 2 tries"),
        (httpx.Response(401, json={"error": "no key"}), "HTTP 401"),
        (httpx.Response(200, text="?"), "no JSON"),
        (httpx.Response(200, json=[1, 2]), "did not answer with 2 scores"),
        (httpx.Response(200, json={"scores": [1]}), "did not answer with 2 scores"),
        (httpx.Response(200, json={"scores": [1, 2], "errors": [None]}), "did not answer with 2 rows"),
        (httpx.Response(200, json={"scores": [None, None], "errors": ["too long"] * 2}), "too long"),
        (httpx.Response(200, json={"scores": [True, "1"]}), "the reward server answered True"),
        (httpx.Response(200, content=b'{"scores": [NaN, Infinity]}'), "the reward server answered nan"),
        (httpx.ConnectError("refused"), "ConnectError: refused, after 2 tries"),
    ],
)
def test_a_server_that_fails_gives_no_number(answer, said):
    def handle(request):
        if isinstance(answer, Exception):
            raise answer
        return answer

    reward, _ = server(handle)
    logged = {}
    assert reward(**GIVEN, log_extra=logged.__setitem__) == [None, None]
    assert said in logged["reward_server/failure"][0]


def test_a_url_is_checked_when_the_reward_is_made():
    with pytest.raises(ValueError, match="it is an address"):
        reward_server("rm")
