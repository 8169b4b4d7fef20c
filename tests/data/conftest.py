"""Modules that several of these tests share are found in this folder."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
