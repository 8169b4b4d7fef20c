"""The process that talks to the Hugging Face Hub: `python -m agentrl.hub_process FOLDER REPO VISIBILITY TOKEN_ENV MESSAGE RESULT`.

A process of its own, because the Hub's client waits without a deadline; it can be killed, and a run goes on without it. The token is read
from the environment and appears in nothing that is written.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentrl import lifeline

if TYPE_CHECKING:
    from collections.abc import Iterator

ENVIRONMENT = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
"""What the process is given beside its parent's own variables."""


def main(arguments: list[str]) -> None:
    """Push, and write what came of it to the last argument, as `agentrl.hub` reads it."""
    lifeline.die_with_parent()
    folder, repo, visibility, token_env, message, result = arguments
    outcome = push(Path(folder), repo, private=visibility == "private", token=token_of(token_env), message=message)
    draft = Path(f"{result}.draft")
    draft.write_text(json.dumps(outcome))
    draft.rename(result)


def token_of(variable: str, environ: dict[str, str] | os._Environ[str] = os.environ) -> str | None:
    """The token in a variable; where that is the Hub's own, also the one that `hf auth login` keeps. None where there is none."""
    token = environ.get(variable, "").strip()
    if token or variable != "HF_TOKEN":
        return token or None
    from huggingface_hub import get_token

    return get_token()


def push(folder: Path, repo: str, *, private: bool, token: str | None, message: str) -> dict[str, Any]:
    """Make the repository where there is none and commit the folder's files; the outcome as JSON.

    A repository that is public, where a private one is wanted, is given nothing.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name="agentrl")
    try:
        url = api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.repo_info(repo).private:
            return {"kind": "public", "said": ""}
        done = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    except Exception as error:  # somebody else's client and server: each failure is told, none is ours to mend
        return failure(error, token)
    return {"kind": "done", "url": str(url), "commit": done.oid}


def failure(error: BaseException, token: str | None) -> dict[str, Any]:
    """What went wrong: its kind, the HTTP status where there was one, and the client's own words without the token."""
    chain = list(_chain(error))
    status = next((one.response.status_code for one in chain if getattr(one, "response", None) is not None), None)  # type: ignore[attr-defined]
    names = " ".join(type(one).__name__ for one in chain)
    if status is not None:
        kind = "http"
    elif "OfflineMode" in names:
        kind = "offline"
    elif any(word in names for word in ("Timeout", "Connect", "Network", "Protocol", "ReadError", "WriteError")):
        kind = "network"
    else:
        kind = "other"
    said = "; ".join(dict.fromkeys(f"{type(one).__name__}: {' '.join(str(one).split())}" for one in chain))
    return {"kind": kind, "status": status, "said": redacted(said, token)[:600]}


def redacted(text: str, token: str | None) -> str:
    """The text with the token taken out."""
    return text.replace(token, "(token)") if token else text


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from."""
    seen: set[int] = set()
    now: BaseException | None = error
    while now is not None and id(now) not in seen:
        seen.add(id(now))
        yield now
        now = now.__cause__ or now.__context__


if __name__ == "__main__":
    main(sys.argv[1:])
