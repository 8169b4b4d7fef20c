from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys

import pytest
from http_serving import serving
from hub_stand_in import TOKEN, HubStandIn, environment

from agentrl import hub
from agentrl.config_data import HubConfig
from agentrl.errors import ConfigError, PushFailed
from agentrl.hub_process import failure, redacted, token_of

FILES = {
    "README.md": b"---\nlibrary_name: transformers\n---\n# A model\n",
    "config.json": b"{}",
    "model.safetensors": bytes(range(256)) * 500,
    "adapter/adapter_model.safetensors": b"adapter" * 100,
    "empty.txt": b"",
}


@pytest.fixture
def model(tmp_path):
    for name, content in FILES.items():
        path = tmp_path / "run" / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "run" / "model"


@contextlib.contextmanager
def pushing(model, stand_in, *, token=TOKEN, private=True, timeout_s=60.0, repo="me/mine"):
    """What `push` needs, aimed at a stand-in."""
    with serving(stand_in.app()) as url:

        def push():
            return hub.push(
                model,
                repo,
                private=private,
                message="step 7",
                log=model.parent / "logs" / "push.log",
                token_env="A_TOKEN",
                timeout_s=timeout_s,
                environment=environment(url, token=token),
            )

        yield push


def test_files_arrive_byte_for_byte(model):
    stand_in = HubStandIn()
    with pushing(model, stand_in) as push:
        done = push()
        assert done.url.endswith("/me/mine")
        assert stand_in.repos["me/mine"] == FILES
        assert stand_in.private == {"me/mine": True}
        assert stand_in.messages == ["step 7"]
        assert f"/objects/{next(iter(stand_in.objects))}" in str(stand_in.seen)  # large files took the way of large files
        (model / "config.json").write_bytes(b'{"changed": true}')
        again = push()  # the repository is there already
    assert stand_in.repos["me/mine"] == FILES | {"config.json": b'{"changed": true}'}
    assert again.url == done.url
    written = [path.read_bytes() for path in model.parent.rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in content for content in written)


@pytest.mark.parametrize(
    ("refuse", "kind", "said"),
    [
        ({"repos/create": 401}, ConfigError, r"the Hub does not know the token in A_TOKEN; make a new one"),
        ({"repos/create": 403, "models": 403}, ConfigError, r"the token in A_TOKEN may not write there; give it write access to me"),
        ({"commit": 409}, PushFailed, r"somebody else changed the repository at the same time; push again"),
        ({"commit": 412}, PushFailed, r"somebody else changed the repository at the same time; push again"),
        ({"repos/create": 500}, PushFailed, r"the Hub fails at the moment, status 500; push again later"),
        ({"commit": 404}, ConfigError, r"the Hub refuses the request"),
    ],
)
def test_what_the_hub_refuses_is_told_with_its_cure(model, refuse, kind, said):
    stand_in = HubStandIn(refuse=refuse)
    with pushing(model, stand_in) as push, pytest.raises(kind, match=rf"me/mine was not pushed: {said}") as raised:
        push()
    assert TOKEN not in str(raised.value)
    assert not stand_in.repos.get("me/mine")


def test_a_wrong_token_is_refused_and_appears_nowhere(model):
    with (
        pushing(model, HubStandIn(), token="hf_wrong_secret") as push,
        pytest.raises(ConfigError, match="does not know the token") as raised,
    ):
        push()
    written = b"".join(path.read_bytes() for path in model.parent.rglob("*") if path.is_file()) + str(raised.value).encode()
    assert b"hf_wrong_secret" not in written


def test_a_public_repository_is_given_nothing_where_a_private_one_is_wanted(model):
    stand_in = HubStandIn(repos={"me/mine": {}}, private={"me/mine": False})
    with pushing(model, stand_in) as push, pytest.raises(ConfigError, match=r"is public, and a private one was asked for"):
        push()
    assert stand_in.repos == {"me/mine": {}}
    with pushing(model, stand_in, private=False) as push:
        push()
    assert stand_in.repos["me/mine"] == FILES


def test_a_hub_that_does_not_answer_is_given_up(model):
    with pushing(model, HubStandIn(hangs=True), timeout_s=3.0) as push, pytest.raises(PushFailed, match=r"did not take me/mine within 3 s"):
        push()


def test_a_hub_that_is_not_there_is_told(model):
    surroundings = environment("http://127.0.0.1:9")
    with pytest.raises(PushFailed, match="the Hub cannot be reached; look at the network and at HF_ENDPOINT"):
        hub.push(model, "me/mine", private=True, message="m", log=model.parent / "push.log", token_env="A_TOKEN", environment=surroundings)


def test_what_cannot_work_is_refused_before_a_run_begins():
    surroundings = {"A_TOKEN": TOKEN}
    hub.check_can_push(HubConfig(repo="me/mine", token_env="A_TOKEN"), surroundings)
    for repo in ("mine", "me/mine/again", "me/mi ne", "", "https://huggingface.co/me/mine"):
        with pytest.raises(ConfigError, match=r"a repository is owner/name"):
            hub.check_can_push(HubConfig(repo=repo, token_env="A_TOKEN"), surroundings)
    with pytest.raises(ConfigError, match=r"no token for the Hub: the environment variable OTHER is empty; make one"):
        hub.check_can_push(HubConfig(repo="me/mine", token_env="OTHER"), surroundings)
    with pytest.raises(ConfigError, match=r"HF_HUB_OFFLINE keeps every process from the Hub"):
        hub.check_can_push(HubConfig(repo="me/mine", token_env="A_TOKEN"), surroundings | {"HF_HUB_OFFLINE": "1"})


def test_a_run_pushes_as_it_goes_and_survives_every_failure(model):
    said = []
    stand_in = HubStandIn()
    with serving(stand_in.app()) as url:
        config = HubConfig(repo="me/mine", token_env="A_TOKEN", timeout_s=60)
        pusher = hub.Pusher(config, model.parent, said.append, environment(url))
        assert not pusher.is_busy(2)
        pusher.start(model, 2)
        pusher.finish(model, 3)
        assert stand_in.messages == ["agentrl: step 2", "agentrl: step 3"]
        stand_in.refuse = {"commit": 500}
        pusher.finish(model, 4)
        pusher.close()
    assert [line.split()[1] for line in said[:2]] == ["2", "3"]
    assert "status 500" in said[2]
    assert f"agentrl push {model.parent} --repo me/mine" in said[2]


def test_weights_that_were_pushed_on_the_way_are_removed(model):
    drafts = model.parent / "push"
    drafts.mkdir()
    for step in (2, 4):
        shutil.copytree(model, drafts / f"step-{step:06d}")
    stand_in = HubStandIn()
    with serving(stand_in.app()) as url:
        pusher = hub.Pusher(HubConfig(repo="me/mine", token_env="A_TOKEN", every=2), model.parent, print, environment(url))
        pusher.start(drafts / "step-000002", 2)
        pusher.start(drafts / "step-000004", 4)  # the other goes on: this one is left out
        pusher.finish(model, 5)
        assert stand_in.messages == ["agentrl: step 2", "agentrl: step 5"]
        assert not list(drafts.iterdir())
        assert model.is_dir()
        pusher.close()
    assert not drafts.exists()


def test_a_push_that_still_goes_on_is_not_begun_again(model):
    said = []
    with serving(HubStandIn(hangs=True).app()) as url:
        pusher = hub.Pusher(HubConfig(repo="me/mine", token_env="A_TOKEN", every=1), model.parent, said.append, environment(url))
        pusher.start(model, 1)
        assert pusher.is_busy(2)
        assert pusher.is_busy(3)
        pusher.close()
        assert not pusher.is_busy(4)
    assert said == ["the push of step 1 goes on: that of step 2 is left out, and so are later ones until it ends"]


def test_the_command_pushes_a_run(model):
    (model.parent / "config.yaml").write_text("model: quickstart\nenv: arithmetic\n")
    stand_in = HubStandIn()

    def command(*arguments):
        own = {**os.environ, **environment(url)}
        line = [sys.executable, "-m", "agentrl", "push", *arguments]
        return subprocess.run(line, env=own, capture_output=True, text=True, timeout=120, check=False)

    with serving(stand_in.app()) as url:
        done = command(str(model.parent), "--repo", "me/mine", "--token-env", "A_TOKEN", "--message", "by hand")
        assert done.returncode == 0, done.stderr
        assert f"{url}/me/mine (commit " in done.stdout
        assert stand_in.messages == ["by hand"]
        assert stand_in.repos["me/mine"]["model.safetensors"] == FILES["model.safetensors"]
        nowhere = command(str(model.parent), "--token-env", "A_TOKEN")
        assert nowhere.returncode == 2
        assert "no repository: give --repo OWNER/NAME" in nowhere.stderr
        empty = command(str(model.parent / "logs"), "--repo", "me/mine")
        assert empty.returncode == 2
        assert "is neither a run folder" in empty.stderr


def test_the_token_is_taken_out_of_whatever_is_told():
    error = RuntimeError(f"sent {TOKEN} to the server")
    assert failure(error, TOKEN)["said"] == "RuntimeError: sent (token) to the server"
    assert redacted("nothing to hide", None) == "nothing to hide"
    assert token_of("A_TOKEN", {"A_TOKEN": f" {TOKEN}\n"}) == TOKEN
    assert token_of("A_TOKEN", {}) is None
