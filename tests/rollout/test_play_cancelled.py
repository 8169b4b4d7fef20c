"""An environment that plays its episode, and still asks for a turn while that is being cancelled."""

import trio
import trio.testing

from agentrl.rollout.envsession import EnvSession, Timeouts
from agentrl.rollout.messages import Sample

TICKS = 20


class LateWorker:
    """Stands where an `EnvWorker` does; asks for turns at every tick, as long as there is somebody to ask."""

    def __init__(self):
        self.askers = {}
        self.asked = 0

    def next_number(self):
        return 1

    def post(self, request):
        raise AssertionError("no turn is ever answered")

    async def ask(self, *request):
        await trio.sleep_forever()

    async def keep_asking(self, session):
        for _ in range(TICKS):
            if session in self.askers:
                self.asked += 1
                self.askers[session](Sample(session=session, number=self.asked, prompt="hi", policy="policy"))
            await trio.lowlevel.checkpoint()


def test_a_turn_that_is_asked_for_during_a_cancellation_is_forgotten():
    worker = LateWorker()

    async def main():
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            async def never(sample):
                await trio.sleep_forever()

            async def play():
                with scope:
                    await EnvSession(worker, 7, Timeouts()).play(never)

            nursery.start_soon(play)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(worker.keep_asking, 7)
            await trio.lowlevel.checkpoint()
            scope.cancel()
        assert scope.cancelled_caught

    trio.run(main)
    assert 0 < worker.asked < TICKS / 2
    assert worker.askers == {}
