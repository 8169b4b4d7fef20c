"""Programs that try to outlive their sandbox, to forge what a session answers, or to spoil the next call."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sandbox_watch import LIMITS, inside, limits, wait_until, zombies

from agentrl.servers.sandbox import SandboxUnavailable, open_sandbox
from agentrl.servers.sandbox.ground import ground
from agentrl.servers.sandbox.limits import INSIDE

LINGER = "setsid sleep 61 & (setsid sleep 61 &) & nohup sleep 61 >/dev/null 2>&1 & (trap '' TERM HUP INT; sleep 61) & disown -a; "


@pytest.mark.parametrize("end", ["exit 0", "kill -9 $$", "exec sleep 61", "exec >&- 2>&- <&-; exec sleep 61"])
def test_no_child_outlives_its_program(sandbox, end):
    outcome = sandbox.run(["bash", "-c", LINGER + end], limits=limits(wall_s=10 if end in ("exit 0", "kill -9 $$") else 0.5))
    assert outcome.status in {"exit 0": ["exited"], "kill -9 $$": ["signalled"]}.get(end, ["timeout"])
    assert outcome.seconds < 5  # its children would have taken 61
    assert not inside(ground().scratch.path)


def test_no_child_outlives_its_session(sandbox):
    session = sandbox.shell()
    assert session.run(LINGER + "echo begun").output == b"begun\n"
    assert inside(ground().scratch.path)
    session.close()
    assert not inside(ground().scratch.path)
    assert not zombies(os.getpid())


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
    session.run("(while :; do echo x >> ticks; sleep 0.01; done) & until [ -s ticks ]; do sleep 0.01; done")
    first = len(sandbox.read("ticks"))
    outcome = sandbox.run(["sleep", "0.3"])
    assert outcome.ok
    assert len(sandbox.read("ticks")) == first
    assert session.run(f"until [ $(wc -c < ticks) -gt {first} ]; do sleep 0.01; done").code == 0


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
        program.join(60)
    assert sorted(errors) == ["this sandbox was closed; open another one", "this session was closed; start another one"]


@pytest.mark.parametrize("mode", ["000", "300", "7777"])
def test_a_program_that_closes_its_folder_does_not_stop_the_next_one(sandbox, mode):
    """Else it could make its episode unscorable, or fill the disk unseen."""
    assert sandbox.run(["chmod", mode, INSIDE]).code == 0
    assert sandbox.run(["sh", "-c", "echo a > b"]).code == 0
    assert sandbox.shell().run("chmod " + mode + " .").code == 0
    assert sandbox.read("b") == b"a\n"
    assert sandbox.python().run("print(open('b').read())").output == b"a\n\n"
