"""Pushing a run's model to the Hugging Face Hub, from the command line and by a run; a run is never lost by a push that fails.

The work is done by a child process (`agentrl.hub_process`) that has a deadline.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agentrl.errors import AgentRLError, ConfigError, PushFailed
from agentrl.hub_process import ENVIRONMENT, token_of
from agentrl.processes import Child, start_child

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from agentrl.config_data import HubConfig

DEFAULT_ENDPOINT = "https://huggingface.co"
DRAFTS = "push"
"""Folder of a run with the weights that are being pushed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """Where a model now is."""

    url: str
    commit: str
    """Id of the commit."""


def check_can_push(hub: HubConfig, environ: Mapping[str, str] = os.environ) -> None:
    """Raise `ConfigError` for what would make each push fail, before a run begins: a name that is none, no token, no network."""
    check_repo(hub.repo, "hub.repo")
    check_token(hub.token_env, environ)
    if environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
        raise ConfigError("hub.repo is set, and HF_HUB_OFFLINE keeps every process from the Hub: unset the variable, or remove `hub`")


def check_repo(repo: str, key: str) -> None:
    """Raise `ConfigError` where a repository's name is not `owner/name`."""
    if not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", repo) or ".." in repo or "--" in repo:
        raise ConfigError(f"{key} got {repo!r}; a repository is owner/name, of letters, digits, `-`, `_` and `.`, such as me/my-model")


def check_token(variable: str, environ: Mapping[str, str] = os.environ) -> None:
    """Raise `ConfigError` where there is no token for the Hub."""
    if token_of(variable, dict(environ)) is None:
        raise ConfigError(
            f"no token for the Hub: the environment variable {variable} is empty; make one that may write at "
            f"{DEFAULT_ENDPOINT}/settings/tokens and export it, or name another variable (hub.token_env, --token-env)"
        )


def push(
    folder: Path,
    repo: str,
    *,
    private: bool,
    message: str,
    log: Path,
    token_env: str = "HF_TOKEN",
    timeout_s: float = 3600.0,
    environment: Mapping[str, str] | None = None,
) -> Pushed:
    """Commit a folder's files to a repository of the Hub, which is made where there is none.

    Args:
        folder: what is pushed; its files go to the top of the repository.
        repo: `owner/name`.
        private: whether a new repository is private; an existing public one is then refused.
        message: of the commit.
        log: file for the process's own output.
        token_env: environment variable that holds the token.
        timeout_s: longest wait.
        environment: variables of the process on top of this one's.

    Raises `ConfigError` for what the user has to change, `PushFailed` for what may work later.
    """
    run = PushInFlight.start(folder, repo, private=private, message=message, log=log, token_env=token_env, environment=environment)
    return run.outcome(timeout_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class PushInFlight:
    """A push that goes on in a process of its own."""

    child: Child
    repo: str
    token_env: str
    result: Path

    @classmethod
    def start(
        cls,
        folder: Path,
        repo: str,
        *,
        private: bool,
        message: str,
        log: Path,
        token_env: str,
        environment: Mapping[str, str] | None = None,
    ) -> PushInFlight:
        """Begin to push; see `push`."""
        check_token(token_env, {**os.environ, **(environment or {})})
        if not any(folder.glob("*")):
            raise ConfigError(f"there is nothing to push in {folder}: it must hold a model, as a finished run leaves one in `model/`")
        result = log.with_suffix(".result.json")
        log.parent.mkdir(parents=True, exist_ok=True)
        result.unlink(missing_ok=True)
        arguments = [str(folder), repo, "private" if private else "public", token_env, message, str(result)]
        environment = {**ENVIRONMENT, **(environment or {})}
        child = start_child("the push to the Hub", "agentrl.hub_process", arguments, log=log, environment=environment)
        return cls(child=child, repo=repo, token_env=token_env, result=result)

    @property
    def ended(self) -> bool:
        """Whether its outcome can be had without a wait."""
        return self.child.process.poll() is not None

    def outcome(self, timeout_s: float) -> Pushed:
        """Wait for its end, at most so long, and say where the model is. Raises as `push` does; the process is gone after it."""
        try:
            self.child.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise PushFailed(
                f"the Hub did not take {self.repo} within {timeout_s:g} s; look at the network, or allow more (hub.timeout_s, --timeout)"
            ) from None
        finally:
            self.child.stop()
        try:
            said = json.loads(self.result.read_bytes())
        except (OSError, ValueError):
            raise PushFailed(f"{self.child.describe_end()}; push again with `agentrl push`") from None
        self.result.unlink(missing_ok=True)
        if said["kind"] != "done":
            raise self._failure(said)
        return Pushed(url=said["url"], commit=said["commit"])

    def _failure(self, said: Mapping[str, Any]) -> AgentRLError:
        """What the process could not do, as an error with its cure."""
        start, end = f"{self.repo} was not pushed: ", f" ({said['said']})"
        match said["kind"], said.get("status"):
            case "public", _:
                return ConfigError(
                    f"{start}the repository is public, and a private one was asked for; make it private on the Hub, or allow it with "
                    "hub.private=false, --public"
                )
            case "http", 401:
                return ConfigError(f"{start}the Hub does not know the token in {self.token_env}; make a new one and export it{end}")
            case "http", 403:
                return ConfigError(
                    f"{start}the token in {self.token_env} may not write there; give it write access to {self.repo.partition('/')[0]}{end}"
                )
            case "http", 400 | 404 | 422:
                return ConfigError(f"{start}the Hub refuses the request; look at the repository's name and the files{end}")
            case "http", 409 | 412:
                return PushFailed(f"{start}somebody else changed the repository at the same time; push again{end}")
            case "http", 429:
                return PushFailed(f"{start}the Hub is asked too often; push again in some minutes{end}")
            case "http", _:
                return PushFailed(f"{start}the Hub fails at the moment, status {said['status']}; push again later{end}")
            case "offline", _:
                return ConfigError(f"{start}HF_HUB_OFFLINE keeps every process from the Hub; unset it")
            case "network", _:
                return PushFailed(f"{start}the Hub cannot be reached; look at the network and at HF_ENDPOINT, then push again{end}")
        return PushFailed(f"{start}{said['said']}; the process's own output is in {self.child.log}")


class Pusher:
    """Pushes the model of a run while it goes on, one push at a time, and at its end; what fails is told and changes nothing else.

    Args:
        hub: where to.
        run: the run's folder.
        say: tells the user.
        environment: variables of the pushing process on top of this one's.
    """

    def __init__(self, hub: HubConfig, run: Path, say: Callable[[str], None], environment: Mapping[str, str] | None = None) -> None:
        self._hub, self._run, self._say, self._environment = hub, run, say, environment
        self._going: tuple[int, PushInFlight] | None = None
        self._folder = run
        self._told = False

    def is_busy(self, step: int) -> bool:
        """Whether an earlier push goes on, which is said, as that of `step` is left out; tells what became of one that has ended."""
        if self._going is not None and self._going[1].ended:
            self._collect(0.0)
        if self._going is not None and not self._told:
            self._told = True
            self._say(f"the push of step {self._going[0]} goes on: that of step {step} is left out, and so are later ones until it ends")
        return self._going is not None

    def start(self, folder: Path, step: int) -> None:
        """Begin to push a folder, which is removed after it unless it is the final model; where an earlier push goes on, at once."""
        if self._going is not None:
            self._remove(folder)
            return
        try:
            self._going = step, self._begun(folder, step)
            self._folder, self._told = folder, False
        except (AgentRLError, OSError) as error:
            self._say(f"step {step}: {error}")
            self._remove(folder)

    def finish(self, folder: Path, step: int) -> None:
        """Wait for an earlier push, then push the final model and wait for that."""
        self._collect(self._hub.timeout_s)
        self.start(folder, step)
        self._collect(self._hub.timeout_s)

    def close(self) -> None:
        """End what still goes on."""
        if self._going is not None:
            self._going[1].child.stop()
            self._going = None
        shutil.rmtree(self._run / DRAFTS, ignore_errors=True)

    def _begun(self, folder: Path, step: int) -> PushInFlight:
        return PushInFlight.start(
            folder,
            self._hub.repo,
            private=self._hub.private,
            message=f"agentrl: step {step}",
            log=self._run / "logs" / "push.log",
            token_env=self._hub.token_env,
            environment=self._environment,
        )

    def _collect(self, timeout_s: float) -> None:
        if self._going is None:
            return
        step, push = self._going
        self._going = None
        try:
            done = push.outcome(timeout_s)
        except AgentRLError as error:
            self._say(f"{error}; nothing else is lost, and the final model can be pushed with: agentrl push {self._run} --repo {push.repo}")
        else:
            self._say(f"step {step} is at {done.url}")
        finally:
            self._remove(self._folder)

    def _remove(self, folder: Path) -> None:
        if folder.parent == self._run / DRAFTS:
            shutil.rmtree(folder, ignore_errors=True)
