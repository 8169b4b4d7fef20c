"""What a worker holds."""

import os
import socket
import subprocess
import sys
from dataclasses import replace

import trio

from agentrl.env_kit.footprint import Footprint, footprint, measurable, settled

NOTHING = Footprint(processes=0, threads=0, descriptors=0, sockets=0, files=0, memory_mib=0)
HOLDS = """
import os, socket, subprocess, sys, threading
kept = [socket.socket(), open(os.devnull)]
threading.Thread(target=threading.Event().wait, daemon=True).start()
child = subprocess.Popen(["sleep", "60"])
print("ready", flush=True)
sys.stdin.read()
child.kill()
child.wait()
os._exit(0)
"""


def test_everything_that_a_process_holds_is_counted(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ready\n"
        with socket.socket():
            ours = footprint(os.getpid(), tmp_path)
        process.stdin.close()
    assert measurable()
    assert (ours.processes, ours.threads, ours.sockets, ours.files) == (2, 2, 1, 2)
    assert ours.descriptors == 5
    assert ours.memory_mib > 1


def test_memory_is_nothing_to_be_left():
    assert replace(NOTHING, processes=2, memory_mib=9).beyond(replace(NOTHING, files=1)) == {"processes": 2}


def measured(*sizes, target=None):
    left = list(sizes)
    return trio.run(settled, lambda: left.pop(0) if len(left) > 1 else left[0], target)


def test_settling_waits_for_what_is_still_there():
    one, two = replace(NOTHING, files=1), replace(NOTHING, files=2)
    assert measured(two, two, one, target=one) == one
    assert measured(two, one, one) == one
