from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import torch
from safetensors.torch import load_file
from vllm_server_fake import ONE, SWAP, TWO, checksum, plain, servers, weights

from agentrl.engines.vllm_control import BROKEN
from agentrl.engines.vllm_probe import Probe
from agentrl.engines.vllm_transports.filesystem import FilesystemTransport
from agentrl.errors import ConfigError, PublishError
from agentrl.records import Version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from agentrl.engines.vllm_publisher import VllmPublisher


@pytest.mark.parametrize(
    ("options", "query", "after"),
    [
        ({"kv": "recompute"}, "mode=keep&clear_cache=true", []),
        ({"kv": "keep"}, "mode=keep&clear_cache=false", ["/reset_prefix_cache?reset_running_requests=false"]),
        ({"pause": "wait", "kv": "keep"}, "mode=wait&clear_cache=true", []),
    ],
    ids=["recompute", "keep", "wait"],
)
def test_the_order_of_an_update_and_what_becomes_of_the_cache(
    publisher: Callable[..., VllmPublisher], options: dict[str, Any], query: str, after: list[str]
) -> None:
    fleet = servers()
    one = publisher(fleet, **options)
    result = one.publish(weights(), Version(lineage=2, step=7), [ONE])
    [server] = fleet.servers
    assert server.calls == [f"/pause?{query}", *SWAP[1:], *after, "agentrl_received", "/weight_info", "/resume"]
    assert server.bodies["/finish_weight_update"] == {"weight_version": "2.7"}
    assert (result.served, result.failed, result.model) == ((ONE,), {}, "policy")
    assert result.checksum == checksum(weights()) == server.receipt.hexdigest()
    first = server.calls.copy()
    server.calls.clear()
    one.publish(weights(2.0), Version(lineage=2, step=8), [ONE])
    assert server.calls == [call for call in first if call != "agentrl_abort"]  # only what others may have begun is given up


def test_weights_are_collected_once_for_all_servers_and_old_files_go(publisher: Callable[..., VllmPublisher], tmp_path: Path) -> None:
    fleet, taken = servers(3), []

    def stream(scale: float) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights(scale):
            taken.append(name)
            yield name, tensor

    one = publisher(fleet)
    urls = [server.url for server in fleet.servers]
    for step in (1, 2):
        assert one.publish(stream(float(step)), Version(step=step), urls).served == tuple(urls)
    assert taken == ["embed.weight", "norm.weight"] * 2
    assert {server.receipt.hexdigest() for server in fleet.servers} == {checksum(weights(2.0))}
    assert [path.parent.name for path in tmp_path.rglob("*.safetensors")] == ["0.2"]
    one.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stage", [*SWAP[:1], *SWAP[2:], "agentrl_received", "/weight_info", "/resume"])
@pytest.mark.parametrize("how", [500, httpx.ReadTimeout("slow"), httpx.ConnectError("gone"), None, "garbage"], ids=str)
def test_a_server_that_fails_at_any_stage_does_not_count_and_is_resumed(
    publisher: Callable[..., VllmPublisher], stage: str, how: object
) -> None:
    fleet = servers(2)
    broken, whole = fleet.servers
    broken.answers[stage] = how
    one = publisher(fleet)
    result = one.publish(weights(), Version(step=1), [ONE, TWO])
    assert whole.version == "0.1"
    assert set(result.failed) == {ONE}
    assert result.served == (TWO,)
    if stage != "/resume":
        assert not broken.paused
        assert broken.calls[-1] == "/resume"
    if stage not in ("/pause", "/resume"):
        assert broken.version == BROKEN
        assert plain(broken.calls)[-4:] == ["/update_weight_version", "/abort_requests", "agentrl_abort", "/resume"]
    broken.answers.clear()
    assert one.bring_up_to_date(ONE).error == ""
    assert (broken.version, broken.receipt.hexdigest()) == ("0.1", checksum(weights()))


def test_other_bytes_than_were_sent_are_found(publisher: Callable[..., VllmPublisher]) -> None:
    fleet = servers(2)
    fleet.servers[0].answers["agentrl_received"] = {"results": [{"version": "0.1", "checksum": "0" * 64, "names": 2}]}
    result = publisher(fleet).publish(weights(), Version(step=1), [ONE, TWO])
    assert "loaded other weights than were sent" in result.failed[ONE]
    assert "names" in result.failed[ONE]


def test_no_server_at_all_is_an_error(publisher: Callable[..., VllmPublisher]) -> None:
    fleet = servers()
    one = publisher(fleet)
    with pytest.raises(PublishError, match=r"0\.3 reached no vLLM server: .*ConnectError: connection refused"):
        one.publish(weights(), Version(step=3), ["http://127.0.0.1:9"])
    with pytest.raises(PublishError, match="there is no server"):
        one.publish(weights(), Version(step=3), [])
    assert one.bring_up_to_date(ONE).error == ""  # what was collected is still there
    assert fleet.servers[0].version == "0.3"


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ([("embed.weight", torch.zeros(2, 3))], r"1 weights of the model were not sent: norm\.weight"),
        (weights(**{"lm_head.weight": torch.zeros(2, 3)}), r"'lm_head\.weight' of shape \(2, 3\) was sent; the model has it under no such"),
        (
            [("embed.weight", torch.zeros(3, 3)), ("norm.weight", torch.ones(3))],
            r"shape \(3, 3\) was sent; the model has it of shape \(2, 3\)",
        ),
        ([*weights(), ("norm.weight", torch.ones(3))], r"'norm\.weight' was sent twice"),
        ([("embed.weight", torch.zeros(2, 3, dtype=torch.complex64)), weights()[1]], "of type complex64, which cannot be sent"),
    ],
    ids=["missing", "extra", "shape", "twice", "type"],
)
def test_weights_that_do_not_fit_reach_no_server(
    publisher: Callable[..., VllmPublisher], sent: list[tuple[str, torch.Tensor]], message: str
) -> None:
    fleet = servers()
    one = publisher(fleet, expected={"embed.weight": (2, 3), "norm.weight": (3,)})
    with pytest.raises(PublishError, match=message):
        one.publish(sent, Version(step=1), [ONE])
    assert fleet.servers[0].calls == []
    assert "nothing was published" in one.bring_up_to_date(ONE).error


def test_the_first_publish_says_what_the_next_must_cover(publisher: Callable[..., VllmPublisher]) -> None:
    one = publisher(servers())
    one.publish(weights(), Version(step=1), [ONE])
    with pytest.raises(PublishError, match="were not sent"):
        one.publish(weights()[:1], Version(step=2), [ONE])


def test_tensors_travel_in_the_servers_type(publisher: Callable[..., VllmPublisher], tmp_path: Path) -> None:
    fleet = servers()
    one = publisher(fleet, transport=FilesystemTransport(str(tmp_path), dtype="bfloat16"))
    sent = weights(counts=torch.tensor([1, 2]))
    one.publish(sent, Version(step=1), [ONE])
    [path] = tmp_path.rglob("*.safetensors")
    got = load_file(path)
    assert {name: tensor.dtype for name, tensor in got.items()} == {
        "embed.weight": torch.bfloat16,
        "norm.weight": torch.bfloat16,
        "counts": torch.int64,
    }
    assert torch.equal(got["embed.weight"].float(), sent[0][1])


def test_a_probe_that_disagrees_disowns_the_server(publisher: Callable[..., VllmPublisher]) -> None:
    fleet = servers(2)
    fleet.servers[1].answers["/inference/v1/generate"] = {"prompt_logprobs": [None, {"7": {"logprob": -1.5}}]}
    probe = Probe(ids=(5, 7), logprobs=(-1.0,), tolerance=1e-3)
    result = publisher(fleet).publish(weights(), Version(step=1), [ONE, TWO], probe)
    assert result.served == (ONE,)
    assert "by up to 0.5 nats" in result.failed[TWO]
    assert fleet.servers[1].version == BROKEN


def test_a_folder_that_cannot_be_written_or_is_not_shared_is_refused(publisher: Callable[..., VllmPublisher], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"engine\.transfer_dir: cannot write to .*under the same path on both"):
        FilesystemTransport(str(tmp_path / "file"))
    fleet = servers(2)
    one = publisher(fleet)
    one.check([ONE, TWO])
    fleet.servers[1].answers["agentrl_reads"] = {"results": [{"text": "", "error": "No such file"}]}
    with pytest.raises(ConfigError, match=r":2 does not see the folder .*No such file.*engine\.transport=stream"):
        one.check([ONE, TWO])


def test_files_of_a_run_that_was_killed_go_with_the_next(tmp_path: Path) -> None:
    host = FilesystemTransport(str(tmp_path))
    name = host.folder.path.name.replace(f"-{os.getpid()}-", "-999999999-")
    (tmp_path / name).mkdir()
    other = FilesystemTransport(str(tmp_path))
    assert not (tmp_path / name).exists()
    assert host.folder.path.exists()
    host.close()
    other.close()
