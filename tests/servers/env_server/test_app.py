import json

import httpx
import pytest
import trio
from server_fakes import SPEC, FakePool, ListRows, fake_app

from agentrl.errors import ConfigError, WorkerDied
from agentrl.records import SCHEMA_VERSION
from agentrl.servers.env_server.splits import Splits

KEY = "session-of-the-app"
VERSION = {"agentrl-protocol": "1"}
ROWS = [{"prompt": f"row {number}", "answer": "gold"} for number in range(300)]
OPENING = {"spec": SPEC, "task": {"id": "1", "environment": "e", "row": {"prompt": "hi"}}}
TOOL = {"kind": "tool", "name": "look", "arguments": {}}


class Breaking(ListRows):
    def __getitem__(self, index):
        raise WorkerDied("its process was killed by SIGKILL")


def load(split):
    if split == "eval":
        raise ConfigError("environment 'fake': there is no eval split")
    return ListRows(ROWS, plays=True)


def ask(play, *, load=load, headers=VERSION, **options):
    async def main():
        pool = FakePool()
        async with Splits(load).running() as splits, trio.open_nursery() as nursery:
            transport = httpx.ASGITransport(fake_app(pool, splits, nursery, **options))
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", headers=headers) as http:
                await play(http, pool)
            nursery.cancel_scope.cancel()

    trio.run(main)


def asked(number, request=TOOL):
    return {"number": number, "request": request}


def test_the_routes_of_an_episode():
    async def play(http, pool):
        assert (await http.get("/health")).text == "ok"
        answer = await http.put(f"/sessions/{KEY}", json=OPENING)
        assert answer.json()["answer"]["prompt"] == "hi"
        answer = await http.post(f"/sessions/{KEY}", json=asked(1))
        assert answer.json() == {
            "session": KEY,
            "number": 1,
            "answer": {"kind": "observation", "text": "look 1", "done": False, "error": False, "reward": 0.0},
        }
        answer = await http.post(f"/sessions/{KEY}/sampled", json={"number": 3})
        assert answer.json() == {"session": KEY, "number": 3}
        assert (await http.delete(f"/sessions/{KEY}")).status_code == 204
        assert (await http.post(f"/sessions/{KEY}", json=asked(2))).status_code == 410

    ask(play)


def test_what_is_served_and_how_busy_it_is():
    async def play(http, pool):
        await http.put(f"/sessions/{KEY}", json=OPENING)
        info = (await http.get("/info")).json()
        assert info | {"agentrl": ""} == {
            "spec": SPEC,
            "agentrl": "",
            "protocol": 1,
            "schema_version": SCHEMA_VERSION,
            "plays": True,
            "compares": True,
            "call_s": 30.0,
            "score_s": 30.0,
            "idle_s": 600.0,
            "max_sessions": 1024,
            "sessions": 1,
            "waiting": 0,
            "opened": 1,
            "idled": 0,
            "failed": 0,
        }

    ask(play)


def test_rows_come_in_batches():
    async def play(http, pool):
        assert (await http.get("/tasks/train")).json() == {"length": 300}
        assert (await http.get("/tasks/train/7")).json() == {"rows": ROWS[7:8]}
        assert (await http.get("/tasks/train/200?count=256")).json() == {"rows": ROWS[200:]}
        assert (await http.get("/tasks/train/300")).json() == {"rows": []}
        answer = await http.get("/tasks/eval")
        assert (answer.status_code, answer.json()) == (422, {"error": "environment 'fake': there is no eval split"})
        assert "allowed: train and eval" in (await http.get("/tasks/test")).json()["error"]
        for count in ("0", "257", "-1", "x", "9" * 5000, "\u0663"):
            assert (await http.get("/tasks/train/0", params={"count": count})).status_code == 400
        for start in ("9" * 5000, "-1", "x", "\u0663"):
            assert (await http.get(f"/tasks/train/{start}")).status_code == 400

    ask(play)


def test_a_split_whose_process_has_died_is_loaded_again():
    loaded = []

    def load(split):
        loaded.append(split)
        return (Breaking if loaded.count("train") == 1 else ListRows)(ROWS)

    async def play(http, pool):
        answer = await http.get("/tasks/train/0")
        assert (answer.status_code, answer.json()) == (500, {"error": "its process was killed by SIGKILL"})
        assert (await http.get("/tasks/train/0")).json() == {"rows": ROWS[:1]}

    ask(play, load=load)
    assert sorted(loaded) == ["eval", "train", "train"]


def test_an_environment_without_any_rows_is_not_served():
    def load(split):
        raise ConfigError(f"no {split}")

    async def play(http, pool): ...

    with pytest.raises(ConfigError, match="no train"):
        ask(play, load=load)


def test_only_those_with_the_key_get_in():
    async def play(http, pool):
        assert (await http.get("/health")).status_code == 200
        for path in ("/info", "/tasks/train", "/tasks/train/0"):
            answer = await http.get(path)
            assert answer.status_code == 401
            assert answer.json() == {
                "error": "this server asks for an API key and got no key; set AGENTRL_ENV_API_KEY to the server's where the run starts"
            }
        for method, path in (("PUT", ""), ("POST", ""), ("DELETE", ""), ("POST", "/sampled")):
            for key in ("Bearer secre", "Bearer secrets", "secret", "Basic secret", "Bearer ", "Bearer \u00e9"):
                headers = {"authorization": key.encode("latin-1")}
                answer = await http.request(method, f"/sessions/{KEY}{path}", json=OPENING, headers=headers)
                assert answer.status_code == 401
                assert "got a wrong key" in answer.json()["error"]
        assert not pool.opened
        assert (await http.get("/info", headers={"authorization": "Bearer secret"})).status_code == 200

    ask(play, key="secret")


def test_a_page_in_a_browser_on_this_machine_opens_nothing():
    async def play(http, pool):
        answer = await http.put(f"/sessions/{KEY}", json=OPENING, headers={"host": "attacker.example:8100"})
        assert answer.status_code == 401
        assert "must be called localhost or 127.0.0.1, and not 'attacker.example'" in answer.json()["error"]
        assert not pool.opened
        assert (await http.put(f"/sessions/{KEY}", json=OPENING, headers={"host": "localhost:8100"})).status_code == 200

    ask(play)


@pytest.mark.parametrize("headers", [{}, {"agentrl-protocol": "2"}, {"agentrl-protocol": "01"}])
def test_another_version_of_the_protocol_is_refused(headers):
    async def play(http, pool):
        answer = await http.get("/info")
        assert answer.status_code == 400
        spoken = headers.get("agentrl-protocol", "none")
        assert f"the client speaks version {spoken} of the protocol and this server version 1 (agentrl " in answer.json()["error"]

    ask(play, headers=headers)


def test_tasks_of_another_environment_are_refused():
    async def play(http, pool):
        answer = await http.put(f"/sessions/{KEY}", json={**OPENING, "spec": "countdown"})
        assert (answer.status_code, answer.json()["error"]) == (
            409,
            "this server serves fake, and the run began with countdown; start it again",
        )
        assert not pool.opened

    ask(play)


NESTED = b'{"number": 1, "request": {"kind": "tool", "name": "a", "arguments": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}}"


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "the request is no Asked"),
        (b"[]", 400, "Expected `object`, got `array`"),
        (b"\xff", 400, "the request is no Asked"),
        (json.dumps(asked("1")).encode(), 400, "Expected `int`, got `str` - at `$.number`"),
        (json.dumps(asked(1, {"kind": "exec"})).encode(), 400, "Invalid value 'exec' - at `$.request.kind`"),
        (json.dumps(asked(1, TOOL)).replace("{}", '{"a": NaN}').encode(), 400, "the request is no Asked"),
        (json.dumps(asked(1, TOOL)).replace("{}", '{"a": 1e999}').encode(), 400, "the request is no Asked"),
        (NESTED, 400, "nested too deeply"),
    ],
)
def test_what_is_no_request_is_refused(body, status, said):
    async def play(http, pool):
        await http.put(f"/sessions/{KEY}", json=OPENING)
        answer = await http.post(f"/sessions/{KEY}", content=body)
        assert answer.status_code == status
        assert said in answer.json()["error"]
        assert (await http.post(f"/sessions/{KEY}", json=asked(1))).status_code == 200  # and nothing is out of step

    ask(play)


def test_a_session_has_an_id_that_nobody_guesses():
    async def play(http, pool):
        for key in ("short", "x" * 65, "a" * 15 + ".", "a" * 16 + "%0a"):
            assert (await http.put(f"/sessions/{key}", json=OPENING)).status_code == 400

    ask(play)


def test_a_full_server_says_when_to_come_again():
    async def play(http, pool):
        await http.put(f"/sessions/{KEY}", json=OPENING)
        answer = await http.put("/sessions/session-number-two", json=OPENING)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "all 1 sessions of this server are taken" in answer.json()["error"]

    ask(play, max_sessions=1, place_s=0.01)


def test_an_answer_that_takes_long_is_asked_for_again():
    async def play(http, pool):
        await http.put(f"/sessions/{KEY}", json=OPENING)
        answer = await http.post(f"/sessions/{KEY}", json=asked(1, {"kind": "tool", "name": "wait", "arguments": {"seconds": 1e6}}))
        assert (answer.status_code, answer.json()) == (202, {"session": KEY, "number": 1, "answer": None})

    ask(play, poll_s=0.01)
