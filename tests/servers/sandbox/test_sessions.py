"""Persistent interpreters, of both kinds on this machine. What they cannot do is in `test_escapes.py`."""

import signal

import pytest


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("1 + 1", "2\n"),
        ("x = 5", ""),
        ("print('a')\n'b'", "a\n'b'\n"),
        ("None", ""),
        ("", ""),
        ("# only a comment", ""),
        ("def f():\n    return 3\n\nf()", "3\n"),
        ("import sys; print('e', file=sys.stderr); print('o')", "e\no\n"),
        ("import os; _ = os.system('echo child')", "child\n"),
        ("print('\\ud800')", "\\ud800\n"),
        ("import sys; sys.stdout.buffer.write(b'\\xff\\n') and None", "\ufffd\n"),
        ("__name__", "'__main__'\n"),
        ("import subprocess; subprocess.run(['cat']).returncode", "0\n"),
        ("input()", "EOFError"),
    ],
)
def test_python_shows_what_is_printed_and_the_value_of_a_last_expression(either, code, output):
    turn = either.python().run(code)
    assert turn.status == "exited"
    assert turn.alive
    assert turn.text == output or (output == "EOFError" and "EOFError" in turn.text)


def test_python_keeps_its_state(either):
    session = either.python()
    session.run("import math\nx = [1]\ndef f(): return len(x)")
    session.run("x.append(math.pi)")
    assert session.run("f()").output == b"2\n"
    assert session.run("x[1]").output == b"3.141592653589793\n"
    assert either.python().run("'x' in globals()").output == b"False\n"  # another session is another interpreter
    either.write("own.py", b"y = 7")
    assert session.run("import own; own.y").output == b"7\n"


@pytest.mark.parametrize(
    ("code", "last"),
    [
        ("1/0", "ZeroDivisionError: division by zero"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("import json\njson.loads('{')", "json.decoder.JSONDecodeError: Expecting property name enclosed in double quotes"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("class E(Exception):\n  def __str__(self): raise E\nraise E", "E: <exception str() failed>"),
        ("def f(n): return f(n + 1)\nf(0)", "RecursionError: maximum recursion depth exceeded"),
        ("try: 1/0\nexcept Exception as e: raise ValueError('x') from e", "ValueError: x"),
        ("raise ExceptionGroup('g', [KeyError(1)])", "KeyError: 1"),
        ("class R:\n  def __repr__(self): 1/0\nR()", "ZeroDivisionError"),
    ],
)
def test_python_tells_an_exception_shortly_and_without_the_machines_paths(either, code, last):
    session = either.python()
    turn = session.run(code)
    assert (turn.status, turn.code, turn.alive) == ("exited", 1, True)
    assert last in turn.text
    assert "python_driver" not in turn.text
    assert "/lib/python" not in turn.text
    assert 'File "<string>"' not in turn.text
    assert len(turn.text) < 3000
    assert session.run("'well'").output == b"'well'\n"


def test_python_shows_the_line_of_a_piece_of_code(either):
    session = either.python()
    session.run("def f():\n    return 1 / 0")
    assert "return 1 / 0" in session.run("f()").text


def test_a_runaway_is_interrupted_and_the_state_kept(either):
    session = either.python()
    session.run("x = 1")
    turn = session.run("print('begun')\nwhile True: pass", timeout_s=0.3)
    assert (turn.status, turn.code, turn.alive) == ("timeout", None, True)
    assert turn.text.startswith("begun\n")
    assert "KeyboardInterrupt" in turn.text
    assert "stopped after 0.3 s; the session goes on" in turn.text
    assert session.run("x").output == b"1\n"


def test_a_runaway_that_will_not_be_interrupted_is_killed_and_the_state_lost(either):
    session = either.python()
    session.run("x = 1")
    turn = session.run("import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass", timeout_s=0.3)
    assert (turn.status, turn.alive) == ("timeout", False)
    assert "its state is lost, and the next call starts a new session" in turn.text
    assert "NameError" in session.run("x").text


def test_a_shell_keeps_folder_variables_and_functions(either):
    session = either.shell()
    assert session.run('mkdir -p a && cd a && X=5; export Y=6; f() { echo "f $1"; }').output == b""
    turn = session.run("basename $PWD; echo $X; f 2; sh -c 'echo $Y'; false")
    assert turn.output == b"a\n5\nf 2\n6\n"
    assert (turn.status, turn.code) == ("exited", 1)
    assert session.run("cat <<'END'\nline $X\nEND").output == b"line $X\n"


@pytest.mark.parametrize(("command", "code"), [("exit 3", 3), ("set -e; false", 1), ("exec false", 1), ("kill -9 $$", 9)])
def test_a_shell_that_ends_begins_anew(either, command, code):
    session = either.shell()
    turn = session.run(f"X=1; {command}")
    assert turn.code == code
    assert not turn.alive
    assert "state is lost" in turn.reason
    assert session.run("echo [$X]").output == b"[]\n"


@pytest.mark.parametrize("command", ["if", "echo 'open", "((", "$(", "case x in"])
def test_a_shells_syntax_error_is_an_answer(either, command):
    session = either.shell()
    turn = session.run(command)
    assert turn.alive
    assert turn.code != 0
    assert session.run("echo well").output == b"well\n"


@pytest.mark.parametrize(("before", "command"), [("sleep 100 & X=1", "sleep 60"), ("X=1", "sleep 100 & sleep 60")])
def test_a_command_that_takes_too_long_is_ended_and_the_background_spared(either, before, command):
    session = either.shell()
    session.run(before)
    turn = session.run(command, timeout_s=0.3)
    assert (turn.status, turn.alive) == ("timeout", True)
    assert session.run("echo $X; jobs -r | wc -l").output == b"1\n1\n"


DIES_SLOWLY = """
import os, time
for n in range(20):
    if os.fork() == 0:
        try: time.sleep(30)
        finally:
            time.sleep(0.05 * n)
            print("last words", flush=True)
time.sleep(30)
"""


def test_a_run_that_ignores_interruptions_can_still_interrupt(either):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as for a process in the background of a script
    try:
        session = either.shell()
        turn = session.run("sleep 100 & sleep 60", timeout_s=0.3)
        assert (turn.status, turn.alive) == ("timeout", True)
        assert session.run("jobs -r | wc -l").output == b"1\n"
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupted_command_says_nothing_in_the_next_one(sandbox):
    session = sandbox.shell()
    turn = session.run(f"X=1; python3 -c '{DIES_SLOWLY}'", timeout_s=0.5)
    assert (turn.status, turn.alive) == ("timeout", True)
    assert session.run("echo $X; sleep 0.5").output == b"1\n"


def test_a_session_survives_an_interruption_of_its_first_call(either):
    for _ in range(5):  # the interpreter itself began after the call did, and is none of what the call started
        session = either.shell()
        turn = session.run("sleep 60", timeout_s=0.3)
        assert (turn.status, turn.alive) == ("timeout", True)
        assert session.run("echo well").output == b"well\n"


def test_a_zero_byte_is_no_command(either):
    turn = either.shell().run("echo a\0b")
    assert turn.code == 2
    assert b"zero byte" in turn.output


def test_code_of_any_size_arrives(either):
    text = "x" * 300_000
    assert either.python().run(f"len('{text}')").output == b"300000\n"
    assert either.shell().run(f"X={text}; echo ${{#X}}").output == b"300000\n"


def test_what_a_background_job_prints_comes_with_the_next_call(either):
    session = either.shell()
    assert session.run("(sleep 0.05; echo late) & echo now").output == b"now\n"
    assert session.run("sleep 0.3; echo then").output == b"late\nthen\n"
