"""What agentrl can ask of a vLLM worker beside vLLM's own routes, through `/collective_rpc`."""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import Any

MARKER = "agentrl-marker-"
"""Start of the names of files that `agentrl_reads` reads."""
MARKER_BYTES = 64


class WorkerExtension:
    """Mixed into vLLM's worker by `--worker-extension-cls`; a name must not be one that the worker has."""

    def agentrl_received(self: Any) -> dict[str, Any]:
        """Version, checksum and number of names of the last finished update; empty where another backend moves the weights."""
        received = getattr(self.weight_transfer_engine, "received", None)
        return received() if received else {"version": "", "checksum": "", "names": 0}

    def agentrl_abort(self: Any) -> None:
        """Give up an update that was started and not finished, whoever started it; does nothing where none is open.

        Layers that were already complete keep what they got: the server must be sent a whole update before it serves again.
        """
        from vllm.config import set_current_vllm_config

        from agentrl.servers.vllm_plugin import layers

        engine = self.weight_transfer_engine
        if engine is None:
            return
        with contextlib.suppress(Exception):
            self.update_weights({"kind": "abort"})  # no backend knows it, and after any failure the worker counts the update as over
        with set_current_vllm_config(self.vllm_config):
            layers.abandon(engine.model, engine.model_config)

    def agentrl_model(self: Any) -> dict[str, Any]:
        """The configuration of the model's text part, as JSON values."""
        config = self.vllm_config.model_config.hf_text_config.to_dict()
        model: dict[str, Any] = json.loads(json.dumps(config, default=str))
        return model

    def agentrl_reads(self: Any, path: str) -> dict[str, str]:
        """The text of a marker file, so that a learner sees whether it shares the folder; only files of that name are read."""
        if not os.path.basename(path).startswith(MARKER):
            return {"text": "", "error": f"{path} is no marker file"}
        try:
            with open(path, "rb") as file:
                return {"text": file.read(MARKER_BYTES).decode(errors="replace"), "error": ""}
        except OSError as error:
            return {"text": "", "error": str(error)}

    def agentrl_lease(self: Any, owner: str, seconds: str) -> dict[str, Any]:
        """Take or renew the right to set this server's weights; granted where no other run holds it. `"0"` seconds give it back.

        Returns: `granted`, the `owner` who holds it now, and for how long, `left_s`.
        """
        now = time.monotonic()
        holder, until = getattr(self, "_agentrl_lease", ("", 0.0))
        if until > now and holder != owner:
            return {"granted": False, "owner": holder, "left_s": until - now}
        self._agentrl_lease = (owner, now + float(seconds))
        return {"granted": True, "owner": owner, "left_s": float(seconds)}
