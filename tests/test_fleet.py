from __future__ import annotations

import socket

import pytest

from agentrl import wire
from agentrl.buffer import Dispatch
from agentrl.dispatch import Play, Ready, Setup, ToRollout
from agentrl.errors import AgentRLError, ConfigError, WorkerDied
from agentrl.fleet import Fleet, Member
from agentrl.records import SamplingContract, Task, Version


class FakeChild:
    """A process of no consequence."""

    name = "rollout process 0"

    def __init__(self):
        self.stopped = False

    def stop(self):
        self.stopped = True

    def describe_end(self):
        return "it ended"


def make_fleet(next_group, failures, played=lambda group: None, **options):
    return Fleet(
        Setup(config={}, environment="e", tokenizer="t", engine_socket="s", log_folder="l"),
        size=1,
        logs=None,
        contract=SamplingContract(),
        seed=0,
        group_size=2,
        next_group=next_group,
        on_played=played,
        on_lost=lambda index: None,
        on_failure=failures.append,
        **options,
    )


def add_member(fleet):
    ours, theirs = socket.socketpair()
    member = Member(child=FakeChild(), sock=ours)
    fleet._members[0] = member
    return member, theirs


def raising(error):
    def next_group():
        raise error

    return next_group


def test_a_task_that_cannot_be_had_ends_the_run_and_not_the_thread():
    failures: list[AgentRLError] = []
    error = ConfigError("row 3 is no JSON object")
    fleet = make_fleet(raising(error), failures)
    member, theirs = add_member(fleet)
    member.ready = True
    with theirs, member.sock:
        fleet.pump()
    assert failures == [error]


def test_a_bug_in_the_listening_thread_ends_the_run():
    failures: list[AgentRLError] = []
    fleet = make_fleet(raising(KeyError("bug")), failures)
    member, theirs = add_member(fleet)
    with theirs, member.sock:
        wire.send(theirs, Ready(context_length=8))
        with pytest.raises(KeyError):
            fleet._supervise(0, member)
    assert [type(failure) for failure in failures] == [WorkerDied]
    assert "KeyError: 'bug'" in str(failures[0])


def test_a_process_that_dies_before_it_is_ready_is_not_started_again():
    failures: list[AgentRLError] = []
    fleet = make_fleet(lambda: None, failures)
    member, theirs = add_member(fleet)
    theirs.close()
    fleet._supervise(0, member)
    assert member.child.stopped
    assert [str(failure) for failure in failures] == ["it ended; it was restarted 0 times"]


def test_groups_go_to_a_process_that_is_ready():
    dispatches = [Dispatch(index=7, task=Task.from_row("e", {"prompt": "x"}), version=Version(step=2))]
    fleet = make_fleet(lambda: dispatches.pop() if dispatches else None, [])
    member, theirs = add_member(fleet)
    with theirs, member.sock:
        fleet.pump()
        assert not member.groups, "nobody is ready"
        member.ready = True
        fleet.pump()
        play = wire.Receiver(theirs, ToRollout).receive()
    assert isinstance(play, Play)
    assert (play.index, play.group_size, play.dispatched.step) == (7, 2, 2)
    assert member.groups == {7}


@pytest.mark.parametrize(
    ("options", "sent"),
    [({}, (None, False)), ({"rival": SamplingContract(policy="reference"), "judged": True}, (SamplingContract(policy="reference"), True))],
)
def test_every_group_is_sent_with_its_rival_and_whether_it_is_judged(options, sent):
    dispatches = [Dispatch(index=index, task=Task.from_row("e", {"prompt": "x"}), version=Version()) for index in range(2)]
    fleet = make_fleet(lambda: dispatches.pop() if dispatches else None, [], **options)
    member, theirs = add_member(fleet)
    member.ready = True
    with theirs, member.sock:
        fleet.pump()
        receiver = wire.Receiver(theirs, ToRollout)
        plays = [receiver.receive(), receiver.receive()]
    assert [(play.rival, play.judged) for play in plays] == [sent, sent]
