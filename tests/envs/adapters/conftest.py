"""Lets the tests of this folder import `adapter_plays`, and the fakes of the tests of rollouts."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent / "rollout")]
