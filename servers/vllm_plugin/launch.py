"""vLLM's HTTP server, started by its module: the command `vllm` refuses to run from the CPU package, whose name is not `vllm`.

`python -m agentrl.servers.vllm_plugin.launch VLLM_ARGUMENTS... PARENT`, with the parent's process id last.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading

from agentrl import lifeline

STOP_FD = "AGENTRL_STOP_FD"
"""Environment variable with the number of an inherited pipe: when its other end closes, vLLM is to end in its own way."""


def main() -> None:
    """Run the server with the arguments of the command line."""
    lifeline.die_with_parent(int(sys.argv.pop()))
    if asked := os.environ.pop(STOP_FD, ""):
        os.set_inheritable(int(asked), False)
        threading.Thread(target=_terminate_when_closed, args=(int(asked),), name="stop", daemon=True).start()
    try:
        from vllm.entrypoints.launchers.api_server.entry import main as serve
    except ImportError:
        runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
    else:
        serve()


def _terminate_when_closed(descriptor: int) -> None:
    while os.read(descriptor, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
