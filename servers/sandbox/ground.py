"""What all sandboxes of this process stand on: a scratch folder, the thread that starts them, and, for root, who they run as.

Root gives every sandbox a user of its own that exists nowhere else, so that nothing in the system is theirs and limits by user bind. Such
a user cannot reach everything that a sandbox shows (a Python below /root, say): root therefore binds those folders to a place that can be
reached, in a mount namespace that only sandboxes are started in.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl.scratch import ScratchFolder
from agentrl.servers.sandbox.limits import SandboxUnavailable
from agentrl.servers.sandbox.running import readable

if TYPE_CHECKING:
    from collections.abc import Sequence

FIRST_USER, NUM_USERS = 0x7000_0000, 0x0FF0_0000
"""Above everything that systemd, containers and directories give out (systemd.io/UIDS-GIDS)."""
FIRST_SMALL_USER, NUM_SMALL_USERS = 40_000, 20_000
"""In a container that has only the first 65536."""
STAGE_TIMEOUT_S = 60.0
STAGE = "/mnt"
"""Where the reachable copies are bound, in a namespace of their own; any folder that every system has."""


@dataclass
class Ground:
    """The foundation; one a process, made by `ground()`."""

    scratch: ScratchFolder
    starter: ThreadPoolExecutor
    """Linux ends a sandbox when the *thread* that started it ends (PR_SET_PDEATHSIG), so one lasting thread starts them all."""
    stages: dict[tuple[Path, ...], Stage] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def new_folder(self, user: int | None) -> Path:
        """An empty private folder that belongs to a user; None for this process's own."""
        folder = self.scratch.path / f"box-{secrets.token_hex(8)}"
        folder.mkdir(mode=0o700)
        if user is not None:
            os.chown(folder, user, user)
        return folder

    def start(self, words: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a program from the lasting thread. Raises `SandboxUnavailable`."""
        try:
            return self.starter.submit(lambda: subprocess.Popen[bytes](list(words), **options)).result()
        except (OSError, RuntimeError) as error:
            raise SandboxUnavailable(f"{words[0]} could not be started: {error}") from None

    def stage(self, sources: tuple[Path, ...]) -> Stage:
        """Where sandboxes of a user of their own find these folders and this process's scratch folder."""
        with self.lock:
            if sources not in self.stages:
                self.stages[sources] = make_stage(self.scratch.path, sources)
            return self.stages[sources]

    def close(self) -> None:
        """Remove the scratch folder."""
        self.starter.shutdown(wait=False)
        remove_tree(self.scratch.path)
        self.scratch.close()


@dataclass(frozen=True, slots=True)
class Stage:
    """A mount namespace in which what sandboxes show is reachable by every user."""

    namespace: int | None
    """Descriptor; None where none could be made, and then every path is its own."""
    paths: dict[Path, str]

    def find(self, path: Path) -> str:
        """Where a path is found there: one of those that were bound, or one below."""
        for source, place in self.paths.items():
            if path.is_relative_to(source):
                return str(Path(place, path.relative_to(source)))
        return str(path)

    def enter(self, user: int) -> list[str]:
        """Words of a command that goes on there as another user, without its groups."""
        if self.namespace is None:
            return ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--"]
        return ["nsenter", f"--mount=/proc/{os.getpid()}/fd/{self.namespace}", f"--setuid={user}", f"--setgid={user}", "--"]


_made: Ground | None = None
_lock = threading.Lock()


def ground() -> Ground:
    """This process's foundation, made at the first call."""
    global _made
    with _lock:
        if _made is None:
            scratch = ScratchFolder("agentrl-sandbox-")
            if os.geteuid() == 0:
                scratch.path.chmod(0o711)  # a sandbox's user passes through to its own folder, whose name it is told
            _made = Ground(scratch, ThreadPoolExecutor(max_workers=1, thread_name_prefix="sandbox-starter"))
        return _made


def _close() -> None:
    if _made is not None:
        _made.close()


def _forget() -> None:
    """A forked process has none of the threads, and its parent's folder is not its to remove."""
    global _made, _lock
    _made, _lock = None, threading.Lock()


atexit.register(_close)
os.register_at_fork(after_in_child=_forget)


def new_user() -> int | None:
    """An unused user for one sandbox; None where this process is not root and a sandbox runs as its own user."""
    if os.geteuid() != 0:
        return None
    ranges = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    whole = any(inner <= FIRST_USER and inner + count >= FIRST_USER + NUM_USERS for inner, _, count in ranges)
    first, count = (FIRST_USER, NUM_USERS) if whole else (FIRST_SMALL_USER, NUM_SMALL_USERS)
    return first + secrets.randbelow(count)


def make_stage(scratch: Path, sources: tuple[Path, ...]) -> Stage:
    """Bind folders to where every user reaches them, in a new mount namespace; without one where this process may not make any."""
    base = scratch / f"stage-{secrets.token_hex(4)}"
    base.mkdir(mode=0o711)
    places = {path: f"{STAGE}/{number}" for number, path in enumerate((scratch, *sources))}
    script = ['mount -t tmpfs -o mode=711,size=1m stage "$1"; cd "$1"; shift; n=0']
    script.append('for source; do if [ -d "$source" ]; then mkdir $n; else : >$n; fi; mount --rbind "$source" $n; n=$((n+1)); done')
    script.append(f"mount --rbind . {STAGE}; echo ready; read -r end")
    words = ["unshare", "--mount", "--propagation", "slave", "sh", "-ec", "; ".join(script), "sh", str(base), *map(str, places)]
    try:
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            ready = readable(process.stdout.fileno(), STAGE_TIMEOUT_S) and process.stdout.readline() == b"ready\n"
            namespace = os.open(f"/proc/{process.pid}/ns/mnt", os.O_RDONLY) if ready else None
            process.kill()
    except FileNotFoundError as error:
        raise SandboxUnavailable(
            f"{error}; root starts a sandbox with unshare, mount and nsenter: apt-get install util-linux mount"
        ) from None
    return Stage(namespace, places if ready else {})


def remove_tree(path: Path) -> None:
    """Remove a folder whatever a program made of it: deeper than Python's own removal can go, or closed to its owner."""
    for words in (["rm", "-rf", "--"], ["chmod", "-R", "u+rwX", "--"], ["rm", "-rf", "--"]):
        if not os.path.lexists(path):
            return
        with contextlib.suppress(OSError):
            subprocess.run([*words, str(path)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
