from __future__ import annotations

import socket
import threading
from contextlib import contextmanager, suppress

import pytest

from agentrl.servers.env_server import connections as module
from agentrl.servers.env_server.connections import ConnectionFault, Connections

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Server:
    """Answers each connection's requests with what `script` gives for their numbers; None closes the connection."""

    def __init__(self, script):
        self.heads = []
        self.accepted = 0
        self._script = script
        self._sock = socket.create_server(("127.0.0.1", 0))
        self._open = []
        self.url = f"http://127.0.0.1:{self._sock.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self):
        threads = []
        while True:
            try:
                connection, _ = self._sock.accept()
            except OSError:
                break
            self.accepted += 1
            self._open.append(connection)
            threads.append(threading.Thread(target=self._serve, args=(connection,)))
            threads[-1].start()
        for thread in threads:
            thread.join()

    def _serve(self, connection):
        with connection:
            data = b""
            while True:
                while b"\r\n\r\n" not in data:
                    try:
                        part = connection.recv(1 << 16)
                    except OSError:
                        return
                    if not part:
                        return
                    data += part
                head, _, data = data.partition(b"\r\n\r\n")
                length = next((int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), 0)
                while len(data) < length:
                    data += connection.recv(1 << 16)
                data = data[length:]
                self.heads.append(head)
                answer = self._script(len(self.heads))
                if answer is None:
                    return
                connection.sendall(answer)

    def close(self):
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()


@contextmanager
def serving(script, **options):
    server = Server(script)
    connections = Connections(server.url, {"x-version": "1"}, **options)
    try:
        yield server, connections
    finally:
        connections.close()
        server.close()


def test_one_connection_carries_one_request_after_the_other():
    with serving(lambda number: OK) as (server, connections):
        for _ in range(20):
            answer = connections.request("POST", "/a", b"{}", 5.0)
            assert (answer.status, answer.body) == (200, b"ok")
        assert server.accepted == 1
        head = server.heads[-1].decode()
        assert head.startswith("POST /a HTTP/1.1\r\n")
        assert "x-version: 1" in head
        assert "content-type: application/json" in head


def test_threads_share_connections():
    barrier = threading.Barrier(8)

    def work(connections):
        barrier.wait()
        for _ in range(10):
            assert connections.request("GET", "/", None, 5.0).body == b"ok"

    with serving(lambda number: OK) as (server, connections):
        threads = [threading.Thread(target=work, args=(connections,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.accepted <= 8
        assert len(server.heads) == 80


def test_a_connection_that_was_closed_while_it_was_idle_says_nothing():
    """The server answers the first request of each connection and closes before the second."""
    with serving(lambda number: None if number in (2, 4) else OK) as (server, connections):
        for _ in range(3):
            assert connections.request("GET", "/", None, 5.0).body == b"ok"
        assert server.accepted == 3


def test_an_idle_connection_is_given_up_before_the_server_does():
    now = [100.0]
    with serving(lambda number: OK, clock=lambda: now[0]) as (server, connections):
        connections.request("GET", "/", None, 5.0)
        now[0] += module.IDLE_S + 1
        connections.request("GET", "/", None, 5.0)
        assert server.accepted == 2


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "closed the connection without an answer"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok", "no answer within 0.3 s"),
        (b"HTTP/1.1 200 OK\r\n", "no answer within 0.3 s"),
        (b"", "no answer within 0.3 s"),
        (b"SSH-2.0-OpenSSH\r\n", "SSH-2.0"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n" + b"x" * 2000, "longer than 1000 bytes"),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"200\r\n" + b"x" * 512 + b"\r\n200\r\n" + b"x" * 512,
            "longer than 1000",
        ),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "invalid literal|chunk|Incomplete"),
    ],
)
def test_whatever_goes_wrong_is_a_fault(answer, said):
    with serving(lambda number: answer, most_bytes=1000) as (_, connections), pytest.raises(ConnectionFault, match=said):
        connections.request("GET", "/", None, 0.3)


def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    with pytest.raises(ConnectionFault, match="refused"):
        Connections(f"http://127.0.0.1:{port}", {}).request("GET", "/", None, 5.0)


def test_a_server_says_when_to_come_again():
    head = "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nretry-after: {}\r\n\r\n"
    told = ["2", "0.5", "900", "-3", "nan", "Wed, 21 Oct 2015 07:28:00 GMT"]
    with serving(lambda number: head.format(told[number - 1]).encode()) as (_, connections):
        answers = [connections.request("GET", "/", None, 5.0) for _ in told]
    assert [answer.retry_after_s for answer in answers] == [2.0, 0.5, 60.0, None, None, None]


def test_a_server_below_a_path():
    with serving(lambda number: OK) as (server, _):
        connections = Connections(f"{server.url}/envs/one/", {})
        connections.request("GET", "/info", None, 5.0)
        connections.close()
        assert server.heads[0].startswith(b"GET /envs/one/info HTTP/1.1")


def test_an_answer_that_comes_too_late_is_nobodys():
    """The connection is dropped with it, and the next request does not hear what belongs to the one before."""
    released = threading.Event()

    def script(number):
        if number == 1:
            released.wait(30)
            return OK.replace(b"ok", b"no")
        released.set()
        return OK

    with serving(script) as (server, connections):
        with pytest.raises(ConnectionFault, match=r"no answer within 0\.2 s"):
            connections.request("GET", "/", None, 0.2)
        for _ in range(3):
            assert connections.request("GET", "/", None, 5.0).body == b"ok"
        assert server.accepted == 2
