"""Environment workers in another Python than ours, with whole episodes in them."""

from __future__ import annotations

import os
import socket
import subprocess

import trio
from adapter_plays import sampler

from agentrl.config import RolloutConfig
from agentrl.config_engine import SamplingConfig
from agentrl.processes import last_lines
from agentrl.rollout.episode import play_episode
from agentrl.rollout.pool import EnvPool, Timeouts

PATIENCE = Timeouts(setup_s=200, call_s=100, score_s=100, close_s=10, grace_s=10)


class OtherHost:
    """A worker of another Python; it ends with this process."""

    def __init__(self, python, log, environment):
        self._log = log
        ours, theirs = socket.socketpair()
        command = [python, "-m", "agentrl.rollout.host", str(theirs.fileno()), str(os.getpid())]
        with theirs, log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **environment},
            )
        self.stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))

    async def ended(self):
        await trio.to_thread.run_sync(self._process.wait, abandon_on_cancel=True)

    async def end(self):
        await self.stream.aclose()
        self._process.kill()
        return f"ended with status {await trio.to_thread.run_sync(self._process.wait)}"

    def last_words(self):
        return last_lines(self._log, 20)


def other_pool(spec, python, folder, **environment):
    """A pool with one such worker, which has further environment variables."""
    return EnvPool(
        spec,
        [],
        RolloutConfig(env_workers=1),
        timeouts=PATIENCE,
        launch=lambda slot: OtherHost(python, folder / f"worker-{slot}.log", environment),
    )


async def played(pool, task, script, *, others=(), **options):
    """A whole episode with a scripted model."""
    sampling = SamplingConfig(**{"max_turns": 50, "max_tokens": 400, **options})
    others = {other.contract.policy: other for other in others}
    rollout = RolloutConfig(episode_timeout_s=250)
    return await play_episode(task, 0, sampler=sampler(script), others=others, pool=pool, sampling=sampling, rollout=rollout, seed=3)
