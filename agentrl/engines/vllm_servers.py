r"""The vLLM servers of a run, as its supervisor sees them: started or joined, checked, watched, published to, brought back.

    starting --checked--> serving --trouble--> away --well again, newest weights--> serving
                                                  \--too often, or gone for good--> lost

One thread a server looks at it and brings it back; the learner's thread publishes. Rollout processes use those that are `serving`, as
`on_change` tells. When none is left, `on_failure` ends the run.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from agentrl.dispatch import Served, Serving
from agentrl.engines.vllm_api import version_text
from agentrl.engines.vllm_control import RouteFailed
from agentrl.engines.vllm_launch import Server
from agentrl.engines.vllm_preflight import LEASE_S, Expectations, check_server, claim, release
from agentrl.engines.vllm_transports.base import BASE_MODEL
from agentrl.errors import AgentRLError, ConfigError, PublishError, SamplerUnavailable
from agentrl.records import Version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import torch

    from agentrl.engines.vllm_control import Control
    from agentrl.engines.vllm_launch import Launcher
    from agentrl.engines.vllm_probe import Probe
    from agentrl.engines.vllm_publisher import VllmPublisher

LOOK_S = 1.0
"""Between two looks at a server."""
STRIKES = 2
"""Looks in a row that must fail before a server is taken out of use."""
SUSPICIONS = 5
"""Failures that rollouts report of a server which says that it is well, without a good look in between, before it is taken out."""
MOST_BACKOFF = 30
"""Looks to wait, at most, before a server is started again: 1, 4, 16 ..."""


class VllmServers:
    """A `Publisher` over all servers of a run.

    Args:
        servers: those to join and those to start.
        start_timeout_s: longest wait for one to load.
        away_timeout_s: longest time without any server in use, where one may still come back.
        max_restarts: of one server of the run's own.
        control: makes the control routes of a URL.
        look_s: seconds between two looks at a server.
        say: is told what happens to servers, a line each.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        *,
        start_timeout_s: float,
        away_timeout_s: float,
        max_restarts: int,
        control: Callable[[str], Control],
        look_s: float = LOOK_S,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._servers = list(servers)
        self.control = control
        self._look_s = look_s
        self._expected = Expectations(owner="")
        self._publisher: VllmPublisher | None = None
        self._start_timeout_s, self._away_timeout_s, self._max_restarts = start_timeout_s, away_timeout_s, max_restarts
        self._say = say
        self._turn = threading.RLock()
        """Held while weights travel: a server that comes back gets a whole version, and none is published beside it."""
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._version = Version()
        self._model = BASE_MODEL
        self._published = False
        self._none_since: float | None = None
        self.on_change: Callable[[Serving], None] = lambda serving: None
        """Called with the servers in use whenever they, or what they serve, have changed."""
        self.on_failure: Callable[[AgentRLError], None] = lambda error: None
        """Called when no server is left."""

    def start(self) -> None:
        """Start the servers of the run's own; they load while the caller goes on."""
        for server in self._servers:
            if server.launcher is not None:
                server.launcher.start()
                server.url, server.control = server.launcher.url, self.control(server.launcher.url)

    def connect(self, publisher: VllmPublisher, expected: Expectations) -> None:
        """Wait until every server has loaded, check it and watch it from then on.

        Args:
            publisher: brings weights to URLs.
            expected: what each has to be.

        Raises `ConfigError` for one that cannot be used, `SamplerUnavailable` for one that ends or does not load in time.
        """
        self._publisher, self._expected = publisher, expected
        deadline = time.monotonic() + self._start_timeout_s
        for server in self._servers:
            if server.launcher is not None:
                self._await(server, deadline)
            self._check(server)
            server.state = "serving"
        for server in self._servers:
            self._watch(server)

    def _watch(self, server: Server) -> None:
        thread = threading.Thread(target=self._follow, args=(server,), name=f"vllm-{server.url}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def join(self, url: str) -> None:
        """Have one more server, as soon as it can be used; while the run goes on, from any thread."""
        with self._turn:
            if any(server.url == url and server.state != "lost" for server in self._servers) or self._closing.is_set():
                return
            self._servers.append(Server(url=url, control=self.control(url), state="away"))
            self._watch(self._servers[-1])

    def leave(self, url: str) -> None:
        """Do without a server that was joined; what it was asked for is asked elsewhere."""
        with self._turn:
            for server in self._servers:
                if server.url == url and server.launcher is None and server.state != "lost":
                    self._take_out(server, "it was taken off the list")
                    server.state = "lost"
                    release(server.control, self._expected.owner)
            self._changed()

    @property
    def _newest(self) -> VllmPublisher:
        assert self._publisher is not None, "connect comes first"
        return self._publisher

    @property
    def dtype(self) -> str:
        """Type of the servers' weights."""
        return next((server.facts.dtype for server in self._servers if server.facts is not None), "float32")

    @property
    def context_length(self) -> int:
        """Tokens of prompt and completion together: the least of any server's, and no more than the run file allows."""
        lengths = [server.facts.context_length for server in self._servers if server.facts is not None]
        asked = [self._expected.context_length] if self._expected.context_length is not None else []
        return min([*lengths, *asked])

    def serving(self) -> Serving:
        """The servers in use now."""
        used = [server for server in self._servers if server.state == "serving"]
        return Serving(
            servers=tuple(Served(url=server.url, model=self._model, version=self._version) for server in used),
            context_length=self.context_length,
            vocab_size=next((server.facts.vocab_size for server in self._servers if server.facts is not None), None),
        )

    def publish(self, weights: Iterable[tuple[str, torch.Tensor]], version: Version, probe: Probe | None = None) -> str:
        """Bring a version to every server in use; see `Publisher`. One that fails is out of use until it has it.

        Where none is in use, or none is left by it, this waits for one that comes back. Returns the checksum of what was sent; raises
        `PublishError` for weights that do not fit and where the first version reaches no server, `SamplerUnavailable` where none returns.
        """
        self._await_any()
        with self._turn:
            used = [server for server in self._servers if server.state == "serving"]
            try:
                failed = self._newest.publish(weights, version, [server.url for server in used], probe).failed
            except PublishError as error:
                if self._newest.newest is None or not self._published:  # not the servers' fault, or they were never right
                    raise
                failed = dict.fromkeys([server.url for server in used], str(error))
            shipment = self._newest.newest
            assert shipment is not None, "it was published"
            self._version, self._model, self._published = version, shipment.model, True
            for server in used:
                if server.url in failed:
                    self._take_out(server, failed[server.url])
            self._changed()
        self._await_any()  # what comes back has this version
        return shipment.checksum

    def suspect(self, url: str, why: str) -> None:
        """A rollout process had trouble with a server."""
        for server in self._servers:
            if server.url == url and server.state == "serving":
                server.suspicions.append(why)

    def close(self) -> None:
        """Give the joined servers back and end the others."""
        self._closing.set()
        for server in self._servers:
            if server.launcher is None and server.facts is not None:
                release(server.control, self._expected.owner)
        if self._publisher is not None:
            self._publisher.close()
        enders = [threading.Thread(target=server.launcher.stop) for server in self._servers if server.launcher is not None]
        for ender in enders:
            ender.start()
        for thread in [*enders, *self._threads]:
            thread.join()
        for launcher in [server.launcher for server in self._servers if server.launcher is not None]:
            launcher.stop()  # once more, for one that was being started again meanwhile

    def describe_end(self) -> str:
        """Why no server is in use, with the last words of those that this run started."""
        return "\n".join(f"{server.name}: {server.trouble}" for server in self._servers if server.trouble)

    def _await(self, server: Server, deadline: float) -> None:
        """Look at a server of the run's own until it answers; vLLM tells nobody that it is ready."""
        launcher = server.launcher
        assert launcher is not None
        while not server.is_well():
            if launcher.ended():
                raise (ConfigError if launcher.was_refused() else SamplerUnavailable)(launcher.describe_end())
            if time.monotonic() > deadline:
                said = launcher.describe_end()
                raise SamplerUnavailable(f"no answer within engine.launch.start_timeout_s={self._start_timeout_s:g} s: {said}")
            if self._closing.wait(self._look_s):
                raise SamplerUnavailable("the run has ended")

    def _check(self, server: Server) -> None:
        server.facts = check_server(server.control, self._expected)
        if server.launcher is not None and not self._published:  # what it has loaded is what a run, or an evaluation, begins with
            server.control.command("/update_weight_version", {"new_version": version_text(self._version)})
        self._newest.check([server.url])

    def _await_any(self) -> None:
        deadline = time.monotonic() + self._away_timeout_s
        while not any(server.state == "serving" for server in self._servers):
            if time.monotonic() > deadline or all(server.state == "lost" for server in self._servers):
                raise SamplerUnavailable(f"no vLLM server is left to publish to: {self.describe_end()}")
            self._closing.wait(self._look_s / 10)

    def _follow(self, server: Server) -> None:
        """Look at one server until the run ends: take it out of use when it is in trouble, and bring it back."""
        strikes, renewed = 0, time.monotonic()
        while not self._closing.wait(self._look_s):
            if server.state == "serving":
                well = server.is_well()
                strikes = 0 if well else strikes + 1
                if server.has_ended() or strikes >= STRIKES or len(server.suspicions) >= SUSPICIONS:
                    why = server.suspicions[-1] if well else server.trouble
                    if server.launcher is not None:
                        server.launcher.stop()  # a publish that waits for it fails now, and not at its deadline
                    with self._turn:
                        self._take_out(server, why)
                        self._changed()
                elif well and server.launcher is None and time.monotonic() - renewed > LEASE_S / 3:
                    self._renew(server)
                    renewed = time.monotonic()
            if server.state == "away":
                strikes = 0
                self._bring_back(server)
            if server.state == "lost":
                return

    def _renew(self, server: Server) -> None:
        try:
            claim(server.control, self._expected.owner)
        except ConfigError as error:
            with self._turn:
                self._take_out(server, str(error))
                self._changed()
        except RouteFailed:  # the next look says whether it is there at all
            return

    def _take_out(self, server: Server, why: str) -> None:
        server.state, server.trouble = "away", why
        self._say(f"{server.name} is out of use: {why}")
        if self._none_since is None and not any(other.state == "serving" for other in self._servers):
            self._none_since = time.monotonic()

    def _bring_back(self, server: Server) -> None:
        """Try once, after the back-off, to have a server in use again."""
        try:
            if server.launcher is not None:
                self._restart(server, server.launcher)
            elif not server.is_well():
                raise SamplerUnavailable(server.trouble)
            with self._turn:
                self._check(server)
                if self._published:
                    outcome = self._newest.bring_up_to_date(server.url)
                    if outcome.error:
                        raise PublishError(outcome.error)
                if server.state == "lost":  # it was taken off the list meanwhile
                    return
                server.state, server.suspicions, server.trouble, self._none_since = "serving", [], "", None
                self._changed()
            self._say(f"{server.name} is in use again")
        except AgentRLError as error:
            if str(error) != server.trouble:
                self._say(f"{server.name} cannot be used yet: {error}")
            server.trouble = str(error)
            self._give_up_in_time(server)

    def _restart(self, server: Server, launcher: Launcher) -> None:
        if launcher.restarts >= self._max_restarts:
            server.state = "lost"
            raise SamplerUnavailable(f"{server.name} was started again {launcher.restarts} times: {server.trouble}")
        if self._closing.wait(self._look_s * min(4**launcher.restarts, MOST_BACKOFF)):
            raise SamplerUnavailable("the run has ended")
        launcher.restarts += 1
        said = server.trouble
        launcher.start()
        self._say(f"{server.name} is started again ({launcher.restarts} of {self._max_restarts})")
        try:
            self._await(server, time.monotonic() + self._start_timeout_s)
        except SamplerUnavailable as error:
            raise SamplerUnavailable(f"{error}; before that, {said}") from None

    def _give_up_in_time(self, server: Server) -> None:
        if self._closing.is_set():
            return
        all_lost = all(other.state == "lost" for other in self._servers)
        too_long = self._none_since is not None and time.monotonic() - self._none_since > self._away_timeout_s
        if all_lost or too_long:
            server.state = "lost"
            self.on_failure(SamplerUnavailable(f"no vLLM server is left: {self.describe_end() or server.trouble}"))

    def _changed(self) -> None:
        self.on_change(self.serving())
