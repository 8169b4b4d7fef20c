"""One request on vLLM servers: what is asked again, what is given up and what is never asked."""

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm_fakes import (
    A,
    B,
    FakeServer,
    FakeServers,
    as_reply,
    give_up,
    lost,
    make_answer,
    make_request,
    play,
    sampled_of,
    serving,
)

from agentrl.engines.vllm import VllmEngine
from agentrl.engines.vllm_http import Reply
from agentrl.errors import RequestRefused
from agentrl.records import Version


def first_calls(count, fault):
    """A server's first calls end in a fault."""
    return lambda call: fault if call < count else None


def test_a_request_is_sampled_by_the_served_model_with_the_key():
    server = FakeServer(A)
    completion, seconds, suspects = play(lambda engine: engine.generate(make_request(7)), server, api_key="secret")
    assert completion.ids.tolist() == sampled_of(7)
    assert (completion.finish_reason, completion.versions[0].version) == ("stop", Version())
    assert server.asked[0]["model"] == "policy"
    assert server.headers == {"authorization": "Bearer secret"}
    assert (seconds, suspects, server.closed) == (1.0, [], True)


def test_no_key_sends_no_header():
    server = FakeServer(A)
    play(lambda engine: engine.generate(make_request()), server)
    assert server.headers == {}


FAULTS = {
    "500": Reply(status=500, body=b'{"error": {"message": "engine died"}}'),
    "503": Reply(status=503, body=b"paused"),
    "404": Reply(status=404, body=b'{"error": {"message": "no such model"}}'),
    "401": Reply(status=401, body=b'{"error": "Unauthorized"}'),
    "429": Reply(status=429, body=b""),
    "a lost connection": lost(),
    "garbage": Reply(status=200, body=b"\x00<garbage>"),
    "nulls": as_reply({"choices": [{"token_ids": None, "logprobs": None, "finish_reason": None}]}),
    "NaN log-probs": Reply(status=200, body=b'{"choices": [{"token_ids": [5], "logprobs": {"content": [{"logprob": NaN}]}}]}'),
    "another version": as_reply(make_answer([5], versions=(("default", 0, 1),))),
    "aborted": as_reply(
        {"choices": [{"token_ids": [], "logprobs": {"content": []}, "finish_reason": "abort", "weight_versions": []}]},
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_servers_fault_is_told_and_the_request_goes_to_another(fault):
    bad, good = FakeServer(A, fault=lambda _: FAULTS[fault]), FakeServer(B)
    completion, seconds, suspects = play(lambda engine: engine.generate(make_request(7)), bad, good)
    assert completion.ids.tolist() == sampled_of(7)
    assert (len(bad.asked), len(good.asked)) == (1, 1)
    assert [url for url, _ in suspects] == [A]
    assert A in suspects[0][1]
    assert seconds < 3


def test_the_only_server_is_asked_again_ever_more_slowly():
    server = FakeServer(A, turn_s=0.0, fault=first_calls(8, FAULTS["500"]))
    completion, seconds, suspects = play(lambda engine: engine.generate(make_request(7)), server)
    assert completion.ids.tolist() == sampled_of(7)
    assert len(suspects) == 8
    assert seconds == pytest.approx(0.2 + 0.4 + 0.8 + 1.6 + 3.2 + 5 + 5 + 5)


def test_what_fails_until_the_deadline_is_given_up_and_says_what_was_tried():
    error = give_up(lambda engine: engine.generate(make_request()), FakeServer(A, fault=lambda _: FAULTS["500"]), timeout_s=10.0)
    assert "within 10 s" in str(error)
    assert "engine died" in str(error)
    assert A in str(error)
    assert not isinstance(error, RequestRefused)


def test_a_server_that_does_not_answer_is_told_and_given_up_at_the_deadline():
    server = FakeServer(A, turn_s=1e6)
    suspects = []
    error = give_up(
        lambda engine: engine.generate(make_request()), server, timeout_s=10.0, on_suspect=lambda url, why: suspects.append((url, why))
    )
    assert "no call failed" in str(error)
    assert [url for url, _ in suspects] == [A]
    assert (server.running, server.aborted) == (0, 1)


def test_it_waits_for_a_server_and_then_gives_up():
    server = FakeServer(A)

    async def come_back(engine):
        engine.update(serving())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(come_later, engine)
            return await engine.generate(make_request(3))

    async def come_later(engine):
        await trio.sleep(8)
        engine.update(serving(server))

    completion, seconds, _ = play(come_back, server, timeout_s=10.0)
    assert (completion.ids.tolist(), seconds) == (sampled_of(3), 9.0)
    error = give_up(come_back, server, timeout_s=7.0)
    assert "in use now: none" in str(error)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refusal_is_final_and_no_fault_of_the_servers(status):
    body = b'{"error": {"message": "Token id 99999 is out of vocabulary"}}'
    servers = [FakeServer(url, fault=lambda _: Reply(status=status, body=body)) for url in (A, B)]
    suspects = []
    error = give_up(lambda engine: engine.generate(make_request()), *servers, on_suspect=lambda url, why: suspects.append((url, why)))
    assert isinstance(error, RequestRefused)
    assert "Token id 99999" in str(error)
    assert sum(len(server.asked) for server in servers) == 1
    assert not suspects


def test_budgets_are_clipped_to_the_context_and_a_full_one_is_a_truncated_end():
    server = FakeServer(A)

    async def near_the_end(engine):
        engine.update(serving(server, context_length=16))
        clipped = await engine.generate(make_request(1, prompt=13, max_tokens=50))
        full = await engine.generate(make_request(2, prompt=16))
        return clipped, full

    (clipped, full), _, _ = play(near_the_end, server)
    assert [asked["sampling_params"]["max_tokens"] for asked in server.asked] == [3]
    assert len(clipped.ids) == 3
    assert (len(full.ids), len(full.logprobs), full.versions, full.finish_reason) == (0, 0, (), "length")


@pytest.mark.parametrize("figures", [lost(), Reply(status=404, body=b"not found"), Reply(status=200, body=b"\xff")])
def test_a_server_without_figures_is_told_and_still_used(figures):
    server = FakeServer(A, turn_s=0.5, figures=figures)
    completion, _, suspects = play(lambda engine: engine.generate(make_request(2)), server)
    assert completion.ids.tolist() == sampled_of(2)
    assert [url for url, _ in suspects] == [A]


def test_cancelling_a_call_aborts_its_request_and_frees_its_place():
    server = FakeServer(A, turn_s=10)

    async def cancel(engine):
        with trio.move_on_after(1) as scope:
            await engine.generate(make_request(1))
        assert scope.cancelled_caught
        assert (server.aborted, server.running) == (1, 0)
        return await engine.generate(make_request(2))

    completion, seconds, suspects = play(cancel, server, max_requests=1)
    assert (completion.ids.tolist(), seconds, suspects) == (sampled_of(2), 11.0, [])


def test_cancelling_what_waits_leaves_nothing_behind():
    server = FakeServer(A, turn_s=10)

    async def cancel(engine):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.generate, make_request(1))
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(10):  # it is given the place in the very moment of its end
                await engine.generate(make_request(2))
            with trio.move_on_after(1):
                await engine.generate(make_request(3))
            return await engine.generate(make_request(4))

    completion, _, _ = play(cancel, server, max_requests=1)
    assert completion.ids.tolist() == sampled_of(4)


def test_leaving_the_block_aborts_what_is_in_flight():
    server = FakeServer(A, turn_s=1e6)

    async def main():
        async with trio.open_nursery() as nursery:
            async with VllmEngine.open(timeout_s=10, on_suspect=lambda *_: None, connect=FakeServers(a=server).connect) as engine:
                engine.update(serving(server))
                nursery.start_soon(engine.generate, make_request())
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert (server.running, server.closed) == (0, True)


FAULT = st.sampled_from([None, None, None, *FAULTS.values(), 3.0, 40.0])
CHANGE = st.tuples(st.floats(0, 20), st.sets(st.sampled_from(["a", "b", "c"])))


@settings(max_examples=150, deadline=None)
@given(
    faults=st.fixed_dictionaries({name: st.lists(FAULT, max_size=12) for name in "abc"}),
    turns=st.fixed_dictionaries({name: st.floats(0, 5) for name in "abc"}),
    changes=st.lists(CHANGE, max_size=6),
    cancelled=st.sets(st.integers(0, 23)),
    most=st.none() | st.integers(1, 4),
)
def test_no_request_is_lost_or_answered_twice_whatever_servers_do(faults, turns, changes, cancelled, most):
    servers = {
        name: FakeServer(
            f"http://{name}", turn_s=turns[name], fault=lambda call, name=name: faults[name][call] if call < len(faults[name]) else None
        )
        for name in "abc"
    }

    async def storm(engine):
        answers = {}

        async def episode(number):
            for turn in range(3):
                seed = number * 3 + turn
                with trio.move_on_after(2 if seed in cancelled else 1e9) as scope:
                    completion = await engine.generate(make_request(seed, session=str(number)))
                    assert seed not in answers
                    answers[seed] = completion.ids.tolist()
                if scope.cancelled_caught:
                    answers.setdefault(seed, None)

        async def churn():
            for after, names in changes:
                await trio.sleep(after)
                engine.update(serving(*(servers[name] for name in sorted(names))))
            await trio.sleep(1)
            engine.update(serving(*servers.values()))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(churn)
            for number in range(8):
                nursery.start_soon(episode, number)
        return answers

    answers, _, _ = play(storm, *servers.values(), timeout_s=1e6, max_requests=most)
    assert set(answers) == set(range(24))
    for seed, ids in answers.items():
        assert ids == sampled_of(seed) or (ids is None and seed in cancelled)
    assert all(server.running == 0 for server in servers.values())
