"""Servers that join and leave while a run goes on: a text file in the run folder with a URL on each line, read whenever it has changed."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from agentrl.config_engine import EngineConfig
from agentrl.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agentrl.engines.vllm_servers import VllmServers

FILE = "servers.txt"
LOOK_S = 2.0
"""Between two looks at the file."""


class ServerList:
    """Follows the file from a thread of its own until `close`.

    Args:
        path: of the file, which need not exist.
        servers: are told who joins and who leaves. A server of the run file leaves only where the file had named it too.
        say: is told what is wrong with a line.
        look_s: seconds between two looks.
    """

    def __init__(self, path: Path, servers: VllmServers, *, say: Callable[[str], None], look_s: float = LOOK_S) -> None:
        self._path, self._servers, self._say, self._look_s = path, servers, say, look_s
        self._text = ""
        self._named: set[str] = set()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="vllm-list", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look no more."""
        self._closing.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._closing.wait(self._look_s):
            try:
                text = self._path.read_text()
            except OSError:  # there is none, as in most runs
                continue
            if text != self._text:
                self._text = text
                self._take(text)

    def _take(self, text: str) -> None:
        lines = [line.partition("#")[0].strip() for line in text.splitlines()]
        try:
            named = set(EngineConfig(kind="vllm", servers=[line for line in lines if line]).servers)
        except (ConfigError, ValueError) as error:
            self._say(f"{self._path} is not taken: {error}")
            return
        for url in sorted(named - self._named):
            self._servers.join(url)
        for url in sorted(self._named - named):
            self._servers.leave(url)
        self._named = named
