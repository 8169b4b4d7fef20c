import json
import math

import pytest

from agentrl.errors import ConfigError, EnvironmentFailure
from agentrl.records import SCHEMA_VERSION, Task
from agentrl.servers.env_server import protocol
from agentrl.servers.env_server.client import EnvClient, ServerGone, finite
from agentrl.servers.env_server.connections import ConnectionFault, HttpAnswer

SESSION = "session-of-the-client"
COUNTS = ("call_s", "score_s", "idle_s", "max_sessions", "sessions", "waiting", "opened", "idled", "failed")
INFO = {"spec": "fake", "agentrl": "9", "protocol": 1, "schema_version": SCHEMA_VERSION, "plays": False, "compares": False}
INFO |= dict.fromkeys(COUNTS, 1)
SEEN = {"kind": "observation", "text": "seen", "done": False, "error": False, "reward": 0.5}
TOOL = protocol.CallTool(name="look", arguments={})
LOST = ConnectionFault("no answer within 10 s")
FULL = HttpAnswer(status=503, body=b'{"error": "all 4 sessions are taken"}', retry_after_s=1.0)


def ok(message, status=200):
    return HttpAnswer(status=status, body=json.dumps(message).encode())


def said(answer, *, session=SESSION, number=1):
    return ok({"session": session, "number": number, "answer": answer}, 202 if answer is None else 200)


class Scripted:
    """Connections that answer one thing after the other, then the last again; each takes a second of a simulated clock."""

    url = "http://server:1"

    def __init__(self, *answers, takes_s=1.0):
        self.sent = []
        self.slept = []
        self.now = 1000.0
        self._answers = list(answers)
        self._takes_s = takes_s

    def request(self, method, path, body, timeout_s):
        self.sent.append((method, path, body))
        self.now += self._takes_s
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


def client_of(scripted, **options):
    return EnvClient(scripted, sleep=scripted.sleep, clock=lambda: scripted.now, **options)


def look(scripted, deadline_s=30.0, **options):
    return client_of(scripted, **options).ask(SESSION, 1, TOOL, protocol.Observation, deadline_s)


def test_a_request_is_numbered():
    scripted = Scripted(said(SEEN))
    assert look(scripted).text == "seen"
    ((method, path, body),) = scripted.sent
    assert (method, path) == ("POST", f"/sessions/{SESSION}")
    assert json.loads(body) == {"number": 1, "request": {"kind": "tool", "name": "look", "arguments": {}}}


@pytest.mark.parametrize("trouble", [LOST, ConnectionFault("connection refused"), ok({"error": "x"}, 500), ok("x", 502), FULL])
def test_the_very_same_request_is_sent_again_until_it_is_answered(trouble):
    scripted = Scripted(trouble, trouble, trouble, said(SEEN))
    assert look(scripted).text == "seen"
    assert len(set(scripted.sent)) == 1
    assert len(scripted.sent) == 4
    assert all(earlier < later for earlier, later in zip(scripted.slept, scripted.slept[1:], strict=False)) or trouble is FULL


def test_a_server_that_stays_away_is_given_up():
    scripted = Scripted(LOST)
    with pytest.raises(ServerGone, match=r"the environment server http://server:1 does not answer: no answer within 10 s"):
        look(scripted)
    assert 10 < scripted.now - 1000 < 20
    assert max(scripted.slept) <= 3
    with pytest.raises(ServerGone, match="status 503, all 4 sessions are taken"):
        look(Scripted(FULL))
    impatient = Scripted(LOST)
    with pytest.raises(ServerGone):
        look(impatient, patience_s=0.0)
    assert len(impatient.sent) == 1


def test_a_server_that_comes_back_is_asked_again():
    """Patience begins anew with every answer."""
    scripted = Scripted(*[*[LOST] * 4, said(None)] * 3, said(SEEN), takes_s=3.0)
    assert look(scripted, deadline_s=1000.0).text == "seen"


def test_an_answer_that_is_being_worked_on_is_waited_for_until_the_servers_own_deadline():
    scripted = Scripted(*[said(None)] * 5, said(SEEN), takes_s=5.0)
    assert look(scripted).text == "seen"
    assert not scripted.slept
    late = Scripted(said(None), takes_s=5.0)
    with pytest.raises(EnvironmentFailure, match="took longer than its own deadline of 30 s"):
        look(late)
    assert len(late.sent) == 9
    hasty = Scripted(said(None), takes_s=0.001)
    with pytest.raises(EnvironmentFailure, match="took longer"):
        look(hasty)
    assert len(hasty.sent) < 250


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (said(SEEN, number=0), "broken, or no agentrl environment server: it gave an answer to request 0 of session-of-the-client, not 1"),
        (said(SEEN, session="another-session"), "it gave an answer to request 1 of another-session, not 1 of session-of-the-client"),
        (said({"kind": "graded", "value": 1.0, "parts": {}, "reason": "", "details": {}}), "it gave Graded where Observation was expected"),
        (said(SEEN | {"text": 3}), r"no Said \(Expected `str`, got `int` - at `\$.answer.text`\)"),
        (said(SEEN | {"done": "false"}), "Expected `bool`"),
        (said(SEEN | {"reward": None}), "Expected `float`"),
        (said(SEEN | {"reward": math.nan}), "no Said"),
        (said({"kind": "exec"}), "Invalid value 'exec'"),
        (HttpAnswer(status=200, body=b""), r"no Said \(.*\): \(nothing\)"),
        (HttpAnswer(status=200, body=b"<html>\xff"), "<html>"),
        (HttpAnswer(status=200, body=b"[" * 100_000), "no Said"),
        (HttpAnswer(status=404, body=b'{"error": "there is no session x here: the server was restarted"}'), "404: there is no session x"),
        (HttpAnswer(status=410, body=b'{"error": "session x is over: no request came for 600 s"}'), "410: session x is over"),
        (HttpAnswer(status=409, body=b'{"error": "out of turn"}'), "409: out of turn"),
        (HttpAnswer(status=418, body=b"teapot"), "refuses, status 418: teapot"),
        (HttpAnswer(status=302, body=b""), r"refuses, status 302: \(nothing\)"),
    ],
)
def test_what_else_comes_back_is_a_failure_and_no_score(answer, message):
    scripted = Scripted(answer)
    with pytest.raises(EnvironmentFailure, match=message):
        look(scripted)
    assert len(scripted.sent) == 1


def test_what_failed_on_the_server_failed():
    scripted = Scripted(said({"kind": "failed", "reason": "environment play, tool look: it is down", "traceback": "line 3"}))
    with pytest.raises(EnvironmentFailure, match="environment play, tool look: it is down") as caught:
        look(scripted)
    assert caught.value.__notes__ == ["line 3"]


def test_a_wrong_key_is_the_users_to_mend():
    with pytest.raises(ConfigError, match="status 401: this server asks for an API key"):
        client_of(Scripted(ok({"error": "this server asks for an API key and got no key"}, 401))).info()


def test_another_version_is_refused_with_both_versions():
    for other in ({"protocol": 2}, {"schema_version": 77}):
        info = INFO | other
        said = rf"version {info['protocol']} of the protocol and {info['schema_version']} of the records \(agentrl 9\)"
        with pytest.raises(ConfigError, match=rf"{said}, and this agentrl 1 and {SCHEMA_VERSION}: install the same agentrl on both"):
            client_of(Scripted(ok(info))).info()
    with pytest.raises(EnvironmentFailure, match="status 400: the client speaks version 1 of the protocol and this server version 2"):
        client_of(Scripted(ok({"error": "the client speaks version 1 of the protocol and this server version 2"}, 400))).info()


def test_an_episode_is_opened_with_the_spec_that_the_run_began_with():
    opened = {"kind": "opened", "prompt": "hi", "tools": [], "max_turns": None, "max_tokens": None, "replies": False, "plays": False}
    scripted = Scripted(ok(INFO), said(opened | {"timeouts": {}, "output_chars": {}}, number=0))
    task = Task.from_row("http://server:1", {"prompt": "hi"})
    assert client_of(scripted).open(SESSION, task).prompt == "hi"
    method, path, body = scripted.sent[1]
    assert (method, path) == ("PUT", f"/sessions/{SESSION}")
    assert json.loads(body)["spec"] == "fake"
    assert json.loads(body)["task"]["id"] == task.id


def test_rows_are_counted():
    assert client_of(Scripted(ok({"length": 5}))).length("train") == 5
    assert client_of(Scripted(ok({"rows": [{"a": 1}]}))).rows("train", 0, 1) == [{"a": 1}]
    with pytest.raises(EnvironmentFailure, match="it gave 1 rows where 2 were asked for"):
        client_of(Scripted(ok({"rows": [{"a": 1}]}))).rows("train", 0, 2)
    with pytest.raises(EnvironmentFailure, match="it gave a split of -1 rows"):
        client_of(Scripted(ok({"length": -1}))).length("train")
    with pytest.raises(ConfigError, match="status 422: there is no eval"):
        client_of(Scripted(ok({"error": "there is no eval"}, 422))).length("eval")


def test_a_turn_is_taken():
    client_of(Scripted(ok({"session": SESSION, "number": 4}))).sampled(SESSION, protocol.Sampled(number=4))
    with pytest.raises(EnvironmentFailure, match="it gave that it took turn 3 of session-of-the-client, not 4"):
        client_of(Scripted(ok({"session": SESSION, "number": 3}))).sampled(SESSION, protocol.Sampled(number=4))


def test_closing_never_fails():
    for answer in (LOST, ok({"error": "x"}, 500), HttpAnswer(status=204, body=b"")):
        scripted = Scripted(answer)
        client_of(scripted).close(SESSION)
        assert scripted.sent == [("DELETE", f"/sessions/{SESSION}", None)]


def test_what_cannot_be_sent_is_a_failure():
    for value in (object(), "\ud800"):
        scripted = Scripted(said(SEEN))
        with pytest.raises(EnvironmentFailure, match="a Asked cannot be sent to the environment server"):
            client_of(scripted).ask(SESSION, 1, protocol.CallTool(name="look", arguments={"a": value}), protocol.Observation, 1.0)
        assert not scripted.sent


def test_numbers_are_finite():
    assert finite("a score", 0.5) == 0.5
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(EnvironmentFailure, match=r"gave (nan|-?inf) as a score; allowed: a finite number"):
            finite("a score", value)
