import pytest
import trio
import trio.testing
from server_fakes import FakePool, decode, task

from agentrl.servers.env_server import protocol
from agentrl.servers.env_server import sessions as module
from agentrl.servers.env_server.refusals import Full, OutOfTurn, SessionOver, UnknownSession
from agentrl.servers.env_server.sessions import Limits, Sessions

KEYS = [f"session-number-{number:03d}" for number in range(10)]
KEY = KEYS[0]
SCORE = protocol.Grade(messages=[{"role": "assistant", "content": "x"}], completion_ids=[1], ending="complete")


def run(play, **limits):
    """Run `play(sessions, pool)` on a simulated clock; every session is ended afterwards."""

    async def main():
        pool = FakePool()
        async with trio.open_nursery() as nursery:
            await play(Sessions(pool, Limits(**limits), nursery), pool)
            nursery.cancel_scope.cancel()
        assert pool.open_now == 0

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def tool(name, **arguments):
    return protocol.CallTool(name=name, arguments=arguments)


async def said(sessions, number, request, digest=None, key=KEY):
    """The answer to a request, asked for until there is one."""
    while (body := await sessions.ask(key, number, request, digest or b"%d" % number)) is None:
        pass
    answer = decode(body)
    assert (answer.session, answer.number) == (key, number)
    return answer.answer


async def opened(sessions, key=KEY, **row):
    while (body := await sessions.open(key, task(**row), b"open")) is None:
        pass
    return decode(body).answer


def test_an_episode_from_start_to_score():
    async def play(sessions, pool):
        assert await opened(sessions) == protocol.Opened(
            prompt="hi", tools=[], max_turns=None, max_tokens=None, replies=True, plays=False, timeouts={}, output_chars={}
        )
        assert (await said(sessions, 1, tool("look"))).text == "look 1"
        assert await said(sessions, 2, protocol.Answer(text="x")) == protocol.Replied(text="you said x", done=False, reward=0.5)
        assert await said(sessions, 3, SCORE) == protocol.Graded(value=1.5, parts={"a": 1.5}, reason="", details={"seen": 2.0})
        episode = pool.opened[0].calls[-1]
        assert (episode.prompt, episode.messages, episode.completion_ids) == ("hi", SCORE.messages, [1])
        await trio.sleep(0.1)
        assert (sessions.load, pool.closed, sessions.opened) == (0, 1, 1)

    run(play)


def test_a_repeated_request_is_answered_again_and_not_done_again():
    async def play(sessions, pool):
        first, again = await opened(sessions), await opened(sessions)
        assert first == again
        assert len(pool.opened) == 1
        for _ in range(3):
            assert (await said(sessions, 1, tool("look"))).text == "look 1"
        assert (await said(sessions, 2, tool("look"))).text == "look 2"
        assert len(pool.opened[0].calls) == 2
        for _ in range(2):  # also after the session has ended
            assert (await said(sessions, 3, SCORE)).value == 1.5
        assert len(pool.opened[0].calls) == 3

    run(play)


def test_requests_that_wait_for_one_slow_answer_all_get_it():
    async def play(sessions, pool):
        await opened(sessions)
        answers = []

        async def ask():
            answers.append((await said(sessions, 1, tool("wait", seconds=17))).text)

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(ask)
        assert answers == ["wait 1"] * 4
        assert len(pool.opened[0].calls) == 1
        assert trio.current_time() == pytest.approx(17)

    run(play)


def test_an_answer_is_late_but_never_somebody_elses():
    async def play(sessions, pool):
        await opened(sessions)
        assert await sessions.ask(KEY, 1, tool("wait", seconds=7), b"1") is None
        assert trio.current_time() == pytest.approx(5)
        with pytest.raises(OutOfTurn, match=r"request 2 of session .* the newest is 1, which is still being answered"):
            await sessions.ask(KEY, 2, tool("look"), b"2")
        assert (await said(sessions, 1, tool("wait", seconds=7))).text == "wait 1"
        assert (await said(sessions, 2, tool("look"))).text == "look 2"
        with pytest.raises(OutOfTurn, match="the newest is 2, which has been answered"):
            await sessions.ask(KEY, 1, tool("wait", seconds=7), b"1")
        for number in (0, 4, -1):
            with pytest.raises(OutOfTurn):
                await sessions.ask(KEY, number, tool("look"), b"x")
        with pytest.raises(OutOfTurn, match="request 2 was sent before with other contents"):
            await sessions.ask(KEY, 2, tool("listen"), b"other")
        assert [name for name, _ in pool.opened[0].calls] == ["wait", "look"]

    run(play)


def test_what_fails_ends_the_session_and_can_be_heard_again():
    async def play(sessions, pool):
        await opened(sessions)
        for _ in range(2):
            assert await said(sessions, 1, tool("fail")) == protocol.Failed(reason="the sandbox is down")
        with pytest.raises(SessionOver, match="is over: its environment failed: the sandbox is down"):
            await sessions.ask(KEY, 2, tool("look"), b"2")
        for _ in range(2):
            assert (await opened(sessions, KEYS[1], broken=True)).reason == "start broke"
        assert (sessions.failed, sessions.load) == (2, 0)

    run(play)


def test_a_client_that_vanishes_gives_its_place_back():
    async def play(sessions, pool):
        for key in KEYS[:4]:
            await opened(sessions, key)
        assert await sessions.ask(KEYS[1], 1, tool("wait", seconds=1e6), b"1") is None  # one that hangs meanwhile
        with pytest.raises(Full, match="all 4 sessions of this server are taken"):
            await sessions.open(KEYS[4], task(), b"open")
        assert sessions.load == 4
        await trio.sleep(600)
        assert (sessions.load, sessions.idled, pool.open_now) == (0, 4, 0)
        await opened(sessions, KEYS[5])
        with pytest.raises(SessionOver, match="is over: no request came for 600 s"):
            await sessions.ask(KEYS[1], 1, tool("wait", seconds=1e6), b"1")

    run(play, max_sessions=4)


def test_a_session_lives_as_long_as_somebody_asks():
    async def play(sessions, pool):
        await opened(sessions)
        assert (await said(sessions, 1, tool("wait", seconds=1000))).text == "wait 1"
        for number in range(2, 6):
            await trio.sleep(59)
            assert (await said(sessions, number, tool("look"))).text
        assert sessions.idled == 0

    run(play, idle_s=60)


def test_a_place_is_given_to_who_waited_first():
    async def play(sessions, pool):
        await opened(sessions, KEYS[0])
        order = []

        async def wait(key):
            await opened(sessions, key)
            order.append(key)

        async with trio.open_nursery() as nursery:
            for key in KEYS[1:3]:
                nursery.start_soon(wait, key)
                await trio.sleep(0.1)
            nursery.start_soon(wait, KEYS[2])  # the same request again does not take a second place
            await trio.sleep(0.1)
            assert sessions.waiting == 3
            sessions.close(KEYS[0])
            await trio.sleep(0.1)
            assert order == [KEYS[1]]
            sessions.close(KEYS[1])
        assert order == [*KEYS[1:3], KEYS[2]]
        assert sessions.opened == 3

    run(play, max_sessions=1)


def test_closing_ends_what_is_being_done():
    async def play(sessions, pool):
        await opened(sessions)
        async with trio.open_nursery() as nursery:

            async def ask():
                with pytest.raises(SessionOver, match="its client closed it"):
                    await sessions.ask(KEY, 1, tool("wait", seconds=1e6), b"1")

            nursery.start_soon(ask)
            await trio.sleep(0.1)
            sessions.close(KEY)
        sessions.close(KEY)
        await trio.sleep(0.1)
        assert (sessions.load, pool.closed) == (0, 1)
        assert trio.current_time() < 1
        with pytest.raises(SessionOver, match="its client closed it"):
            await sessions.ask(KEY, 1, tool("wait", seconds=1e6), b"1")

    run(play)


def test_a_session_that_was_closed_before_it_arrived_is_not_opened():
    async def play(sessions, pool):
        sessions.close(KEY)
        with pytest.raises(SessionOver):
            await sessions.open(KEY, task(), b"open")
        assert not pool.opened

    run(play)


def test_another_servers_session_is_not_known_here():
    async def play(sessions, pool):
        with pytest.raises(UnknownSession, match="there is no session session-number-000 here: the server was restarted"):
            await sessions.ask(KEY, 1, tool("look"), b"1")
        with pytest.raises(UnknownSession):
            sessions.take(KEY, protocol.Sampled(number=0))

    run(play)


def test_few_of_those_that_are_over_are_remembered():
    async def play(sessions, pool):
        sessions.close(KEY)
        for number in range(module.MOST_PAST):
            sessions.close(f"session-{number:012d}")
        with pytest.raises(UnknownSession):
            await sessions.ask(KEY, 1, tool("look"), b"1")
        with pytest.raises(SessionOver):
            await sessions.ask("session-000000000000", 1, tool("look"), b"1")

    run(play)


def test_an_environment_that_plays_asks_for_turns_and_gets_each_once():
    async def play(sessions, pool):
        await opened(sessions)
        first = await said(sessions, 1, protocol.Play())
        sample = protocol.Sample(number=0, prompt="one", tools=[], policy="policy", max_tokens=None, train=True)
        assert first == protocol.Turns(samples=[sample]) == await said(sessions, 1, protocol.Play())
        assert await sessions.ask(KEY, 2, protocol.Play(), b"2") is None  # nothing new
        sessions.take(KEY, protocol.Sampled(number=0, text="two"))
        sessions.take(KEY, protocol.Sampled(number=0, text="again"))
        second = await said(sessions, 2, protocol.Play())
        assert [(one.number, one.prompt, one.train) for one in second.samples] == [(1, "two", False)]
        sessions.take(KEY, protocol.Sampled(number=1, text="three"))
        sessions.take(KEY, protocol.Sampled(number=5, text="of nobody"))
        last = await said(sessions, 3, protocol.Play())
        score = protocol.Graded(value=5.0, parts={}, reason="", details={})
        assert last == protocol.Turns(finished=protocol.Finished(score=score, spent=False, rewards={1: 0.5}))

    run(play)


def test_a_client_that_vanishes_while_its_environment_plays_gives_its_place_back():
    async def play(sessions, pool):
        await opened(sessions)
        await said(sessions, 1, protocol.Play())
        assert await sessions.ask(KEY, 2, protocol.Play(), b"2") is None
        await trio.sleep(600)
        assert (sessions.load, sessions.idled, pool.open_now) == (0, 1, 0)

    run(play)
