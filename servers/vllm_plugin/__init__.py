"""What agentrl adds to vLLM's processes: a weight-transfer backend named `agentrl`, an extension of the worker, and a guard of all routes.

vLLM finds `register` by its entry point and calls it in each of its processes, in an environment that has torch and safetensors
but not all that agentrl needs. So nothing here imports more than those, vLLM itself and `agentrl.transfer_format`.
"""

from __future__ import annotations

import logging

BACKEND = "agentrl"
"""Name of the weight-transfer backend, as `--weight-transfer-config` takes it."""
_TRANSFER = "agentrl.servers.vllm_plugin.transfer"


def register() -> None:
    """Make the backend known to vLLM (entry point `vllm.general_plugins`); may be called again."""
    try:
        from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

        WeightTransferEngineFactory.register_engine(BACKEND, _TRANSFER, "TransferEngine")
    except (ImportError, AttributeError, TypeError) as error:
        logging.getLogger("vllm.agentrl").warning(
            "agentrl's weight-transfer backend is off: this vLLM has no WeightTransferEngineFactory as 0.32 and 0.33 have it (%s)", error
        )
    except ValueError:
        pass  # registered before, in this very process
