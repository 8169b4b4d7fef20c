"""The zygote: an interpreter that has imported what programs need, puts itself into a sandbox, and forks programs on request.

It runs as a script, single-threaded, from nothing but the standard library, and never touches untrusted code. Each program is a fork of
it with user, pid, mount, network, IPC and host name namespaces of its own, a fresh /tmp, limits, a system call filter and no right at all.
`agentrl.servers.sandbox.warm` is the other end of its socket.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import types
from typing import Any, NoReturn

MOST_REQUEST_BYTES = 2**16
MOST_DESCRIPTORS = 16
FIRST_DESCRIPTOR = 3
"""A program finds the descriptors that it was given from this one on, in order."""


def receive(from_socket: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """One message with its descriptors; None at the end."""
    size = array.array("i").itemsize
    data, ancillary, _, _ = from_socket.recvmsg(MOST_REQUEST_BYTES, socket.CMSG_LEN(MOST_DESCRIPTORS * size), socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(content[: len(content) - len(content) % size])
    return (json.loads(data) if data else None), list(descriptors)


def send(to_socket: socket.socket, message: dict[str, Any], descriptors: list[int] | None = None) -> None:
    """Send one message with descriptors; a peer that has gone is not told."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    with contextlib.suppress(OSError):
        to_socket.sendmsg([json.dumps(message).encode()], rights)


def import_lean(packages: dict[str, str], modules: list[str]) -> dict[str, types.ModuleType]:
    """Import modules by their full names without running the `__init__` of the packages that they lie in."""
    for name, folder in packages.items():
        package = types.ModuleType(name)
        package.__path__ = [folder]
        sys.modules[name] = package
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, package)
    return {name: importlib.import_module(name) for name in modules}


def enter(config: dict[str, Any], kernel: Any, root: Any) -> tuple[int, int]:
    """Put this process into the sandbox as the first of its pid namespace; returns descriptors of /proc and of that namespace.

    The process that was started stays outside and waits. Root builds the file system first, because only root may see all of it, and
    then stops being root; anybody else does it in a user namespace.
    """
    proc = os.open("/proc", os.O_PATH | os.O_CLOEXEC)
    apart = kernel.NEW_MOUNTS | kernel.NEW_PIDS | kernel.NEW_NETWORK | kernel.NEW_IPC | kernel.NEW_HOSTNAME
    if os.geteuid() == 0:
        kernel.unshare(kernel.NEW_MOUNTS)
        root.build_root(**config["view"])
        kernel.become(config["user"], config["user"])
        kernel.unshare(kernel.NEW_USER | apart)
        kernel.map_user(proc, config["user"], config["user"])
    else:
        uid, gid = os.geteuid(), os.getegid()
        kernel.unshare(kernel.NEW_USER | kernel.NEW_MOUNTS)
        kernel.map_user(proc, uid, gid)
        root.build_root(**config["view"])
        kernel.unshare(apart)
    pid = os.fork()
    if pid != 0:
        _wait_outside(pid)
    kernel.die_with_parent()
    return proc, os.open("self/ns/pid", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)


def _wait_outside(pid: int) -> NoReturn:
    os.closerange(FIRST_DESCRIPTOR, 256)
    os.waitpid(pid, 0)
    os._exit(0)


class Zygote:
    """The loop that forks and reaps.

    Args:
        control: where requests come from: `{"program": ..., "limits": ...}` with a socket for the news of the program, then the
            program's descriptors.
        kernel: the module `warm_kernel`.
        programs: name -> function that takes the descriptors.
        proc: descriptor of /proc.
        own_pids: descriptor of the zygote's own pid namespace.
        call_filter: of programs, beside the zygote's own.
    """

    def __init__(self, control: socket.socket, kernel: Any, programs: dict[str, Any], proc: int, own_pids: int, call_filter: bytes) -> None:
        self._control, self._kernel, self._programs = control, kernel, programs
        self._proc, self._own_pids, self._filter = proc, own_pids, call_filter
        self._children: dict[int, tuple[int, socket.socket, dict[str, float]]] = {}
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)

    def serve(self) -> None:
        """Fork on request until the other end of the socket closes; then all programs end with this process."""
        while True:
            for fd, _ in self._poll.poll():
                if fd in self._children:
                    self._reap(fd)
                elif not self._answer():
                    return

    def _answer(self) -> bool:
        request, descriptors = receive(self._control)
        if request is None:
            return False
        news = socket.socket(fileno=descriptors[0])
        try:
            pidfd = self._fork(request, news, descriptors[1:])
        except OSError as error:
            send(news, {"failed": f"{type(error).__name__}: {error}"})
            news.close()
        else:
            self._poll.register(pidfd, select.POLLIN)
        finally:
            for fd in descriptors[1:]:
                os.close(fd)
        return True

    def _fork(self, request: dict[str, Any], news: socket.socket, descriptors: list[int]) -> int:
        self._kernel.unshare(self._kernel.NEW_PIDS)
        try:
            pid = os.fork()
            if pid == 0:
                self._become_program(request, news, descriptors)
        finally:
            self._kernel.set_namespace(self._own_pids, self._kernel.NEW_PIDS)  # a second unshare is refused without this
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = pid, news, request["limits"]
        return pidfd

    def _reap(self, pidfd: int) -> None:
        pid, news, limits = self._children.pop(pidfd)
        self._poll.unregister(pidfd)
        lowered = self._kernel.has_lowered_cpu_limit(pid, limits)
        _, status, usage = os.wait4(pid, 0)
        os.close(pidfd)
        message = {"ended": status, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_mib": usage.ru_maxrss / 1024, "lowered": lowered}
        send(news, message)
        news.close()

    def _become_program(self, request: dict[str, Any], news: socket.socket, descriptors: list[int]) -> NoReturn:
        """Everything that makes a sandbox of this fork, then the program."""
        code = 1
        try:
            try:
                program = self._programs[request["program"]]
                handle = os.pidfd_open(os.getpid())
                self._confine(request["limits"])
            except BaseException as error:
                send(news, {"failed": f"{type(error).__name__}: {error}"})
                os._exit(1)
            send(news, {"entered": True}, [handle])
            code = program(*_arrange_descriptors(descriptors, self._kernel)) or 0
        finally:
            os._exit(code)

    def _confine(self, limits: dict[str, float]) -> None:
        kernel = self._kernel
        kernel.unshare(kernel.NEW_USER | kernel.NEW_MOUNTS | kernel.NEW_NETWORK | kernel.NEW_IPC | kernel.NEW_HOSTNAME)
        kernel.map_user(self._proc, kernel.INSIDE_UID, kernel.INSIDE_UID)
        options = f"mode=755,size={int(limits['file_mib'])}m,nr_inodes=16384"
        kernel.mount("tmpfs", "/tmp", "tmpfs", kernel.NO_SUID | kernel.NO_DEV, options)
        os.chdir("/tmp")
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        kernel.limit_resources(limits)
        kernel.drop_capabilities()
        kernel.filter_system_calls(self._filter)


def _arrange_descriptors(descriptors: list[int], kernel: Any) -> list[int]:
    """Put a program's descriptors in their places and close all others, the zygote's among them."""
    nothing = os.open("/dev/null", os.O_RDWR)
    room = FIRST_DESCRIPTOR + len(descriptors)
    out_of_the_way = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, room) for fd in (nothing, nothing, nothing, *descriptors)]
    for place, fd in enumerate(out_of_the_way):
        os.dup2(fd, place, inheritable=place < FIRST_DESCRIPTOR)
    kernel.close_from(room)
    return list(range(FIRST_DESCRIPTOR, room))


def main() -> None:
    """Entry point of the process: the number of its control socket is the only argument."""
    control = socket.socket(fileno=int(sys.argv[1]))
    config, _ = receive(control)
    if config is None:
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the other end of the socket decides when it ends
    try:
        names = [name.partition(":")[0] for name in config["programs"]]
        modules = import_lean(config["lean"], [*config["own"], *names])
        kernel, root, seccomp = (modules[name] for name in config["own"])
        call_filter = seccomp.filter_program()
        proc, own_pids = enter(config, kernel, root)
        sys.path += config["view"]["hidden"]
        for name in config["preload"]:
            importlib.import_module(name)
        programs = {name: getattr(modules[name.partition(":")[0]], name.partition(":")[2]) for name in config["programs"]}
    except BaseException as error:
        send(control, {"failed": f"{type(error).__name__}: {error}"})
        return
    kernel.filter_system_calls(bytes.fromhex(config["filter"]))  # once for all forks: each filter is compiled where it is installed
    gc.collect()
    gc.freeze()  # so that a fork's collector does not write to, and so copy, what it shares with the zygote
    send(control, {"ready": True})
    Zygote(control, kernel, programs, proc, own_pids, call_filter).serve()


if __name__ == "__main__":
    main()
