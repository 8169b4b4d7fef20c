"""Programs that try to get out of a sandbox, by the network, files, processes or rights: run cold, in sessions, and over HTTP."""

import contextlib
import os
import socket
import threading
from pathlib import Path

import pytest
from sandbox_watch import LIMITS, limits

import agentrl
from agentrl.servers.sandbox import SandboxFileError, open_sandbox
from agentrl.servers.sandbox.limits import INSIDE


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
    key = tmp_path / ".ssh" / "key"
    key.parent.mkdir(0o700)
    key.touch(0o600)
    told = attack(f"""
paths = ["/etc/shadow", {str(key)!r}, {str(key.parent)!r}, {str(project)!r}, {str(mine)!r}, "/proc/1/root{mine}", "/proc/kcore",
         "/sys/kernel", "/dev/sda", "/dev/vda", "/dev/mem", "/dev/kmsg", "/var/log", "/home", "/run", "{INSIDE}/../../etc/shadow"]
for path in paths:
    attempt(path, lambda: os.listdir(path) if os.path.isdir(path) else open(path, "rb"))
for path in ["/x", "/usr/x", "/usr/bin/x", "/etc/x", "/dev/x", "/proc/x", "/lib/x", os.path.dirname(os.__file__) + "/x", "/etc/passwd",
             "/usr/bin/env", "/proc/sys/kernel/hostname", "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/1/exe",
             "/proc/self/exe", sys.executable, {str(mine)!r}]:
    attempt("write " + path, lambda: open(path, "r+b" if os.path.exists(path) else "wb"))
attempt("remove", lambda: os.unlink("/usr/bin/env"))
attempt("link", lambda: os.link("/etc/passwd", "{INSIDE}/passwd"))
attempt("chroot", lambda: os.chroot("{INSIDE}"))
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
    assert INSIDE not in opened
    assert int(text.split()[-1]) < 20


def test_it_has_no_rights(attack):
    status, text = attack("""
print([line for line in open("/proc/self/status") if line[:6] in ("CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewP", "Groups")])
attempt("mount", lambda: call("mount", b"none", b"/sandbox", b"tmpfs", 0, None))
attempt("writable", lambda: call("mount", b"none", b"/usr", None, 32 | 4096, None))
attempt("uncover", lambda: call("umount2", b"/usr", 2))
attempt("root", lambda: os.setuid(0))
attempt("groups", lambda: os.setgroups([0]))
attempt("device", lambda: os.mknod("/sandbox/null", 0o20666, os.makedev(1, 3)))
attempt("disk", lambda: os.mknod("/tmp/disk", 0o60666, os.makedev(8, 0)))
attempt("name", lambda: call("sethostname", b"x", 1))
attempt("owner", lambda: os.chown("/sandbox", 0, 0))
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
for words in (["su", "-c", "id -u"], ["mount", "-t", "tmpfs", "none", "/sandbox"], ["newgrp", "root"], ["chsh", "-s", "/bin/sh", "root"]):
    if shutil.which(words[0]):
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True)
        print("TRIED", words[0], done.returncode != 0, done.stdout.strip() == b"0")
shutil.copy("/usr/bin/id", "/sandbox/id")
os.chmod("/sandbox/id", 0o6755)
print("OWN", subprocess.run(["/sandbox/id", "-u"], capture_output=True).stdout)
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
        found = sandbox.run(
            ["bash", "-c", "ls /tmp /dev/shm /sandbox; ls -d /proc/[0-9]* | wc -l; ls /tmp/agentrl* /mnt 2>/dev/null; exit 0"]
        )
    assert b"secret" not in found.stdout
    assert b"box-" not in found.stdout
