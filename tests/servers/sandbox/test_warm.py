"""What a warm program can do to the machine, to others, and to what comes after it: nothing."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agentrl.servers.sandbox import Limits, SandboxUnavailable, tree
from agentrl.servers.sandbox.warm import WarmPool
from agentrl.servers.sandbox.warm_watch import run_program

SCRIPT = "agentrl.rewards.unit_tests.script:main"
LIMITS = Limits(cpu_s=2, wall_s=120, memory_mib=256, processes=16, file_mib=4, output_kib=64, open_files=64)


@pytest.fixture(scope="module")
def pool():
    with WarmPool([SCRIPT]) as opened:
        yield opened


def run(pool, code, limits=LIMITS, **options):
    return run_program(pool, SCRIPT, json.dumps({"code": code}).encode(), limits=limits, **options)


def printed(pool, code, limits=LIMITS):
    outcome = run(pool, code, limits)
    assert outcome.ok, (outcome.reason, outcome.stderr.decode())
    return outcome.stdout.decode().strip()


def attempt(code):
    """A program that says how an attempt went."""
    lines = "\n".join(f"    {line}" for line in code.splitlines())
    caught = "except (OSError, MemoryError, ImportError, ValueError) as error:\n    print(type(error).__name__)"
    return f"import os, socket, signal, ctypes\ntry:\n{lines}\n    print('done')\n{caught}"


def test_programs_get_input_and_say_how_they_ended(pool):
    assert run(pool, "print(input()[::-1])", stdin=b"abc\n").stdout == b"cba\n"
    outcome = run(pool, "import sys\nprint('x', file=sys.stderr)\nsys.exit(3)")
    assert (outcome.status, outcome.code, outcome.stdout, outcome.stderr) == ("exited", 3, b"", b"x\n")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("while True: pass", "cpu"),
        ("import time; time.sleep(60)", "timeout"),
        ("while True: print('x' * 1000)", "output"),
        ("import sys\nwhile True: sys.stderr.write('x' * 1000)", "output"),
        ("import os\nos.setuid(1000)\nos.abort()", "signalled"),
        ("import ctypes; ctypes.string_at(0)", "signalled"),
        (
            "import os\nfor _ in range(8):\n    if not os.fork():\n        break\nx = bytearray(120 * 2**20)\nimport time\ntime.sleep(9)",
            "memory",
        ),
        ("import os\nfor _ in range(4):\n    os.fork()\nwhile True: pass", "cpu"),
    ],
)
def test_limits_end_a_program_with_all_it_started(pool, code, status):
    limits = Limits(cpu_s=1, wall_s=5 if "sleep(60)" in code else 120, memory_mib=256, processes=24, file_mib=4, output_kib=64)
    outcome = run(pool, code, limits)
    assert outcome.status == status
    assert bool(outcome.reason)
    assert len(outcome.stdout) <= 64 * 1024


@pytest.mark.parametrize(
    "code",
    [
        "socket.create_connection(('127.0.0.1', 22), 1)",
        "socket.create_connection(('10.0.0.1', 80), 1)",
        "socket.socket(40, socket.SOCK_STREAM)",
        "open('/etc/shadow').read()",
        "open('/usr/x', 'w')",
        "open('/x', 'w')",
        "open('/etc/passwd', 'w')",
        "open('/dev/shm/../../x', 'w')",
        "os.listdir('/home')",
        "os.listdir('/proc/1')",
        "os.listdir('/sys')",
        "os.open('/dev/kmsg', os.O_RDONLY)",
        "os.mknod('/tmp/disk', 0o60600, os.makedev(8, 0))",
        "os.mknod('/tmp/mem', 0o20600, os.makedev(1, 1))",
        "os.setuid(0)",
        "os.chroot('/tmp')",
        "os.chmod('/tmp', 0o777)\nos.chown('/tmp', 0, 0)",
        "os.memfd_create('x')",
        "os.setpriority(os.PRIO_PROCESS, 0, -5)",
        "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))",
        "open('/tmp/large', 'wb').write(bytes(5 * 2**20))",
        "for n in range(10):\n    open(f'/tmp/{n}', 'wb').write(bytes(2**20))",
        "for n in range(20000):\n    open(f'/tmp/{n}', 'w').close()",
        "held = [os.open('/dev/null', 0) for _ in range(65)]",
        "held = bytearray(300 * 2**20)",
        "import resource\nresource.setrlimit(resource.RLIMIT_NPROC, (-1, -1))",
        "import numpy",
        "import agentrl.environment",
        "import torch",
    ],
)
def test_what_a_program_may_not_do_fails(pool, code):
    assert printed(pool, attempt(code)) in (
        "OSError",
        "PermissionError",
        "FileNotFoundError",
        "MemoryError",
        "ModuleNotFoundError",
        "ValueError",
    )


@pytest.mark.parametrize(
    "name",
    [
        "unshare -Ur true",
        "unshare -n true",
        "mount -t tmpfs x /tmp",
        "umount /tmp",
        "nsenter -t 1 -m true",
        "su",
        "/usr/sbin/chroot / true",
    ],
)
def test_no_tool_gains_a_right(pool, name):
    assert printed(pool, f"import subprocess\nprint(subprocess.run({name.split()!r}, capture_output=True).returncode != 0)") == "True"


def test_system_calls_for_namespaces_are_refused(pool):
    code = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nfor flag in (0x10000000, 0x20000, 0x40000000):\n"
    code += (
        "    print(libc.unshare(flag), ctypes.get_errno())\n    print(libc.syscall(56, flag | 17, 0, 0, 0, 0))\n"
        if os.uname().machine == "x86_64"
        else ""
    )
    code += "print(libc.ptrace(16, 1, 0, 0), libc.mount(b'x', b'/tmp', b'tmpfs', 0, None))"
    assert set(printed(pool, code).split()) == {"-1", "1"}


def test_a_program_has_no_rights_and_is_nobody(pool):
    code = "import ctypes, os\nlibc = ctypes.CDLL(None)\nprint(os.getuid(), os.getgid(), os.getpid(), libc.prctl(39, 0, 0, 0, 0))\n"
    code += "import struct\nhead = ctypes.create_string_buffer(struct.pack('Ii', 0x20080522, 0))\nheld = ctypes.create_string_buffer(24)\n"
    code += "libc.capget(head, held)\nprint(sum(held.raw))\nprint(sorted(os.environ))"
    first, rights, variables = printed(pool, code).splitlines()
    assert first == "1000 1000 1 1"
    assert rights == "0"
    assert not {"KEY", "TOKEN", "SECRET"} & {word for name in eval(variables) for word in name.split("_")}


def test_each_has_its_own_tmp_and_processes(pool):
    leave = "import os, time\nopen('/tmp/left', 'w').write('x')\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)\n"
    look = "import os\nprint(os.listdir('/tmp'), os.getpid())"
    assert run(pool, leave).ok
    assert printed(pool, look) == "[] 1"


def test_signals_reach_nobody_else(pool):
    hold = "import time\nprint('on', flush=True)\ntime.sleep(1)\nprint('off')"
    kill = "import os, signal\nfor pid in (-1, *range(2, 5000)):\n    try:\n        os.kill(pid, signal.SIGKILL)\n    except OSError:\n"
    kill += "        pass\nprint('tried')"
    with ThreadPoolExecutor(2) as threads:
        held = threads.submit(printed, pool, hold)
        assert printed(pool, kill) == "tried"
        assert held.result() == "on\noff"


def test_descriptors_are_only_its_own(pool):
    code = "import os\nfound = []\nfor fd in range(64):\n    try:\n        os.fstat(fd)\n        found.append(fd)\n"
    code += "    except OSError:\n        pass\nprint(found)"
    assert printed(pool, code) == "[0, 1, 2]"


def test_nothing_is_left_running(pool):
    before = set(tree.members(os.getpid()))
    for _ in range(3):
        with contextlib.suppress(SandboxUnavailable):  # a machine too busy to run it within 0.3 s; nothing may be left then either
            run(pool, "import os\nfor _ in range(3):\n    os.fork()\nimport time\ntime.sleep(30)", Limits(cpu_s=1, wall_s=0.3))
    after = tree.members(os.getpid())
    states = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in after]
    assert set(after) == before
    assert "Z" not in states


def test_programs_run_at_once(pool):
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda number: printed(pool, f"print({number})"), range(40)))
    assert results == [str(number) for number in range(40)]


def test_randomness_differs_between_programs(pool):
    code = "import random, uuid\nprint(random.random(), uuid.uuid4())"
    assert len({printed(pool, code) for _ in range(3)}) == 3


def test_packages_are_seen_where_they_are_given():
    with WarmPool([SCRIPT], packages=["iniconfig"]) as opened:
        assert printed(opened, "import iniconfig\nprint(iniconfig.IniConfig.__name__)") == "IniConfig"
        assert printed(opened, attempt("import pytest")) == "ModuleNotFoundError"


def test_a_pool_that_has_ended_says_so():
    opened = WarmPool([SCRIPT])
    opened.close()
    opened.close()
    assert not opened.alive
    with pytest.raises(SandboxUnavailable):
        run(opened, "print(1)")


def test_an_interpreter_that_is_killed_takes_all_with_it_and_leaves_no_descriptor():
    before = len(os.listdir("/proc/self/fd"))
    with WarmPool([SCRIPT]) as opened, ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(run, opened, "import time\ntime.sleep(30)", LIMITS) for _ in range(4)]
        printed(opened, "print(1)")
        os.kill(tree.members(opened.process_id)[1], signal.SIGKILL)
        assert {type(each.exception()) for each in waiting} == {SandboxUnavailable}
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_program_that_is_unknown_does_not_start(pool):
    with pytest.raises(SandboxUnavailable, match="nothing"):
        run_program(pool, "nothing:main", b"{}")
    assert printed(pool, "print(1)") == "1"


def test_a_module_that_does_not_import_is_named():
    with pytest.raises(SandboxUnavailable, match="no_module_of_that_name"):
        WarmPool([SCRIPT], preload=["no_module_of_that_name"])


def test_everything_ends_with_the_process_that_opened_the_pool(tmp_path):
    """Also where that is killed, and with programs running."""
    code = (
        "import json, os, sys\nfrom agentrl.servers.sandbox.warm import WarmPool\nfrom agentrl.servers.sandbox.warm_watch import job_file\n"
        f"pool = WarmPool([{SCRIPT!r}])\nread, write = os.pipe()\nnothing = os.open('/dev/null', os.O_RDWR)\n"
        "job = job_file(json.dumps({'code': 'import os, time\\nif os.fork(): os.write(1, b\"up\")\\ntime.sleep(60)'}).encode())\n"
        f"program = pool.start({SCRIPT!r}, [job, nothing, write, nothing])\nos.read(read, 2)\n"
        "from agentrl.servers.sandbox import tree\nprint(tree.members(os.getpid())[1:], flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        pids = json.loads(process.stdout.readline())
        handles = [os.pidfd_open(pid) for pid in pids]
        assert len(handles) >= 4
        process.kill()
    gone = threading.Event()

    def wait():
        import select

        poll = select.poll()
        for handle in handles:
            poll.register(handle, select.POLLIN)
        while handles:
            for fd, _ in poll.poll(10_000):
                poll.unregister(fd)
                os.close(fd)
                handles.remove(fd)
        gone.set()

    threading.Thread(target=wait, daemon=True).start()
    assert gone.wait(10)
