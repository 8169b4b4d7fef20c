"""Which server is asked, who goes first, and what servers that come and go do to requests."""

from collections import Counter
from functools import partial

import trio
import trio.testing
from vllm_fakes import A, B, FakeServer, ask_all, check_all, give_up, make_request, play, sampled_of, serving

from agentrl.engines.vllm_http import Reply
from agentrl.engines.vllm_pace import FIRST
from agentrl.engines.vllm_routing import WINDOW, Router, Ticket
from agentrl.errors import SamplerUnavailable


def test_requests_are_spread_over_the_servers():
    servers = [FakeServer(A), FakeServer(B)]
    answers, _, _ = play(partial(ask_all, requests=[make_request(seed) for seed in range(20)]), *servers)
    check_all(answers, range(20))
    assert [len(server.asked) for server in servers] == [10, 10]


def test_the_turns_of_an_episode_stay_with_the_server_that_holds_their_prefix():
    servers = [FakeServer(A), FakeServer(B)]

    async def episodes(engine):
        async def episode(number):
            for turn in range(5):
                await engine.generate(make_request(number, prompt=4 + turn, session=f"episode {number}"))

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(episode, number)

    play(episodes, *servers)
    for server in servers:
        assert set(Counter(asked["sampling_params"]["seed"] for asked in server.asked).values()) == {5}


def test_an_episode_returns_to_its_server_although_another_is_as_free():
    servers = [FakeServer(A), FakeServer(B)]

    async def return_to(engine):
        await ask_all(engine, [make_request(seed, session=str(seed)) for seed in range(2)])
        for seed in (1, 1, 0, 0, 1):
            await engine.generate(make_request(seed, session=str(seed)))

    play(return_to, *servers)
    homes = [{asked["sampling_params"]["seed"] for asked in server.asked} for server in servers]
    assert sorted(homes, key=min) == [{0}, {1}]


def test_a_free_place_goes_to_a_turn_whose_prefix_is_there_before_one_that_came_earlier():
    async def main():
        router = Router(1)
        router.update(serving(FakeServer(A), FakeServer(B)).servers)
        homes = {}
        for session in ("first", "second"):
            ticket = Ticket(session, 10)
            homes[session] = (await router.take(ticket), ticket.scope)
        waiting = [Ticket("first", 10), *(Ticket("second", 10) for _ in range(WINDOW + 3))]
        async with trio.open_nursery() as nursery:
            for ticket in waiting:
                nursery.start_soon(router.take, ticket)
                await trio.testing.wait_all_tasks_blocked()
            place, scope = homes["second"]
            served = []
            for _ in waiting:
                router.give_back(place, scope)
                (ticket,) = [ticket for ticket in waiting if ticket.place is place and ticket not in served]
                served.append(ticket)
                scope = ticket.scope
        return [ticket.session for ticket in served]

    served = trio.run(main)
    assert served[:WINDOW] == ["second"] * WINDOW
    assert served[WINDOW] == "first"  # passed over often enough


def test_an_episode_leaves_a_server_that_is_clearly_fuller():
    slow, free = FakeServer(A, turn_s=100), FakeServer(B)

    async def crowd(engine):
        await engine.generate(make_request(1, session="mine"))
        async with trio.open_nursery() as nursery:
            engine.update(serving(slow))
            for seed in range(2, FIRST // 2 + 2):
                nursery.start_soon(engine.generate, make_request(seed))
            await trio.testing.wait_all_tasks_blocked()
            engine.update(serving(slow, free))
            await engine.generate(make_request(100, session="mine"))

    play(crowd, slow, free, timeout_s=300)
    assert slow.asked[0]["sampling_params"]["seed"] == 1
    assert [asked["sampling_params"]["seed"] for asked in free.asked] == [100]


def test_a_server_that_fails_at_once_does_not_draw_the_requests_to_it():
    bad, good = FakeServer(A, turn_s=0.0, fault=lambda _: Reply(status=500, body=b"")), FakeServer(B)

    async def one_after_another(engine):
        for seed in range(30):
            await engine.generate(make_request(seed))

    play(one_after_another, bad, good)
    assert len(good.asked) == 30
    assert len(bad.asked) <= 8


def test_the_server_that_failed_a_request_last_is_not_the_next_one_it_asks():
    error = Reply(status=500, body=b"")
    servers = [FakeServer(A, fault=lambda call: error if call < 3 else None), FakeServer(B, fault=lambda call: error if call < 2 else None)]
    completion, _, suspects = play(lambda engine: engine.generate(make_request(3)), *servers)
    assert completion.ids.tolist() == sampled_of(3)
    assert [url for url, _ in suspects] == [A, B, A, B, A]


def test_requests_on_a_server_that_leaves_are_sent_again_elsewhere_at_once():
    leaving, staying = FakeServer(A, turn_s=50), FakeServer(B)

    async def leave(engine):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave_later, engine)
            return await ask_all(engine, [make_request(seed, session=str(seed)) for seed in range(10)])

    async def leave_later(engine):
        await trio.sleep(5)
        engine.update(serving(staying, step=1))
        staying.version = "0.1"

    answers, seconds, suspects = play(leave, leaving, staying)
    check_all(answers, range(10))
    assert (leaving.aborted, leaving.running, leaving.closed) == (5, 0, True)
    assert (seconds, suspects) == (6.0, [])
    assert Counter(completion.versions[0].version.step for completion in answers.values()) == {0: 5, 1: 5}


def test_a_server_that_joins_takes_part_at_once():
    first, second = FakeServer(A, turn_s=5), FakeServer(B)

    async def join(engine):
        engine.update(serving(first))
        async with trio.open_nursery() as nursery:
            for seed in range(FIRST + 8):
                nursery.start_soon(engine.generate, make_request(seed))
            await trio.testing.wait_all_tasks_blocked()
            assert (first.running, second.running) == (FIRST, 0)
            engine.update(serving(first, second))
            await trio.testing.wait_all_tasks_blocked()
            assert (first.running, second.running) == (FIRST, 8)

    play(join, first, second, max_requests=FIRST)


def test_a_new_version_or_adapter_lets_requests_go_on_and_another_model_does_not():
    server = FakeServer(A, turn_s=10)

    async def change(engine):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.generate, make_request(1))
            await trio.sleep(1)
            engine.update(serving(server, model="policy@0.1", step=1))
            await trio.sleep(1)
            assert server.aborted == 0
            nursery.start_soon(engine.generate, make_request(2))
            await trio.sleep(1)
            engine.update(serving(server, model="other"))
            await trio.sleep(1)
            assert server.aborted == 2

    play(change, server)
    asked = [(call["model"], call["cache_salt"], call["sampling_params"]["seed"]) for call in server.asked]
    assert asked[:2] == [("policy", "0.0", 1), ("policy@0.1", "0.1", 2)]
    assert sorted(asked[2:]) == [("other", "0.0", 1), ("other", "0.0", 2)]


def test_waiting_behind_others_costs_a_request_none_of_its_time():
    server = FakeServer(A, turn_s=8, preemptions=0)
    requests = [make_request(seed) for seed in range(5)]
    answers, seconds, _ = play(partial(ask_all, requests=requests), server, timeout_s=10.0, max_requests=1)
    check_all(answers, range(5))
    assert seconds == 40.0


def test_time_without_a_server_counts_although_it_comes_and_goes():
    async def flicker(engine):
        engine.update(serving())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flickering, engine)
            await engine.generate(make_request(3))

    async def flickering(engine):
        for _ in range(20):
            engine.update(serving())
            await trio.sleep(1)
            engine.update(serving(slow))
            await trio.sleep(1)

    slow = FakeServer(A, turn_s=5)
    error = give_up(flicker, slow, timeout_s=10.0)
    assert "no call failed" in str(error)
    assert len(slow.asked) == 5


def test_the_time_of_those_who_wait_in_the_queue_runs_when_the_last_server_leaves():
    server = FakeServer(A, turn_s=1e6)
    ends = []

    async def desert(engine):
        async def ask(seed):
            try:
                await engine.generate(make_request(seed))
            except SamplerUnavailable:
                ends.append((seed, trio.current_time() - started))

        started = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, 1)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(ask, 2)
            await trio.sleep(4)
            engine.update(serving())

    play(desert, server, timeout_s=10.0, max_requests=1)
    assert dict(ends) == {1: 10.0, 2: 14.0}


def test_a_place_given_just_after_a_cancellation_is_given_back():
    async def main():
        router = Router(1)
        router.update(serving(FakeServer(A)).servers)
        first, second, third = (Ticket("", 10) for _ in range(3))
        place = await router.take(first)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(router.take, second)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            router.give_back(place, first.scope)
            assert second.place is place
        assert not place.calls
        assert await router.take(third) is place

    trio.run(main)


def test_turns_of_running_episodes_go_before_new_episodes():
    server = FakeServer(A, turn_s=1)
    order = []

    async def episodes(engine):
        async def episode(number, turns):
            for turn in range(turns):
                await engine.generate(make_request(10 * number + turn, session=str(number)))
                order.append((number, turn))

        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(episode, number, 2)
                await trio.testing.wait_all_tasks_blocked()

    play(episodes, server, max_requests=1)
    assert order[0] == (0, 0)
    # The first to wait was given the place before the first episode could ask again; from then on who runs goes first.
    assert order[1:4] == [(1, 0), (0, 1), (1, 1)]


def test_as_many_requests_are_in_flight_as_the_server_keeps_up_with():
    server = FakeServer(A, turn_s=10)

    async def rise_and_fall(engine):
        seen = []
        async with trio.open_nursery() as nursery:
            for seed in range(1000):
                nursery.start_soon(engine.generate, make_request(seed))
            await trio.sleep(3.5)
            seen.append(server.running)
            server.waiting = 1000
            await trio.sleep(60)
            seen.append(server.running)
            nursery.cancel_scope.cancel()
        return seen

    (high, low), _, _ = play(rise_and_fall, server, timeout_s=1e6)
    assert high in {FIRST * 8, FIRST * 16}  # by whether the first look found requests waiting
    assert low == 1


def test_a_users_bound_holds():
    server = FakeServer(A)
    answers, _, _ = play(partial(ask_all, requests=[make_request(seed) for seed in range(40)]), server, max_requests=3)
    check_all(answers, range(40))
    assert server.most_running == 3
