"""Texts on disk by the hash of what was asked, for several processes and machines at once: one file a text, put there in one step."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any


def default_folder(name: str) -> Path:
    """Where caches lie: below `XDG_CACHE_HOME`, or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "agentrl" / name


class AnswerCache:
    """A folder of answers. One that cannot be read or written costs an answer's price, and nothing else."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, question: Any) -> str | None:
        """The answer to an equal question (JSON values); None where there is none."""
        digest = _digest(question)
        try:
            kept = json.loads(self._path(digest).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        answer = kept.get("answer") if isinstance(kept, dict) and kept.get("digest") == digest else None
        return answer if isinstance(answer, str) else None

    def keep(self, question: Any, answer: str) -> None:
        """Keep an answer; where another process was faster, the last one stays."""
        digest = _digest(question)
        path = self._path(digest)
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            number, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
            try:
                with open(number, "w", encoding="ascii") as file:
                    json.dump({"digest": digest, "answer": answer}, file)
                os.replace(temporary, path)
            except BaseException:
                os.unlink(temporary)
                raise

    def _path(self, digest: str) -> Path:
        return self._folder / digest[:2] / f"{digest[2:]}.json"


def _digest(question: Any) -> str:
    return hashlib.blake2b(json.dumps(question, sort_keys=True).encode(), digest_size=20).hexdigest()
