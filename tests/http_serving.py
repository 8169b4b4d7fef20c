"""An HTTP server in a thread of the test's own process."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import trio

from agentrl.servers.http_server import listen, listening_socket, url_of


@contextmanager
def serving(app, *, beside=None):
    """Serve an application on a free port while the block lasts; gives the URL.

    `beside` is an async function that runs on the server's loop meanwhile.
    """
    ready, ends = threading.Event(), []

    async def main(sock):
        async with trio.open_nursery() as nursery:
            token = trio.lowlevel.current_trio_token()
            ends.append(lambda: token.run_sync_soon(nursery.cancel_scope.cancel))
            if beside is not None:
                nursery.start_soon(beside)
            await nursery.start(listen, app, sock)
            ready.set()

    with listening_socket("127.0.0.1", 0) as sock:
        thread = threading.Thread(target=trio.run, args=(main, sock))
        thread.start()
        try:
            assert ready.wait(30)
            yield url_of("127.0.0.1", sock)
        finally:
            ends[0]()
            thread.join(30)
            assert not thread.is_alive()
