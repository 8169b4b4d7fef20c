"""A real MCP server for tests, written with the `mcp` package: `mcp_server.py stdio` or `mcp_server.py http`, which prints its port."""

import base64
import os
import socket
import subprocess
import sys
import threading

import uvicorn
from mcp.server.mcpserver import Image, MCPServer
from pydantic import BaseModel

server = MCPServer("tests")
notes: list[str] = []
wire = os.dup(1)
"""The standard output before `mcp` takes it for itself."""


class Sum(BaseModel):
    total: int
    terms: list[int]


@server.tool()
def note(text: str) -> str:
    """Keep a note.

    Args:
        text: what to keep.
    """
    notes.append(text)
    print(f"a secret of the server: {text}", file=sys.stderr, flush=True)
    return "; ".join(notes)


@server.tool()
def add(terms: list[int], scale: int = 1) -> Sum:
    """Add numbers up."""
    return Sum(total=scale * sum(terms), terms=terms)


@server.tool()
def picture() -> Image:
    """A picture."""
    return Image(data=base64.b64decode("iVBORw0KGgo="), format="png")


@server.tool()
def fail() -> str:
    """Fail."""
    raise ValueError("the cupboard is empty")


@server.tool()
def hang() -> str:
    """Never answer."""
    threading.Event().wait()
    return ""


@server.tool()
def die() -> str:
    """End the server in the middle of a call."""
    os._exit(3)


@server.tool()
def pid() -> str:
    """Process ids of the server and of a child that it leaves behind."""
    child = subprocess.Popen(["sleep", "600"])
    return f"{os.getpid()} {child.pid}"


@server.tool()
def variable(name: str) -> str:
    """An environment variable of the server."""
    return os.environ.get(name, "(none)")


@server.tool()
def long(size: int) -> str:
    """A long text."""
    return "x" * size


@server.tool()
def junk(lines: int, size: int) -> str:
    """Lines on the standard output that are no JSON-RPC."""
    for _ in range(lines):
        os.write(wire, b"-" * size + b"\n")
    return "done"


@server.tool()
def flood(stderr: bool = False) -> str:
    """A line without an end."""
    while True:
        os.write(2 if stderr else wire, b"-" * 65536)


if __name__ == "__main__":
    if sys.argv[1] == "stdio":
        server.run("stdio")
    else:
        listener = socket.create_server(("127.0.0.1", 0))
        print(listener.getsockname()[1], flush=True)  # from now on connections wait
        uvicorn.Server(uvicorn.Config(server.streamable_http_app(), log_level="error")).run(sockets=[listener])
