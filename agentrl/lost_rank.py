"""The end of another learner process, as the processes that trained with it see it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from agentrl.errors import WorkerDied
from agentrl.processes import launched_rank

if TYPE_CHECKING:
    from collections.abc import Iterator

SIGNS = ("connection closed by", "connection reset by", "broken pipe", "remote process exited", "communicator was aborted")
"""What gloo and NCCL say of a peer that is gone; torch raises it as RuntimeError, alone or in a subclass."""


@contextlib.contextmanager
def told_in_one_line() -> Iterator[None]:
    """Raise `WorkerDied` for a collective that failed because its peer is gone: that one says why, and a traceback here would hide it."""
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error).lower() for sign in SIGNS):
            raise
        raise WorkerDied(f"rank {launched_rank()} ends because another learner process ended") from error
