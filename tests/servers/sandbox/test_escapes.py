"""Programs that try to get out of a sandbox, or to take the machine with them: run cold, in sessions, and over HTTP."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sandbox_watch import LIMITS, inside, limits, wait_until, zombies

import agentrl
from agentrl.servers.sandbox import SandboxFileError, SandboxUnavailable, open_sandbox
from agentrl.servers.sandbox.cgroups import writable_parents
from agentrl.servers.sandbox.client import RemoteSandbox
from agentrl.servers.sandbox.ground import ground

WAYS = ("cold", "python", "shell", "http")
PRELUDE = """
def attempt(name, call):
    try:
        print(name, "GOT", call())
    except BaseException as error:
        print(name, "refused:", type(error).__name__, getattr(error, "errno", None))
import os, sys, ctypes, socket, signal, time, resource
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *words):
    if getattr(libc, name)(*words) < 0:
        raise OSError(ctypes.get_errno(), "")
    return "done"
"""


@pytest.fixture(params=WAYS)
def attack(request, sandbox):
    """Runs a Python program in a sandbox, one way or another; returns status and what it printed."""
    way = request.param
    if way == "cold":
        yield lambda code: _told(sandbox.run(["python", "-c", PRELUDE + code]))
    elif way == "http":
        with RemoteSandbox(request.getfixturevalue("server"), limits=LIMITS) as remote:
            yield lambda code: _told(remote.run(["python", "-c", PRELUDE + code]))
            assert remote.run(["echo", "well"]).stdout == b"well\n"
    else:
        session = sandbox.python() if way == "python" else sandbox.shell()
        wrapped = "{}" if way == "python" else "python - <<'END_OF_CODE'\n{}\nEND_OF_CODE"

        def run(code):
            turn = session.run(wrapped.format(PRELUDE + code) if way == "shell" else PRELUDE + code)
            return turn.status, turn.output.decode(errors="replace")

        yield run
        assert "well" in session.run("echo well" if way == "shell" else "print('well')").text  # the next call is unharmed
    with open_sandbox(limits=LIMITS) as other:
        assert other.run(["echo", "well"]).stdout == b"well\n"  # and so is the next sandbox


def _told(outcome):
    return outcome.status, (outcome.stdout + outcome.stderr).decode(errors="replace")


def refused(told, count):
    """All of so many attempts were made, and each failed."""
    status, text = told
    assert status == "exited", text
    assert "GOT" not in text
    assert text.count("refused:") == count, text


def test_there_is_no_network(attack):
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as local:
        local.bind(f"\0agentrl-{os.getpid()}")  # an abstract address is part of the network, not of the files
        local.listen()
        port = tcp.getsockname()[1]
        told = attack(f"""
attempt("tcp", lambda: socket.create_connection(("127.0.0.1", {port}), 2))
attempt("far", lambda: socket.create_connection(("192.0.2.1", 80), 2))
attempt("dns", lambda: socket.getaddrinfo("example.com", 80))
attempt("udp", lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53)))
attempt("abstract", lambda: socket.socket(socket.AF_UNIX).connect("\\0agentrl-{os.getpid()}"))
attempt("vsock", lambda: socket.socket(40, socket.SOCK_STREAM))
attempt("packets", lambda: socket.socket(17, socket.SOCK_RAW))
attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
print([name for _, name in socket.if_nameindex()])
""")
        refused(told, 8)
        assert "['lo']" in told[1]
        for listener in (tcp, local):
            listener.settimeout(0)
            with pytest.raises(BlockingIOError):
                listener.accept()


def test_other_processes_cannot_be_seen_signalled_or_traced(attack):
    host = os.getpid()
    told = attack(f"""
attempt("signal", lambda: os.kill({host}, 0))
attempt("stop", lambda: os.kill({host}, signal.SIGSTOP))
attempt("environ", lambda: open("/proc/{host}/environ").read())
attempt("memory", lambda: open("/proc/{host}/mem", "rb"))
attempt("ptrace", lambda: call("ptrace", 16, {host}, 0, 0))
attempt("trace parent", lambda: call("ptrace", 16, os.getppid(), 0, 0))
attempt("handle", lambda: os.pidfd_open({host}))
buffer = ctypes.create_string_buffer(8)
vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
attempt("vm", lambda: call("process_vm_readv", {host}, vector, 1, vector, 1, 0))
attempt("priority", lambda: os.setpriority(os.PRIO_PROCESS, {host}, 10))
print("SEEN", len([name for name in os.listdir("/proc") if name.isdigit()]))
""")
    refused(told, 9)
    assert int(told[1].split("SEEN")[1]) < 6


def test_files_outside_cannot_be_read_or_written(attack, tmp_path):
    project, mine = Path(agentrl.__file__).resolve(), tmp_path / "mine"
    mine.write_text("secret")
    tmp_path.chmod(0o777)
    mine.chmod(0o666)
    told = attack(f"""
paths = ["/etc/shadow", "/root/.bashrc", "/root/.ssh", {str(project)!r}, {str(mine)!r}, "/proc/1/root{mine}", "/proc/kcore",
         "/sys/kernel", "/dev/sda", "/dev/vda", "/dev/mem", "/dev/kmsg", "/var/log", "/home", "/run", "/work/../../etc/shadow"]
for path in paths:
    attempt(path, lambda: os.listdir(path) if os.path.isdir(path) else open(path, "rb"))
for path in ["/x", "/usr/x", "/usr/bin/x", "/etc/x", "/dev/x", "/proc/x", "/lib/x", os.path.dirname(os.__file__) + "/x", "/etc/passwd",
             "/usr/bin/env", "/proc/sys/kernel/hostname", "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/1/exe",
             "/proc/self/exe", sys.executable, {str(mine)!r}]:
    attempt("write " + path, lambda: open(path, "r+b" if os.path.exists(path) else "wb"))
attempt("remove", lambda: os.unlink("/usr/bin/env"))
attempt("link", lambda: os.link("/etc/passwd", "/work/passwd"))
attempt("chroot", lambda: os.chroot("/work"))
""")
    refused(told, 16 + 17 + 3)
    assert mine.read_text() == "secret"


def test_secrets_of_the_parent_are_not_inherited(attack, monkeypatch):
    monkeypatch.setenv("AGENTRL_TEST_KEY", "do-not-tell")
    with open(__file__, "rb") as held:
        os.set_inheritable(held.fileno(), True)
        status, text = attack("""
for pid in [name for name in os.listdir("/proc") if name.isdigit()]:
    print(open(f"/proc/{pid}/environ").read().replace("\\0", " "))
links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
print("FDS", [os.readlink(link) for link in links if os.path.lexists(link)])
print(len(os.environ))
""")
    assert status == "exited"
    assert "do-not-tell" not in text
    assert "AGENTRL" not in text.replace("agentrl_", "")
    opened = text.split("FDS")[1].split("]")[0]
    assert "test_escapes" not in opened
    assert "/work" not in opened
    assert int(text.split()[-1]) < 20


def test_it_has_no_rights(attack):
    status, text = attack("""
print([line for line in open("/proc/self/status") if line[:6] in ("CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewP", "Groups")])
attempt("mount", lambda: call("mount", b"none", b"/work", b"tmpfs", 0, None))
attempt("writable", lambda: call("mount", b"none", b"/usr", None, 32 | 4096, None))
attempt("uncover", lambda: call("umount2", b"/usr", 2))
attempt("root", lambda: os.setuid(0))
attempt("groups", lambda: os.setgroups([0]))
attempt("device", lambda: os.mknod("/work/null", 0o20666, os.makedev(1, 3)))
attempt("disk", lambda: os.mknod("/tmp/disk", 0o60666, os.makedev(8, 0)))
attempt("name", lambda: call("sethostname", b"x", 1))
attempt("owner", lambda: os.chown("/work", 0, 0))
attempt("clock", lambda: time.clock_settime(time.CLOCK_REALTIME, 0))
attempt("nice", lambda: os.nice(-5))
""")
    assert status == "exited", text
    assert text.count("0000000000000000") == 4
    assert "NoNewPrivs:\\t1" in text
    assert "GOT" not in text
    assert text.count("refused:") == 11


SETUID = """
import os, subprocess, shutil
for words in (["su", "-c", "id -u"], ["mount", "-t", "tmpfs", "none", "/work"], ["newgrp", "root"], ["chsh", "-s", "/bin/sh", "root"]):
    if shutil.which(words[0]):
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True)
        print("TRIED", words[0], done.returncode != 0, done.stdout.strip() == b"0")
shutil.copy("/usr/bin/id", "/work/id")
os.chmod("/work/id", 0o6755)
print("OWN", subprocess.run(["/work/id", "-u"], capture_output=True).stdout)
"""


def test_setuid_programs_give_nothing(sandbox):
    outcome = sandbox.run(["python", "-c", SETUID])
    text = outcome.stdout.decode()
    assert outcome.ok, outcome
    assert "TRIED su True False" in text
    assert "False" not in text.replace("True False", "")
    assert "OWN b'1000\\n'" in text


def test_a_user_namespace_of_its_own_gains_nothing(attack):
    status, text = attack("""
import subprocess
for line in ("-Ur id -u", "-Urm mount -t tmpfs none /usr", "-Urn true", "-p true"):
    words = line.split()
    print("UNSHARE", subprocess.run(["unshare", *words], capture_output=True).returncode)
attempt("clone", lambda: call("unshare", 0x10000000))
""")
    assert status == "exited", text
    assert text.count("UNSHARE 1") == 4
    assert "GOT" not in text


def test_dangerous_system_calls_are_filtered(attack):
    told = attack("""
calls = [("keyctl", 250, 0, 0), ("bpf", 321, 0, 0, 0), ("io_uring", 425, 1, ctypes.create_string_buffer(120)), ("userfaultfd", 323, 0),
         ("perf", 298, 0, 0, -1, -1, 0), ("shm", 29, 0, 4096, 0o1600), ("memfd", 319, b"x", 0), ("syslog", 103, 10, 0, 0),
         ("setns", 308, 0, 0)]
for name, *words in calls if os.uname().machine == "x86_64" else []:
    attempt(name, lambda: call("syscall", *words))
attempt("tiocsti", lambda: __import__("fcntl").ioctl(0, 0x5412, b"x"))
attempt("terminal", lambda: open("/dev/tty"))
""")
    refused(told, 11 if os.uname().machine == "x86_64" else 2)


def test_limits_cannot_be_raised(attack):
    told = attack("""
for kind in (resource.RLIMIT_CPU, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE, resource.RLIMIT_DATA,
             resource.RLIMIT_CORE):
    soft, hard = resource.getrlimit(kind)
    attempt(kind, lambda: resource.setrlimit(kind, (hard + 1, hard + 1)))
    assert hard != resource.RLIM_INFINITY or kind == resource.RLIMIT_CPU
    attempt(kind, lambda: resource.prlimit(1, kind, (hard + 1, hard + 1)))
""")
    refused(told, 12)


def test_signals_reach_nobody_outside(attack):
    status, text = attack("""
for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGHUP):
    os.kill(1, number)  # the first process of the sandbox is spared by the kernel
try:
    os.kill(2 ** 22 - 1, signal.SIGKILL)
except OSError as error:
    print(error.errno)
print("STILL HERE")
""")
    assert status == "exited", text
    assert "STILL HERE" in text
    assert os.getppid() > 0


@pytest.mark.parametrize("target", [-1, 0])
def test_a_program_that_kills_all_that_it_can_kills_only_itself(sandbox, target):
    outcome = sandbox.run(["python", "-c", f"import os; os.kill({target}, 9)"])
    assert outcome.status == ("exited" if target == -1 else "signalled")  # the first spares the caller
    session = sandbox.shell()
    session.run("kill -9 0; kill -9 -1; kill -9 $$")
    assert session.run("echo well").output == b"well\n"


def test_a_fork_bomb_is_contained(attack):
    status, text = attack("""
count = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        count += 1
except OSError as error:
    print("FORKED", count, error.errno)
""")
    assert status == "exited", text
    assert 5 < int(text.split("FORKED")[1].split()[0]) <= LIMITS.processes + 3


def test_a_bomb_of_bombs_ends_with_the_clock(sandbox):
    outcome = sandbox.run(["bash", "-c", "bomb() { bomb | bomb & }; bomb; sleep 30"], limits=limits(wall_s=1.0))
    assert outcome.status in ("timeout", "cpu", "output")
    assert outcome.seconds < 5


def test_threads_are_counted_too(attack):
    status, text = attack("""
import threading
count = 0
try:
    while True:
        threading.Thread(target=time.sleep, args=(0.5,)).start()
        count += 1
except RuntimeError:
    print("STARTED", count)
""")
    assert status == "exited", text
    assert int(text.split("STARTED")[1].split()[0]) <= LIMITS.processes + 3


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_an_output_flood_neither_fills_memory_nor_blocks(sandbox, stream):
    outcome = sandbox.run(["python", "-c", f"import sys\nwhile True: sys.{stream}.buffer.write(b'\\xff\\x00' * 50_000)"])
    assert outcome.status == "output"
    assert getattr(outcome, stream) == b"\xff\x00" * (LIMITS.output_kib << 9)
    assert outcome.seconds < 5
    turn = sandbox.python().run("while True: print('x' * 10_000)")
    assert turn.status == "output"
    assert len(turn.output) == LIMITS.output_kib << 10


def test_a_memory_bomb_of_one_process_is_refused_memory(attack):
    status, text = attack("attempt('memory', lambda: len(bytearray(10 ** 10)))\nattempt('pages', lambda: bytes(2 ** 28) * 2)")
    assert status in ("exited", "memory"), text
    assert "GOT" not in text


@pytest.mark.parametrize("hold", ["bytearray(2 ** 25)", "open('/dev/shm/x' + str(n), 'wb').write(bytes(2 ** 21))", "m()"])
def test_a_memory_bomb_of_many_processes_is_contained(sandbox, hold):
    code = f"""
import os, time, mmap
def m():
    kept = mmap.mmap(-1, 2 ** 25)
    kept.write(bytes(2 ** 25))
    return kept
for n in range(18):
    if os.fork() == 0:
        kept = {hold}
        time.sleep(3)
        os._exit(0)
time.sleep(1)
print("survived")
"""
    outcome = sandbox.run(["python", "-c", code])
    if "shm" in hold:
        assert outcome.status in ("exited", "memory")  # as large as a file may be, and then full
    else:
        assert outcome.status == "memory"
        assert "256 MiB" in outcome.reason


TABLES = """
import mmap, os, time
for n in range(12):
    if os.fork() == 0:
        kept = mmap.mmap(-1, 60 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000, prot=mmap.PROT_READ)
        kept.madvise(15)  # no huge pages: a page of the tables for every two megabytes that are looked at
        for place in range(0, 60 << 30, 2 << 20):
            kept[place]
        time.sleep(20)
        os._exit(0)
time.sleep(20)
"""
CONNECTIONS = """
import os, socket, time
listener = socket.create_server(("127.0.0.1", 0))
kept = []
for n in range(12):
    if os.fork() == 0:
        for _ in range(20):
            one = socket.create_connection(listener.getsockname())
            kept += [one, listener.accept()[0]]
            one.setblocking(False)
            try:
                while True:
                    one.send(bytes(2 ** 20))
            except BlockingIOError:
                pass
        time.sleep(20)
        os._exit(0)
time.sleep(20)
"""


@pytest.mark.parametrize("code", [TABLES, CONNECTIONS], ids=["tables", "connections"])
def test_memory_of_the_kernel_is_counted(sandbox, code):
    outcome = sandbox.run(["python", "-c", code], limits=limits(wall_s=4, cpu_s=15))
    # a control group keeps connections small, so that they only stand still
    assert outcome.status == "memory" or (code == CONNECTIONS and writable_parents() and outcome.status == "timeout"), outcome


def test_a_session_survives_a_command_that_takes_too_much_memory(sandbox):
    session = sandbox.shell()
    code = "import os, time\nfor n in range(15):\n  if os.fork() == 0: kept = bytearray(2 ** 25); time.sleep(20)\ntime.sleep(20)"
    turn = session.run(f"X=1; python -c '{code}'")
    assert turn.status == "memory"
    assert turn.seconds < 8
    again = session.run("echo [$X]")
    assert (again.status, again.output) == ("exited", b"[1]\n" if turn.alive else b"[]\n")


def test_private_places_in_memory_are_small(attack):
    status, text = attack("""
for place in ("/tmp", "/dev/shm"):
    total = 0
    try:
        for n in range(100):
            with open(f"{place}/{n}", "wb") as file:
                total += file.write(bytes(2 ** 20))
    except OSError as error:
        print("FULL", total >> 20, error.errno)
""")
    assert status == "exited", text
    assert text.count("FULL") == 2
    assert all(int(part.split()[0]) <= LIMITS.file_mib for part in text.split("FULL")[1:])


def test_files_in_memory_are_counted(sandbox):
    code = "for n in range(10 ** 6): open(f'/dev/shm/{n}', 'w').close()"
    outcome = sandbox.run(["python", "-c", code], limits=limits(wall_s=60, cpu_s=60))
    assert outcome.status == "memory"
    assert "20000 files in /tmp and /dev/shm" in outcome.reason


def test_a_file_has_a_largest_size(attack):
    status, text = attack("""
def write(sparse):
    with open("big", "wb") as file:
        file.seek(sparse)
        for _ in range(40):
            file.write(bytes(2 ** 20))
attempt("big", lambda: write(0))
attempt("sparse", lambda: write(2 ** 40))
attempt("reserved", lambda: call("fallocate", os.open("big", os.O_RDWR), 0, 0, 2 ** 20))
""")
    assert status == "exited", text
    assert text.count("refused: OSError 27") == 2
    assert "refused: OSError 95" in text


DISK = {
    "files": ("for n in range(100): open(f'{n}', 'wb').write(bytes(2 ** 20))", "more than 32 MiB"),
    "deleted": (
        "kept = []\nfor n in range(100):\n    f = open('x', 'wb'); os.unlink('x'); f.write(bytes(10 << 20)); f.flush(); kept.append(f)",
        "8 times the 32 MiB",
    ),
    "entries": ("for n in range(10 ** 6): os.close(os.open(f'{n}', os.O_CREAT | os.O_WRONLY))", "more than 20000 entries"),
    "depth": ("for n in range(200): os.mkdir('d'); os.chdir('d')", "more than 64 deep"),
}


@pytest.mark.parametrize("kind", DISK)
def test_the_disk_cannot_be_filled(sandbox, kind):
    code, reason = DISK[kind]
    outcome = sandbox.run(["python", "-c", f"import os, time\n{code}\ntime.sleep(90)"], limits=limits(wall_s=60, cpu_s=60))
    assert outcome.status == "output", outcome
    assert reason in outcome.reason
    assert sandbox.run(["echo", "well"]).stdout == b"well\n"
    if kind != "deleted":
        refused = sandbox.run(["sh", "-c", "echo x > /tmp/more"])
        assert refused.status == "output"
        assert "can only remove" in refused.reason or reason in refused.reason
        while sandbox.run(["sh", "-c", "rm -rf /work/*"]).status != "exited":
            pass
    assert sandbox.run(["sh", "-c", "echo x > more && cat more"]).stdout == b"x\n"


def test_cpu_time_of_all_processes_counts(sandbox):
    code = "import os\nfor _ in range(3): os.fork()\nwhile True: pass"
    outcome = sandbox.run(["python", "-c", code], limits=limits(cpu_s=1.0))
    assert outcome.status == "cpu"
    assert outcome.seconds < 8  # much later the clock would have ended it


LINGER = "setsid sleep 61 & (setsid sleep 61 &) & nohup sleep 61 >/dev/null 2>&1 & (trap '' TERM HUP INT; sleep 61) & disown -a; "


@pytest.mark.parametrize("end", ["exit 0", "kill -9 $$", "exec sleep 61", "exec >&- 2>&- <&-; exec sleep 61"])
def test_no_child_outlives_its_program(sandbox, end):
    outcome = sandbox.run(["bash", "-c", LINGER + end], limits=limits(wall_s=0.5))
    assert outcome.status in {"exit 0": ["exited"], "kill -9 $$": ["signalled"]}.get(end, ["timeout"])
    assert outcome.seconds < 5
    assert not inside(ground().scratch.path)


def test_no_child_outlives_its_session(sandbox):
    session = sandbox.shell()
    assert session.run(LINGER + "echo begun").output == b"begun\n"
    assert inside(ground().scratch.path)
    session.close()
    assert not inside(ground().scratch.path)
    assert not zombies(os.getpid())


def test_links_do_not_lead_file_tools_out(sandbox, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    script = f"""
ln -s {secret} file; ln -s {tmp_path} folder; ln -s / root; mkfifo pipe; ln -s /proc/self/environ environ; mkdir real; ln -s ../real real/up
python -c "import socket; socket.socket(socket.AF_UNIX).bind('sock')"
"""
    assert sandbox.run(["bash", "-c", script]).ok
    for path in (
        "file",
        "folder/secret",
        f"root{secret}",
        "pipe",
        "sock",
        "environ",
        "real/up/x",
        "real",
        "../x",
        "/etc/passwd",
        "",
        "a\0b",
    ):
        with pytest.raises(SandboxFileError):
            sandbox.read(path)
    for path in ("folder/new", "root/tmp/new", "real/up/x", "../x", "/etc/x", "real"):
        with pytest.raises(SandboxFileError):
            sandbox.write(path, b"x")
    for path in ("folder", "root", "real/up", ".."):
        with pytest.raises(SandboxFileError):
            sandbox.listing(path)
    sandbox.write("file", b"mine")  # takes the link's place
    assert secret.read_text() == "secret"
    assert sandbox.read("file") == b"mine"
    assert {"folder@", "root@", "pipe", "sock", "real/", "real/up@"} < set(sandbox.listing())


def test_a_folder_that_turns_into_a_link_meanwhile_leads_nowhere(sandbox, tmp_path):
    (tmp_path / "file").write_text("secret")
    code = f"""
import os
os.makedirs("a", exist_ok=True); open("a/file", "w").write("mine"); os.symlink({str(tmp_path)!r}, "b")
print("ready", flush=True)
while True:
    for first, second in (("a", "t"), ("b", "a"), ("a", "b"), ("t", "a")):
        try:
            os.rename(first, second)
        except OSError:
            pass
"""
    ends = []
    program = threading.Thread(target=lambda: ends.append(sandbox.run(["python", "-c", code], limits=limits(wall_s=2.5, cpu_s=60))))
    program.start()
    seen = set()
    while program.is_alive():
        with contextlib.suppress(SandboxFileError):
            seen.add(sandbox.read("a/file"))
        with contextlib.suppress(SandboxFileError):
            sandbox.write("a/file", b"written")
        with contextlib.suppress(SandboxFileError):
            sandbox.write("a/new", b"written")
    program.join()
    assert ends[0].status == "timeout"
    assert seen <= {b"", b"mine", b"written"}
    assert seen
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "secret"


def test_sandboxes_do_not_see_each_other(sandbox):
    with open_sandbox(limits=LIMITS) as other:
        other.write("secret", b"x")
        session = other.shell()
        session.run("echo x > /tmp/secret; echo x > /dev/shm/secret; sleep 50 &")
        found = sandbox.run(["bash", "-c", "ls /tmp /dev/shm /work; ls -d /proc/[0-9]* | wc -l; ls /tmp/agentrl* /mnt 2>/dev/null; exit 0"])
    assert b"secret" not in found.stdout
    assert b"box-" not in found.stdout


def test_standard_input_is_no_way_to_hang(sandbox):
    much = os.urandom(3 << 20)
    assert sandbox.run(["sh", "-c", "exec <&-; echo well"], stdin=much).stdout == b"well\n"
    assert sandbox.run(["head", "-c", "3"], stdin=much).stdout == much[:3]
    assert sandbox.run(["sha256sum"], stdin=much).ok
    outcome = sandbox.run(["sh", "-c", "sleep 60"], stdin=much, limits=limits(wall_s=0.3))
    assert outcome.status == "timeout"
    assert sandbox.run(["cat"]).stdout == b""
    assert "''" in sandbox.python().run("import sys; sys.stdin.read()").text


ANSWERS = """
import os, sys
for fd in range(3, 40):
    try:
        os.write(fd, b"0123456789abcdef 0\\n" * {count})
    except OSError:
        pass
print("END 0", "\\x00", "0123456789abcdef 0")
"""


def test_a_session_cannot_forge_answers(sandbox):
    session = sandbox.python()
    assert "END 0" in session.run(ANSWERS.format(count=1)).text
    assert session.run("1 + 1").output == b"2\n"
    flooded = session.run(ANSWERS.format(count=10_000))
    assert not flooded.alive
    assert "own channel" in flooded.reason
    assert flooded.seconds < 5
    assert session.run("2 + 2").output == b"4\n"


@pytest.mark.parametrize(
    "code",
    ["import os; os._exit(0)", "import os; os.closerange(0, 100)", "import os; os.dup2(1, 3); os.dup2(1, 4); os.dup2(1, 5)",
     "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", "import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
     "import ctypes; ctypes.string_at(0)", "import gc, sys\nfor x in gc.get_objects():\n  if isinstance(x, dict): x.clear()",
     "import builtins; builtins.__dict__.clear()", "import os\nwhile True: os.fork()"],
)  # fmt: skip
def test_a_session_that_destroys_itself_is_lost_and_begins_anew(sandbox, code):
    session = sandbox.python()
    session.run("kept = 1")
    turn = session.run(code, timeout_s=1.0)
    assert turn.seconds < 8
    after = session.run("print('well')")
    assert b"well\n" in after.output
    if not turn.alive:
        assert "state is lost" in turn.reason
        assert b"NameError" in session.run("kept").output


def test_everything_in_a_session_stands_still_between_calls(sandbox):
    session = sandbox.shell()
    session.run("(while :; do echo x >> ticks; sleep 0.01; done) & sleep 0.2")
    first = len(sandbox.read("ticks"))
    outcome = sandbox.run(["sleep", "0.3"])
    assert outcome.ok
    assert len(sandbox.read("ticks")) == first
    session.run("sleep 0.2")
    assert len(sandbox.read("ticks")) > first


ORPHANS = """
import sys
from agentrl.servers.sandbox import open_sandbox
from agentrl.servers.sandbox.ground import ground
box = open_sandbox()
shell = box.shell()
shell.run("sleep 300 & setsid sleep 300 &")
print(ground().scratch.path, flush=True)
box.run(["sh", "-c", "sleep 300 & sleep 300"])
"""


def test_nothing_outlives_an_owner_that_was_killed():
    with subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE, text=True) as owner:
        scratch = Path(owner.stdout.readline().strip())
        assert wait_until(lambda: len(inside(scratch)) >= 6)
        owner.kill()
    assert wait_until(lambda: not inside(scratch))
    assert wait_until(lambda: not scratch.exists())


def test_closing_a_sandbox_ends_a_program_without_a_verdict(sandbox):
    errors = []

    def attempt(call):
        try:
            call()
        except SandboxUnavailable as error:
            errors.append(str(error))

    with open_sandbox(limits=LIMITS) as other:
        session = other.shell()
        session.run("true")
        calls = [lambda: other.run(["sleep", "60"]), lambda: session.run("sleep 60")]
        programs = [threading.Thread(target=attempt, args=(call,)) for call in calls]
        for program in programs:
            program.start()
        assert wait_until(lambda: len(inside(ground().scratch.path)) >= 5)
    for program in programs:
        program.join(5)
    assert sorted(errors) == ["this sandbox was closed; open another one", "this session was closed; start another one"]


@pytest.mark.parametrize("mode", ["000", "300", "7777"])
def test_a_program_that_closes_its_folder_does_not_stop_the_next_one(sandbox, mode):
    """Else it could make its episode unscorable, or fill the disk unseen."""
    assert sandbox.run(["chmod", mode, "/work"]).code == 0
    assert sandbox.run(["sh", "-c", "echo a > b"]).code == 0
    assert sandbox.shell().run("chmod " + mode + " .").code == 0
    assert sandbox.read("b") == b"a\n"
    assert sandbox.python().run("print(open('b').read())").output == b"a\n\n"
