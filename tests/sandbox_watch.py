"""What tests of sandboxes share: small limits, and eyes for what is left of one."""

import contextlib
import dataclasses
import os
import time
from pathlib import Path

from agentrl.servers.sandbox import Limits

LIMITS = Limits(cpu_s=5, wall_s=10, memory_mib=256, processes=24, file_mib=16, output_kib=64, open_files=128, folder_mib=32)


def inside(scratch):
    """Processes in a sandbox that stands on a scratch folder: the folder is among what they have mounted."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                text = Path("/proc", entry, "mountinfo").read_text()
                own = Path("/proc", entry, "ns/mnt").readlink() != Path("/proc/self/ns/mnt").readlink()
                if own and scratch.name in text:
                    found.append(int(entry))
    return found


def zombies(parent):
    """Children of a process that have ended and were not waited for."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
                if fields[0] == "Z" and int(fields[1]) == parent:
                    found.append(int(entry))
    return found


def limits(**changes):
    """`LIMITS`, but for these."""
    return dataclasses.replace(LIMITS, **changes)


def wait_until(holds, timeout_s=10.0):
    """Whether something that others do comes about in time."""
    deadline = time.monotonic() + timeout_s
    while not (found := holds()) and time.monotonic() < deadline:
        time.sleep(0.01)  # the kernel tells nobody else of the end of a process
    return found
