"""Agent programs as environments, loaded by path in worker processes."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

from agentrl.envs.agent_program import AgentProgram

AGENT = """
import json, os, urllib.request

task = json.loads(os.environ["AGENTRL_TASK"])

def chat(messages):
    body = json.dumps({"model": "gpt-4o", "messages": messages, "temperature": 0.1}).encode()
    headers = {"authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "content-type": "application/json"}
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body, headers)
    return json.load(urllib.request.urlopen(request))["choices"][0]["message"]

messages = [{"role": "user", "content": task["prompt"]}]
for turn in range(task.get("turns", 2)):
    messages.append(chat(messages))
    messages.append({"role": "user", "content": "more"})
open("answer.txt", "w").write(messages[-2]["content"])
print("done with", len(messages), "messages", sorted(name for name in os.environ if "SECRET" in name))
"""


class Program(AgentProgram):
    """The program above; its file is scored."""

    command = (sys.executable, "-c", AGENT)

    def score(self, episode: Any) -> Any:
        answer = self.folder / "answer.txt"
        return {"said": float(answer.exists() and answer.read_text() == "bye"), "printed": float("done with 5 messages []" in self.output)}


class Broken(Program):
    """Ends with a status of its own."""

    command = (sys.executable, "-c", "print('oh no'); raise SystemExit(3)")


class Hanging(Program):
    """Starts a process, writes the ids of both to the row's `told`, and never ends."""

    command = (
        sys.executable,
        "-c",
        "import json, os, subprocess, time\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "with open(json.loads(os.environ['AGENTRL_TASK'])['told'], 'w') as told:\n"
        "    told.write(f'{os.getpid()} {child.pid}')\n"
        "time.sleep(600)",
    )


class Leaving(Program):
    """Prints a lot, leaves two processes behind that hold its output open, one of them out of its group, and ends."""

    command = (
        sys.executable,
        "-c",
        "import os, subprocess\n"
        "for away in (False, True):\n"
        "    child = subprocess.Popen(['sleep', '601'], start_new_session=away)\n"
        "print(child.pid)\n"
        "print('x' * (3 << 20))",
    )

    def score(self, episode: Any) -> Any:
        os.kill(int(self.output.split()[0]), signal.SIGKILL)
        return {"said": float(len(self.output))}


class Blocking(Program):
    """Uses its folder, and then does not even let itself be cancelled."""

    async def agent(self, task: Any, endpoint: Any) -> None:
        (self.folder / "kept.txt").write_text("x")
        with open(task.row["told"], "w") as told:  # noqa: ASYNC230 - it blocks anyway
            told.write(str(self.folder))
        threading.Event().wait()
