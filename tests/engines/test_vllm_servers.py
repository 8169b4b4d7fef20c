from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import torch
from vllm_server_fake import FakeServer, FakeServers, servers

from agentrl.dispatch import Served, Serving
from agentrl.engines.vllm_launch import Server
from agentrl.engines.vllm_list import ServerList
from agentrl.engines.vllm_preflight import Expectations
from agentrl.engines.vllm_publisher import VllmPublisher
from agentrl.engines.vllm_servers import SUSPICIONS, VllmServers
from agentrl.engines.vllm_transports.filesystem import FilesystemTransport
from agentrl.errors import AgentRLError, ConfigError, PublishError, SamplerUnavailable
from agentrl.records import Version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DEADLINE_S = 30.0
GONE = httpx.ConnectError("connection refused")


@dataclass
class FakeLauncher:
    """A server of the run's own, which a test ends and which may refuse to come back."""

    name: str
    url: str
    on_start: Callable[[], None]
    restarts: int = 0
    starts: int = 0
    is_up: bool = False
    stopped: bool = False

    def start(self) -> None:
        self.starts += 1
        self.is_up = True
        self.on_start()

    def ended(self) -> bool:
        return not self.is_up

    def was_refused(self) -> bool:
        return False

    def describe_end(self) -> str:
        return f"{self.name} ended with status 1; its last lines: out of memory"

    def stop(self) -> None:
        self.is_up, self.stopped = False, True


@dataclass
class Watched:
    """The servers under test and what they told."""

    fakes: FakeServers
    servers: VllmServers
    launchers: list[FakeLauncher]
    told: list[Serving] = field(default_factory=list)
    failures: list[AgentRLError] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    news: threading.Condition = field(default_factory=threading.Condition)

    def hear(self, where: list[Any]) -> Callable[[Any], None]:
        def listen(what: Any) -> None:
            with self.news:
                where.append(what)
                self.news.notify_all()

        return listen

    def wait_for(self, condition: Callable[[], bool]) -> None:
        with self.news:
            assert self.news.wait_for(condition, DEADLINE_S), (self.told, self.failures, self.said)

    def used(self) -> tuple[Served, ...]:
        return self.told[-1].servers if self.told else self.servers.serving().servers

    def publish(self, step: int, scale: float = 1.0) -> str:
        weights = [("a", torch.full((2, 3), scale)), ("b", torch.ones(4) * step)]
        return self.servers.publish(weights, Version(step=step))


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Callable[..., Watched]]:
    made: list[Watched] = []

    def make(count: int = 2, *, own: int = 0, away_timeout_s: float = 60.0, max_restarts: int = 2, **options: Any) -> Watched:
        fakes = servers(count, **options)
        launchers, listed = [], []
        for place, fake in enumerate(fakes.servers):
            launcher = None
            if place < own:
                launcher = FakeLauncher(f"vLLM server {place}", fake.url, on_start=lambda fake=fake: fake.answers.pop("/health", None))
                launchers.append(launcher)
            listed.append(Server(url=fake.url, control=fakes.control(fake.url), launcher=launcher))  # type: ignore[arg-type]
        said: list[str] = []
        news = threading.Condition()

        def say(line: str) -> None:
            with news:
                said.append(line)
                news.notify_all()

        under_test = VllmServers(
            listed,
            start_timeout_s=DEADLINE_S,
            away_timeout_s=away_timeout_s,
            max_restarts=max_restarts,
            control=fakes.control,
            look_s=0.01,
            say=say,
        )
        result = Watched(fakes, under_test, launchers, said=said, news=news)
        under_test.on_change, under_test.on_failure = result.hear(result.told), result.hear(result.failures)
        under_test.start()
        publisher = VllmPublisher(FilesystemTransport(str(tmp_path)), fakes.control)
        made.append(result)
        under_test.connect(publisher, Expectations(owner="here"))
        return result

    yield make
    for one in made:
        one.servers.close()
        assert all(launcher.stopped for launcher in one.launchers)


def test_all_are_checked_and_a_version_is_served_once_all_have_it(watched: Callable[..., Watched]) -> None:
    run = watched(2, own=1)
    assert [server.version for server in run.servers.serving().servers] == [Version(), Version()]
    assert run.servers.serving().context_length == 512
    assert run.servers.dtype == "float32"
    assert [fake.holder for fake in run.fakes.servers] == ["here", "here"]
    checksum = run.publish(3)
    assert [fake.receipt.hexdigest() for fake in run.fakes.servers] == [checksum, checksum]
    assert run.used() == tuple(Served(url=fake.url, model="policy", version=Version(step=3)) for fake in run.fakes.servers)


def test_a_server_that_cannot_be_used_is_refused_at_the_start(watched: Callable[..., Watched]) -> None:
    with pytest.raises(ConfigError, match=r"nothing answers at http://127\.0\.0\.1:1 "):
        watched(1, answers={"/version": GONE})


def test_an_own_server_that_ends_while_it_loads_is_told_with_its_last_lines(watched: Callable[..., Watched], tmp_path: Path) -> None:
    fakes = servers(1, answers={"/health": GONE})
    launcher = FakeLauncher("vLLM server 0", fakes.servers[0].url, on_start=lambda: None)
    under_test = VllmServers(
        [Server(url=launcher.url, control=fakes.control(launcher.url), launcher=launcher)],  # type: ignore[arg-type]
        start_timeout_s=DEADLINE_S,
        away_timeout_s=1,
        max_restarts=0,
        control=fakes.control,
        look_s=0.01,
    )
    under_test.start()
    launcher.is_up = False
    with pytest.raises(SamplerUnavailable, match="out of memory"):
        under_test.connect(VllmPublisher(FilesystemTransport(str(tmp_path)), fakes.control), Expectations(owner="here"))
    under_test.close()


@pytest.mark.parametrize("route", ["/start_weight_update", "/update_weights", "/finish_weight_update", "agentrl_received"])
def test_a_server_whose_update_fails_is_used_again_only_with_the_newest_version(route: str, watched: Callable[..., Watched]) -> None:
    run = watched(2)
    run.publish(1)
    broken = run.fakes.servers[1]
    broken.answers[route] = 500
    run.publish(2)
    first = run.told[1]
    assert [one.url for one in first.servers] == [run.fakes.servers[0].url]
    assert first.servers[0].version == Version(step=2)
    broken.answers.pop(route)
    run.wait_for(lambda: len(run.used()) == 2)
    assert {one.version for one in run.used()} == {Version(step=2)}
    assert broken.version == "0.2"
    assert broken.receipt.hexdigest() == run.fakes.servers[0].receipt.hexdigest()
    assert run.failures == []


def test_a_server_that_does_not_answer_leaves_and_returns(watched: Callable[..., Watched]) -> None:
    run = watched(2)
    run.publish(1)
    stuck = run.fakes.servers[0]
    stuck.answers["/health"] = httpx.ReadTimeout("silence")
    run.wait_for(lambda: len(run.used()) == 1)
    run.publish(2)
    assert stuck.version == "0.1"
    stuck.answers.pop("/health")
    run.wait_for(lambda: len(run.used()) == 2)
    assert stuck.version == "0.2"
    assert any("out of use" in line for line in run.said)
    assert any("in use again" in line for line in run.said)


def test_what_rollouts_report_of_a_server_that_says_it_is_well_takes_it_out(watched: Callable[..., Watched]) -> None:
    run = watched(2)
    run.publish(1)
    liar = run.fakes.servers[1]
    for _ in range(SUSPICIONS):
        run.servers.suspect(liar.url, "answered nonsense")
    run.servers.suspect("http://elsewhere:1", "is nobody's")
    run.wait_for(lambda: any("answered nonsense" in line for line in run.said))
    run.wait_for(lambda: len(run.used()) == 2 and len(run.told) >= 3)  # it was checked and updated, and gets another chance


def test_an_own_server_is_started_again_and_given_up_after_so_many_times(watched: Callable[..., Watched]) -> None:
    run = watched(2, own=1, max_restarts=2)
    run.publish(1)
    own, fake = run.launchers[0], run.fakes.servers[0]
    for times in (1, 2):
        fake.version = "of a new process"
        fake.answers["/health"] = GONE
        own.is_up = False
        run.wait_for(lambda: len(run.used()) == 1)
        run.wait_for(lambda: len(run.used()) == 2)
        assert own.restarts == times
        assert fake.version == "0.1"
    own.is_up = False
    run.wait_for(lambda: len(run.used()) == 1)
    run.publish(2)
    assert own.starts == 3
    assert run.failures == []


def test_without_any_server_left_the_run_is_told_the_last_words(watched: Callable[..., Watched]) -> None:
    run = watched(1, own=1, max_restarts=0)
    run.publish(1)
    run.launchers[0].is_up = False
    run.wait_for(lambda: bool(run.failures))
    assert "out of memory" in str(run.failures[0])
    with pytest.raises(SamplerUnavailable, match="out of memory"):
        run.publish(2)


def test_a_joined_server_may_come_back_for_a_while_only(watched: Callable[..., Watched]) -> None:
    run = watched(1, away_timeout_s=0.2)
    run.publish(1)
    run.fakes.servers[0].answers["/health"] = GONE
    run.wait_for(lambda: bool(run.failures))
    assert "no vLLM server is left" in str(run.failures[0])
    assert "connection refused" in str(run.failures[0])


def test_publishing_waits_for_a_server_that_comes_back(watched: Callable[..., Watched]) -> None:
    run = watched(1)
    run.publish(1)
    fake = run.fakes.servers[0]
    fake.answers["/health"] = GONE
    run.wait_for(lambda: run.used() == ())
    threading.Timer(0.05, fake.answers.pop, ["/health"]).start()
    run.publish(2)
    assert fake.version == "0.2"


def test_a_first_version_that_no_server_takes_is_an_error(watched: Callable[..., Watched]) -> None:
    run = watched(2, answers={"/update_weights": 500})
    with pytest.raises(PublishError, match=r"version 0\.1 reached no vLLM server"):
        run.publish(1)


def test_a_later_version_that_no_server_takes_waits_for_one_that_does(watched: Callable[..., Watched]) -> None:
    run = watched(2)
    run.publish(1)
    for fake in run.fakes.servers:
        fake.answers["/update_weights"] = 500
    threading.Timer(0.1, run.fakes.servers[1].answers.pop, ["/update_weights"]).start()
    checksum = run.publish(2)
    assert run.fakes.servers[1].receipt.hexdigest() == checksum
    assert [one.url for one in run.used()] == [run.fakes.servers[1].url]
    assert run.used()[0].version == Version(step=2)


def test_weights_that_do_not_fit_are_an_error_and_cost_no_server(watched: Callable[..., Watched]) -> None:
    run = watched(2)
    run.publish(1)
    with pytest.raises(PublishError, match="'a'"):
        run.servers.publish([("a", torch.ones(7)), ("b", torch.ones(4))], Version(step=2))
    assert len(run.used()) == 2


def test_a_joined_server_that_another_run_took_is_left(watched: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentrl.engines.vllm_servers.LEASE_S", 0.0)
    run = watched(2)
    run.publish(1)
    run.fakes.servers[1].holder = "another"
    run.wait_for(lambda: any("used by another run, 'another'" in line for line in run.said))
    run.wait_for(lambda: len(run.used()) == 1)


def test_servers_are_given_back_at_the_end(watched: Callable[..., Watched]) -> None:
    run = watched(2)
    run.servers.close()
    assert [fake.holder for fake in run.fakes.servers] == ["", ""]


def test_servers_join_and_leave_by_a_list_in_the_run_folder(watched: Callable[..., Watched], tmp_path: Path) -> None:
    run = watched(1)
    run.publish(1)
    one = run.fakes.servers[0]
    other = FakeServer("http://127.0.0.1:2")
    run.fakes.servers += (other,)
    path = tmp_path / "servers.txt"
    followed = ServerList(path, run.servers, say=run.hear(run.said), look_s=0.01)
    try:
        path.write_text("127.0.0.1:2\n")
        run.wait_for(lambda: any("a server is http://HOST:PORT" in line for line in run.said))
        other.answers["/version"] = GONE
        path.write_text(f"{other.url}  # from the other room\n\n")
        run.wait_for(lambda: any(f"{other.url} cannot be used yet" in line for line in run.said))
        other.answers.pop("/version")
        run.wait_for(lambda: len(run.used()) == 2)
        assert (other.version, other.holder) == ("0.1", "here")
        run.publish(2)
        assert (one.version, other.version) == ("0.2", "0.2")
        path.write_text("")
        run.wait_for(lambda: [server.url for server in run.used()] == [one.url])
        assert other.holder == ""
        run.publish(3)
        assert (one.version, other.version) == ("0.3", "0.2")
        path.write_text(other.url)
        run.wait_for(lambda: len(run.used()) == 2)
        assert other.version == "0.3"
    finally:
        followed.close()
