import typer
from typer.testing import CliRunner

from agentrl.cli_env_server import add_to
from agentrl.servers.env_server.serve import Options, options_from_flags
from agentrl.servers.env_server.sessions import Limits


def flags_of(*arguments):
    calls = []
    app = typer.Typer()
    app.callback()(lambda: None)
    add_to(app, lambda **flags: calls.append(flags))
    result = CliRunner().invoke(app, ["serve-env", *arguments])
    assert result.exit_code == 0, result.output
    return calls[0]


def test_flags_left_out_take_the_defaults():
    assert options_from_flags(**flags_of("lookup")) == Options(spec="lookup")


def test_each_flag_reaches_what_it_is_for(tmp_path):
    flags = flags_of(
        *("lookup?items=1", "--host", "0.0.0.0", "--port", "0", "--workers", "3", "--max-sessions", "4", "--idle-timeout", "5.5"),
        *(
            "--tool-timeout",
            "6",
            "--score-timeout",
            "7",
            "--max-body-mib",
            "8",
            "--import",
            "a",
            "--import",
            "b.py",
            "--logs",
            str(tmp_path),
        ),
    )
    assert options_from_flags(**flags) == Options(
        spec="lookup?items=1",
        imports=("a", "b.py"),
        host="0.0.0.0",
        port=0,
        workers=3,
        tool_timeout_s=6.0,
        score_timeout_s=7.0,
        limits=Limits(max_sessions=4, idle_s=5.5),
        most_body_mib=8,
        logs=tmp_path,
    )
