import dataclasses

import pytest

from agentrl.errors import AgentRLError, ConfigError, EnvironmentFailure
from agentrl.servers.sandbox import Limits, Outcome, SandboxFileError, SandboxUnavailable, Turn
from agentrl.servers.sandbox.limits import as_unavailable


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Limits)])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "1", None, 10**12])
def test_a_limit_that_is_none_is_refused_by_name(field, value):
    with pytest.raises(ConfigError, match=f"{field} is"):
        Limits(**{field: value})


def test_an_unavailable_sandbox_is_a_failure_of_infrastructure_and_a_missing_file_is_not():
    assert issubclass(SandboxUnavailable, EnvironmentFailure)
    assert issubclass(SandboxFileError, AgentRLError)
    assert not issubclass(SandboxFileError, EnvironmentFailure)


def test_the_systems_refusals_become_unavailable():
    with pytest.raises(SandboxUnavailable, match=r"no folder: .*Too many open files"), as_unavailable("no folder"):
        raise OSError(24, "Too many open files")


@pytest.mark.parametrize(
    ("status", "code", "ok"), [("exited", 0, True), ("exited", 1, False), ("timeout", None, False), ("signalled", 9, False)]
)
def test_only_status_0_is_ok(status, code, ok):
    assert Outcome(status=status, code=code, stdout=b"", stderr=b"", seconds=0, reason="").ok is ok


@pytest.mark.parametrize(
    ("output", "reason", "text"),
    [(b"a\xff\n", "", "a\ufffd\n"), (b"a", "why", "a\n[why]"), (b"", "why", "[why]"), (b"a\n", "why", "a\n[why]")],
)
def test_a_turn_reads_as_text(output, reason, text):
    assert Turn(status="exited", code=0, output=output, seconds=0, reason=reason, alive=True).text == text
