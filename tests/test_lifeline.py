from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from agentrl.lifeline import ORPHANED_STATUS

ROOT = Path(__file__).parents[1]


def test_a_process_ends_when_the_other_end_of_its_lifeline_closes():
    watched, held = os.pipe()
    script = f"from agentrl import lifeline; lifeline.watch({watched}).join()"
    with subprocess.Popen([sys.executable, "-c", script], pass_fds=[watched], cwd=ROOT) as child:
        os.close(watched)
        assert child.poll() is None
        os.close(held)
        assert child.wait(10) == ORPHANED_STATUS


def test_a_child_whose_parent_is_already_another_ends_at_once():
    script = "from agentrl import lifeline; lifeline.die_with_parent(1)"
    status = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode
    assert status == (ORPHANED_STATUS if sys.platform == "linux" else 0)
