"""Programs that try to take the machine with them: its memory, processors, disk, processes, or whoever reads what they print."""

import os

import pytest
from sandbox_watch import LIMITS, limits

from agentrl.servers.sandbox.cgroups import writable_parents


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
        while sandbox.run(["sh", "-c", "rm -rf /sandbox/*"]).status != "exited":
            pass
    assert sandbox.run(["sh", "-c", "echo x > more && cat more"]).stdout == b"x\n"


def test_cpu_time_of_all_processes_counts(sandbox):
    code = "import os\nfor _ in range(3): os.fork()\nwhile True: pass"
    outcome = sandbox.run(["python", "-c", code], limits=limits(cpu_s=1.0))
    assert outcome.status == "cpu"
    assert outcome.seconds < 8  # much later the clock would have ended it


def test_standard_input_is_no_way_to_hang(sandbox):
    much = os.urandom(3 << 20)
    assert sandbox.run(["sh", "-c", "exec <&-; echo well"], stdin=much).stdout == b"well\n"
    assert sandbox.run(["head", "-c", "3"], stdin=much).stdout == much[:3]
    assert sandbox.run(["sha256sum"], stdin=much).ok
    outcome = sandbox.run(["sh", "-c", "sleep 60"], stdin=much, limits=limits(wall_s=0.3))
    assert outcome.status == "timeout"
    assert sandbox.run(["cat"]).stdout == b""
    assert "''" in sandbox.python().run("import sys; sys.stdin.read()").text
