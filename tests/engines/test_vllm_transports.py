from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from vllm_server_fake import ONE, SWAP, TWO, checksum, plain, servers, weights

from agentrl.engines.vllm_control import BROKEN
from agentrl.engines.vllm_transports.lora import LoraTransport
from agentrl.engines.vllm_transports.nccl import NcclTransport
from agentrl.engines.vllm_transports.stream import Sender, StreamTransport, address_towards, is_local
from agentrl.errors import ConfigError
from agentrl.records import Version
from agentrl.transfer_format import Receipt, receive_tensors, send_header

if TYPE_CHECKING:
    from collections.abc import Callable

    from agentrl.engines.vllm_publisher import VllmPublisher


def test_a_local_server_maps_the_memory_itself(publisher: Callable[..., VllmPublisher]) -> None:
    fleet = servers()
    fleet.servers[0].answers["agentrl_received"] = {"results": [{"version": "0.1", "checksum": checksum(weights()), "names": 2}]}
    publisher(fleet, transport=StreamTransport()).publish(weights(), Version(step=1), [ONE])
    info = fleet.servers[0].bodies["/update_weights"]["update_info"]
    assert (info["kind"], info["version"]) == ("shm", "0.1")
    start = info["layout"][0][3]
    assert info["layout"] == [["embed.weight", "float32", [2, 3], start], ["norm.weight", "float32", [3], start + 24]]


def test_memory_is_written_over_and_holds_the_new_version_alone(publisher: Callable[..., VllmPublisher]) -> None:
    """Pages that are there already need not be made again; a smaller version leaves nothing of the larger one."""
    transport = StreamTransport()
    large = [("a", torch.ones(1000)), ("b", torch.full((7,), 2.0))]
    small = [("a", torch.full((3,), 5.0)), ("b", torch.full((2, 2), 6.0))]
    first = transport.collect(large, Version(step=1))
    [before] = first.paths
    inode = before.stat().st_ino
    second = transport.collect(small, Version(step=2))
    [after] = second.paths
    try:
        assert after.stat().st_ino == inode
        assert not before.exists()
        assert checksum(small) == second.checksum
        found = load_file(after)
        assert {name: tensor.tolist() for name, tensor in found.items()} == {name: tensor.tolist() for name, tensor in small}
    finally:
        transport.close()


def test_another_machine_is_sent_the_weights_over_tcp(publisher: Callable[..., VllmPublisher]) -> None:
    fleet = servers()
    [server] = fleet.servers
    server.answers["/get_world_size"] = {"world_size": 2}

    def receive(body: dict[str, Any]) -> None:
        info = body["update_info"]
        with socket.create_connection((info["host"], info["port"]), timeout=60) as stranger:
            send_header(stranger, {"token": "guess"})
            assert stranger.recv(1) == b""
        with ThreadPoolExecutor(2) as workers:
            receipts = list(workers.map(lambda rank: take(info, rank), range(2)))
        assert receipts[0].hexdigest() == receipts[1].hexdigest()
        server.receipt = receipts[0]

    def take(info: dict[str, Any], rank: int) -> Receipt:
        receipt = Receipt()
        with socket.create_connection((info["host"], info["port"]), timeout=60) as peer:
            send_header(peer, {"token": info["token"], "rank": rank, "world_size": 2})
            for name, tensor in receive_tensors(peer):
                receipt.add(name, tensor)
        return receipt

    server.on_update_weights = receive  # type: ignore[method-assign]
    result = publisher(fleet, transport=StreamTransport(remote=[ONE])).publish(weights(), Version(step=1), [ONE])
    assert result.failed == {}
    assert server.receipt.hexdigest() == checksum(weights())


def test_a_sender_ends_with_its_update_even_when_nobody_came() -> None:
    with Sender((), "127.0.0.1", workers=1, timeout_s=60) as sender:
        address = sender.address
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(address, timeout=5)


def test_this_machine_is_known_by_its_addresses() -> None:
    assert is_local("http://127.0.0.1:8000")
    assert is_local("http://localhost:8000")
    assert not is_local("http://192.0.2.1:8000")
    assert address_towards("http://127.0.0.1:8000") == "127.0.0.1"


CONFIG = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
ADAPTER = [("base_model.model.q_proj.lora_A.weight", torch.ones(2, 3)), ("base_model.model.q_proj.lora_B.weight", torch.zeros(3, 2))]


def test_adapters_have_a_name_for_each_version_and_stop_nothing(publisher: Callable[..., VllmPublisher], tmp_path: Path) -> None:
    fleet = servers(2)
    one = publisher(fleet, transport=LoraTransport(CONFIG, ADAPTER, parent=str(tmp_path), max_loras=3), partial=True)
    for step in range(1, 15):
        result = one.publish(ADAPTER, Version(step=step), [ONE, TWO])
        assert (result.model, result.served) == (f"policy@0.{step}", (ONE, TWO))
    for server in fleet.servers:
        assert list(server.adapters) == ["policy@0.12", "policy@0.13", "policy@0.14"]
        assert not {"/pause", "/start_weight_update"} & set(server.calls)
        assert len(set(server.adapters.values())) == 3
    kept = sorted(int(path.name.rpartition(".")[2]) for path in tmp_path.glob("*/policy@*"))
    assert kept == list(range(4, 15))  # files outlive their names
    saved = load_file(Path(fleet.servers[0].adapters["policy@0.14"]) / "adapter_model.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in ADAPTER)


def test_a_restarted_server_is_given_the_newest_adapter(publisher: Callable[..., VllmPublisher], tmp_path: Path) -> None:
    fleet = servers(2)
    fleet.servers[0].answers["/v1/load_lora_adapter"] = 500
    one = publisher(fleet, transport=LoraTransport(CONFIG, ADAPTER, parent=str(tmp_path)), partial=True)
    assert set(one.publish(ADAPTER, Version(step=1), [ONE, TWO]).failed) == {ONE}
    fleet.servers[0].answers.clear()
    assert one.bring_up_to_date(ONE).error == ""
    assert list(fleet.servers[0].adapters) == ["policy@0.1"]
    assert one.bring_up_to_date(ONE).error == ""  # it has it already
    assert fleet.servers[0].calls.count("/v1/load_lora_adapter") == 2


@pytest.mark.parametrize(
    ("answer", "cure"),
    [(404, "--enable-lora --max-lora-rank 2 and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"), (500, "--enable-lora")],
)
def test_a_server_that_takes_no_adapter_is_refused(publisher: Callable[..., VllmPublisher], tmp_path: Path, answer: int, cure: str) -> None:
    fleet = servers()
    one = publisher(fleet, transport=LoraTransport(CONFIG, ADAPTER, parent=str(tmp_path)))
    one.check([ONE])
    assert fleet.servers[0].adapters == {}
    fleet.servers[0].answers["/v1/load_lora_adapter"] = answer
    with pytest.raises(ConfigError, match=cure):
        one.check([ONE])
    assert [path.name for path in tmp_path.glob("*/policy*")] == []


class Group:
    """The learner's end of a group, where the only other end is a list."""

    def __init__(self, sent: list[torch.Tensor], fails: bool = False) -> None:
        self.sent = sent
        self.fails = fails
        self.closed = False

    def broadcast(self, tensor: torch.Tensor) -> None:
        self.sent.append(tensor)

    def finish(self) -> None:
        if self.fails:
            raise RuntimeError("NCCL error: unhandled system error")

    def close(self) -> None:
        self.closed = True


def test_nccl_drives_the_same_routes_with_a_group_for_each_server(publisher: Callable[..., VllmPublisher]) -> None:
    fleet, groups = servers(2), []

    def join(address: str, port: int, size: int) -> Group:
        groups.append((address, size, Group([])))
        return groups[-1][2]

    one = publisher(fleet, transport=NcclTransport(join=join, dtype="bfloat16"))
    one.check([ONE, TWO])
    for step in (1, 2):
        assert one.publish(weights(), Version(step=step), [ONE, TWO]).failed == {}
    assert [(address, size) for address, size, _ in groups] == [("127.0.0.1", 2)] * 2
    assert [len(group.sent) for _, _, group in groups] == [4, 4]
    for server in fleet.servers:
        swap = plain(server.calls)
        first, second = [*SWAP, "/reset_prefix_cache", "/weight_info", "/resume"], [SWAP[0], *SWAP[2:]]
        assert swap[-15:] == [*first, *second, *first[-3:]]
        init = server.bodies["/init_weight_transfer_engine"]["init_info"]
        assert (init["rank_offset"], init["world_size"], init["packed"]) == (1, 2, False)
        assert server.bodies["/update_weights"]["update_info"] == {
            "names": ["embed.weight", "norm.weight"],
            "dtype_names": ["bfloat16", "bfloat16"],
            "shapes": [[2, 3], [3]],
        }


def test_a_server_that_breaks_its_group_gets_a_new_one(publisher: Callable[..., VllmPublisher]) -> None:
    fleet = servers(2)
    made: list[Group] = []

    def join(address: str, port: int, size: int) -> Group:
        made.append(Group([], fails=not made))
        return made[-1]

    one = publisher(fleet, transport=NcclTransport(join=join))
    one.check([ONE, TWO])
    result = one.publish(weights(), Version(step=1), [ONE, TWO])
    assert "NCCL error" in result.failed[ONE]
    assert made[0].closed
    assert fleet.servers[0].version == BROKEN
    assert one.bring_up_to_date(ONE).error == ""
    assert len(made) == 3
    assert len(made[2].sent) == 2


def test_nccl_without_vllm_says_what_to_install() -> None:
    fleet = servers()
    with pytest.raises(ConfigError, match=r"agentrl\[vllm\]"):
        NcclTransport().check(fleet.control(ONE))
