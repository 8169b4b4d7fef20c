"""A TCP proxy that can hold back what the server sends, or cut every connection."""

from __future__ import annotations

import contextlib
import socket
import threading


class CutProxy:
    """Listens at `url`; a context manager."""

    def __init__(self, port):
        self._backend = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._flows = threading.Event()
        self._flows.set()
        self.accepted = 0

    def __enter__(self):
        self._start(self._accept)
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.release()
        self.cut()
        for thread in self._threads:
            thread.join()
        for one in self._sockets:
            one.close()

    def hold(self):
        """Keep back what the server sends from now on."""
        self._flows.clear()

    def release(self):
        """Let it through, what was kept back first."""
        self._flows.set()

    def cut(self):
        """End every connection."""
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _start(self, target, *args):
        self._threads.append(threading.Thread(target=target, args=args, daemon=True))
        self._threads[-1].start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.accepted += 1
                self._sockets.append(client)
                server = socket.create_connection(self._backend)
                self._sockets.append(server)
                self._start(self._pump, client, server, False)
                self._start(self._pump, server, client, True)

    def _pump(self, source, target, held):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if held:
                    self._flows.wait()
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)
