"""Places for programs that are not trusted: Bubblewrap on Linux, the same over HTTP, and an unsafe plain subprocess for who asks for it."""

from __future__ import annotations

from agentrl.servers.sandbox.limits import (
    INSIDE,
    Limits,
    Outcome,
    Sandbox,
    SandboxFileError,
    SandboxUnavailable,
    Session,
    Status,
    Turn,
)
from agentrl.servers.sandbox.opening import open_sandbox

__all__ = [
    "INSIDE",
    "Limits",
    "Outcome",
    "Sandbox",
    "SandboxFileError",
    "SandboxUnavailable",
    "Session",
    "Status",
    "Turn",
    "open_sandbox",
]
