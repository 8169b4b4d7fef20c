from __future__ import annotations

import pytest
import torch

from agentrl.errors import WorkerDied
from agentrl.lost_rank import told_in_one_line

GLOO = (
    "[../gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:6375. This is typically caused by a remote worker crashing."
)
NCCL = "NCCL error in: ProcessGroupNCCL.cpp:1, remote process exited or there was a network error\nncclRemoteError: A call failed"


@pytest.mark.parametrize("error", [RuntimeError(GLOO), torch.distributed.DistBackendError(NCCL)])
def test_a_peer_that_is_gone_is_told_in_one_line(error):
    with pytest.raises(WorkerDied, match=r"^rank 0 ends because another learner process ended$"), told_in_one_line():
        raise error


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("Connection closed by peer")])
def test_a_rank_s_own_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as caught, told_in_one_line():
        raise error
    assert caught.value is error
