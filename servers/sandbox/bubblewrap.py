"""Programs under Bubblewrap: namespaces of their own for everything, no network, no capability, and the machine read-only.

The first process in the sandbox is a small shell that waits for a word from here, runs the program and ends with its status; the kernel
then kills and reaps whatever else the program left. The parent owns the clock and holds a descriptor of that first process: one signal
ends the whole tree. If the parent dies, so does Bubblewrap, and with it the tree.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from agentrl.servers.sandbox.cgroups import make_cage
from agentrl.servers.sandbox.folder import reopen
from agentrl.servers.sandbox.ground import ground
from agentrl.servers.sandbox.limits import INSIDE, SandboxUnavailable
from agentrl.servers.sandbox.running import OWN_TASKS, Pipes, Running, readable, rlimits
from agentrl.servers.sandbox.syscalls import filter_program
from agentrl.servers.sandbox.view import FILES, PROGRAMS, USER, View, view_of
from agentrl.servers.sandbox.warm_seccomp import filter_program as namespaces_refused

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agentrl.servers.sandbox.limits import Limits
    from agentrl.servers.sandbox.view import Packages

START_TIMEOUT_S = 60.0
"""Milliseconds on an idle machine; one that is this late is out of order."""
ENVIRONMENT = {
    "PATH": f"{PROGRAMS}:/usr/local/bin:/usr/bin:/bin",
    "HOME": INSIDE,
    "USER": "sandbox",
    "LOGNAME": "sandbox",
    "SHELL": "/bin/sh",
    "TMPDIR": "/tmp",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
    "OMP_NUM_THREADS": "1",  # numeric libraries start a thread a core, which the limit of processes may not allow
    "OPENBLAS_NUM_THREADS": "1",
}
"""All variables of a program: nothing of this process's own, which may hold keys."""
READY = b"ready\n"
GATE = 'echo ready >&2; read -r go || exit 125; exec 3>&2 2>/dev/null; (exec "$@") 2>&3 3>&-; exit $?'
"""Of the first process: nothing runs before the parent has taken hold of it, and its own messages are nobody's."""


class Bubblewrap:
    """Starts programs that share one folder, each in a sandbox of its own.

    Args:
        folder: is at `INSIDE`.
        user: as whom they run; None for this process's own user, which cannot be root.
        packages: of Python, that they can import.
    """

    confined = True

    def __init__(self, folder: Path, user: int | None, *, packages: Packages = ()) -> None:
        self._folder, self._user = folder, user
        self._view = view_of(packages)
        self._fixed: dict[int, tuple[list[str], list[str]]] = {}
        self.interpreter = self._view.interpreter

    def start(self, command: Sequence[str], limits: Limits, *, cpu_s: float | None = None, writes: bool = True) -> Running:
        """Start a program, which runs when this returns. Raises `SandboxUnavailable`.

        Args:
            command: program and arguments.
            limits: of all its processes.
            cpu_s: of any one process, where that is not the limits'.
            writes: whether it may write files at all.
        """
        reopen(self._folder)
        pipes = Pipes.make(self._user)
        told, tell = os.pipe()
        rules = tuple(_readable(program) for program in (filter_program(), namespaces_refused()))
        try:
            words = [*self._words(limits, tell, rules), "/usr/bin/prlimit", f"--nproc={limits.processes + OWN_TASKS}"]
            words += [*rlimits(limits, cpu_s, writes), "--", "/bin/sh", "-c", GATE, "sh", *command]
            stdin, stdout, stderr = pipes.theirs
            process = ground().start(
                words, stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=(tell, *rules), start_new_session=True, env={}, cwd="/"
            )
        except BaseException:
            pipes.close((*pipes.ours, told))
            raise
        finally:
            pipes.close((*pipes.theirs, tell, *rules))
        try:
            running = self._take_hold(process, pipes, told, limits)
            running.writes = writes
            return running
        except BaseException:
            process.kill()
            process.wait()
            pipes.close(pipes.ours)
            raise
        finally:
            os.close(told)

    def _take_hold(self, process: subprocess.Popen[bytes], pipes: Pipes, told: int, limits: Limits) -> Running:
        """Wait until the sandbox stands, take hold of its first process, and let it go on."""
        stdin, stdout, stderr = pipes.ours
        said = _first_line(stderr, time.monotonic() + START_TIMEOUT_S)
        if said != READY:
            raise SandboxUnavailable(_explain(said.decode(errors="replace").strip()))
        root = int(json.loads(os.read(told, 4096))["child-pid"])
        root_fd = os.pidfd_open(root)
        cage = make_cage(memory_bytes=limits.memory_mib << 20, tasks=limits.processes + OWN_TASKS)
        try:
            if cage is not None:
                cage.admit(root)
            ended_fd = os.pidfd_open(process.pid)
            os.write(stdin, b"go\n")
        except OSError as error:
            os.close(root_fd)
            if cage is not None:
                cage.close()
            raise SandboxUnavailable(f"bubblewrap started a sandbox that ended at once: {error}") from None
        return Running(
            process=process, root=root, root_fd=root_fd, ended_fd=ended_fd, stdin=stdin, stdout=stdout, stderr=stderr, limits=limits,
            cage=cage, confined=True,
        )  # fmt: skip

    def _words(self, limits: Limits, tell: int, rules: Sequence[int]) -> list[str]:
        """Bubblewrap's command line, up to the program."""
        if limits.file_mib not in self._fixed:
            self._fixed[limits.file_mib] = self._fixed_words(limits.file_mib << 20)
        enter, fixed = self._fixed[limits.file_mib]
        words = [*enter, bwrap(), "--info-fd", str(tell)]
        for fd in rules:
            words += ["--add-seccomp-fd", str(fd)]
        return [*words, *fixed]

    def _fixed_words(self, size_bytes: int) -> tuple[list[str], list[str]]:
        """What comes before Bubblewrap, and those of its words that are the same each time."""
        view, etc = self._view, etc_folder(self._view)
        stage = None if self._user is None else ground().stage(view.sources)
        find: Callable[[Path], str] = str if stage is None else stage.find
        words = [*_namespaces(), "--clearenv"]
        for name, value in ENVIRONMENT.items():
            words += ["--setenv", name, value]
        for inside, target in view.links.items():
            words += ["--symlink", target, inside]
        size = str(size_bytes)
        words += ["--proc", "/proc", "--dev", "/dev", "--size", size, "--tmpfs", "/tmp", "--size", size, "--tmpfs", "/dev/shm"]
        words += [*_binds(view, find, etc), "--ro-bind", find(etc), "/etc"]
        for name in ("python", "python3"):
            words += ["--symlink", view.interpreter, f"{PROGRAMS}/{name}"]
        words += ["--bind", find(self._folder), INSIDE]
        enter = stage.enter(self._user) if stage is not None and self._user is not None else []
        return enter, [*words, "--chdir", INSIDE, "--remount-ro", "/dev", "--remount-ro", "/", "--"]


def bwrap(search: str | None = None) -> str:
    """Path of Bubblewrap. Raises `SandboxUnavailable`.

    Args:
        search: folders to look in; by default those of PATH and the usual ones.
    """
    path = shutil.which("bwrap", path=f"{os.environ.get('PATH', '')}:/usr/bin:/usr/local/bin" if search is None else search)
    if path is None:
        raise SandboxUnavailable(
            "there is no `bwrap` in PATH, which sandboxes on Linux need: apt-get install bubblewrap (dnf and pacman call it so too). On a "
            "machine that cannot have it, open the sandbox over HTTP, on one that runs `agentrl serve-sandbox`"
        )
    return path


@functools.cache
def _options() -> frozenset[str]:
    text = subprocess.run([bwrap(), "--help"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False).stdout
    return frozenset(word for word in text.split() if word.startswith("--"))


def _namespaces() -> list[str]:
    words = ["--unshare-all", "--unshare-user", "--uid", str(USER), "--gid", str(USER), "--hostname", "sandbox"]
    words += ["--die-with-parent", "--new-session", "--as-pid-1", "--cap-drop", "ALL"]
    if missing := {"--size", "--as-pid-1", "--info-fd", "--remount-ro", "--add-seccomp-fd"} - _options():
        raise SandboxUnavailable(f"{bwrap()} is too old: it lacks {', '.join(sorted(missing))}; install bubblewrap 0.8 or a later one")
    if "--disable-userns" in _options():
        words.append("--disable-userns")
    return words


def _binds(view: View, find: Callable[[Path], str], etc: Path) -> list[str]:
    """Words for what is shown and what is hidden of the machine, with as few mounts as will do: each costs a quarter of a millisecond."""
    words: list[str] = []
    shown = {inside: path for inside, path in view.binds.items() if not inside.startswith("/etc/")}
    below = {inside: path for inside, path in shown.items() if any(f"{inside}/".startswith(f"{folder}/") for folder in view.hidden)}
    for inside, path in shown.items():
        if inside not in below:
            words += ["--ro-bind", find(path), inside]
    for folder in view.hidden:
        if not any(f"{inside}/".startswith(f"{folder}/") for inside in below):
            words += ["--ro-bind", find(etc / "empty"), folder]
        elif folder not in below:
            words += ["--tmpfs", folder]
    for inside, path in below.items():
        words += ["--ro-bind", find(path), inside]
    for folder in view.hidden:
        if any(inside.startswith(f"{folder}/") for inside in below):
            words += ["--remount-ro", folder]
    return words


_etc_lock = threading.Lock()


def etc_folder(view: View) -> Path:
    """A copy of what a sandbox sees of /etc, made once in the scratch folder."""
    folder = ground().scratch.path / "etc"
    with _etc_lock:
        if not folder.exists():
            fresh = folder.with_name("etc-fresh")
            (fresh / "empty").mkdir(parents=True)
            for inside, path in view.binds.items():
                if inside.startswith("/etc/"):
                    if path.is_dir():
                        shutil.copytree(path, fresh / Path(inside).name, symlinks=True)
                    else:
                        shutil.copy(path, fresh / Path(inside).name)
            for name, text in FILES.items():
                (fresh / name).write_text(text)
            for path in (fresh, *fresh.iterdir()):
                path.chmod(0o755 if path.is_dir() else 0o644)  # whatever this process's umask
            fresh.rename(folder)
    return folder


def _readable(data: bytes) -> int:
    """A descriptor that reads these few bytes and ends."""
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    return read


def _first_line(fd: int, deadline: float) -> bytes:
    """What a stream says first, up to the end of a line or of itself; all that is there where it is no `READY`."""
    said = b""
    while not said.endswith(b"\n") or not READY.startswith(said):
        if not readable(fd, deadline - time.monotonic()):
            return said + b"(no sign of life)"
        with contextlib.suppress(BlockingIOError):
            one = os.read(fd, 1 if READY.startswith(said) else 4096)  # not a byte of the program's own
            if not one:
                break
            said += one
    return said


HINTS = {
    ("namespace", "setting up uid map", "loopback"): (
        "namespaces of ordinary users are forbidden here; one of these allows them: sysctl kernel.unprivileged_userns_clone=1, sysctl "
        "user.max_user_namespaces=10000, sysctl kernel.apparmor_restrict_unprivileged_userns=0, or, for a container, --security-opt "
        "seccomp=unconfined. Otherwise open the sandbox over HTTP, on a machine that runs `agentrl serve-sandbox`"
    ),
    ("mount proc",): "this container hides parts of /proc, which forbids a new one: start it with --security-opt systempaths=unconfined",
    ("source path",): (
        "root starts sandboxes as another user, who cannot reach that path, and may not bind it elsewhere here (that takes CAP_SYS_ADMIN): "
        "start as an ordinary user, or install Python where everybody can read it"
    ),
}
"""What to do, by what Bubblewrap says."""


def _explain(said: str) -> str:
    """Bubblewrap's message with what to do about it."""
    message = f"bubblewrap could not make a sandbox: {said or 'it ended without a word'}"
    return message + next((f". {hint}" for words, hint in HINTS.items() if any(word in said for word in words)), "")
