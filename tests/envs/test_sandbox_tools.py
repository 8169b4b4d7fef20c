import pytest

from agentrl.envs.sandbox_tools import MOST_LISTED, TOOLS, SandboxTools
from agentrl.errors import ConfigError
from agentrl.rollout.tools import describe_tool
from agentrl.servers.sandbox import SandboxUnavailable, open_sandbox


@pytest.fixture
def tools():
    with open_sandbox() as sandbox:
        yield SandboxTools(sandbox, timeout_s=60.0)


def test_every_tool_has_a_schema_with_words(tools):
    for name, tool in zip(TOOLS, tools.choose(), strict=True):
        function = describe_tool(name, tool).schema["function"]
        assert function["name"] == name
        assert function["description"]
        assert all(value["description"] for value in function["parameters"]["properties"].values())


def test_tools_are_chosen_by_name(tools):
    assert [tool.__name__ for tool in tools.choose("read_file", "run_python")] == ["read_file", "run_python"]
    with pytest.raises(ConfigError, match="there are run_python"):
        tools.choose("delete_everything")


def test_python_and_shell_share_the_folder_and_keep_their_state(tools):
    assert tools.run_python("x = 2\nopen('f', 'w').write('a\\n')") == "2"
    assert tools.run_python("x ** 2") == "4"
    assert tools.run_shell("cat f; Y=3") == "a"
    assert tools.run_shell("echo $Y; exit_code() { return 4; }; exit_code") == "3\n[exit status 4]"
    assert tools.run_shell("true") == "(no output)"


def test_what_goes_wrong_is_text_for_the_model(tools):
    assert "ZeroDivisionError" in tools.run_python("1/0")
    tools._timeout_s = 1.0  # of what never ends alone: the start of an interpreter may take longer
    assert "stopped after 1 s; the session goes on" in tools.run_python("while True: pass")
    tools._timeout_s = 60.0
    assert "state is lost" in tools.run_shell("exit 3")
    assert tools.read_file("missing") == "error: missing: there is no such file"
    assert tools.write_file("../x", "y").startswith("error: '../x' holds `..`")
    assert tools.list_files("missing").startswith("error:")
    assert tools.edit_file("missing", "a", "b").startswith("error:")


def test_files_are_written_read_listed_and_edited(tools):
    assert tools.list_files() == "(empty)"
    assert tools.write_file("a/b.py", "x = 1\ny = 1\n") == "wrote 12 bytes to a/b.py"
    assert tools.read_file("/sandbox/a/b.py") == "x = 1\ny = 1\n"
    assert tools.list_files() == "a/\na/b.py"
    assert tools.edit_file("a/b.py", "y = 1", "y = 2") == "wrote 12 bytes to a/b.py"
    assert tools.read_file("a/b.py") == "x = 1\ny = 2\n"


@pytest.mark.parametrize(("old", "count"), [("=", 2), ("z", 0), ("", 0)])
def test_an_edit_must_say_which_place_it_means(tools, old, count):
    tools.write_file("f", "x = 1\ny = 1\n")
    assert f"occurs {count} times" in tools.edit_file("f", old, "!")
    assert tools.read_file("f") == "x = 1\ny = 1\n"


def test_bytes_that_are_no_text_do_no_harm(tools):
    tools.run_shell("printf '\\xff\\x00' > f")
    assert tools.read_file("f") == "\ufffd\0"
    assert tools.edit_file("f", "a", "b") == "error: f is no text in UTF-8"
    assert tools.run_shell("cat f") == "\ufffd\0"
    assert tools.write_file("g", "\ud800").startswith("wrote")


def test_a_long_listing_is_cut(tools):
    tools.run_shell(f"seq {MOST_LISTED + 5} | xargs touch")
    assert tools.list_files().endswith("\n... and 5 more")


def test_a_sandbox_that_fails_is_no_text(tools):
    tools._sandbox.close()
    with pytest.raises(SandboxUnavailable):
        tools.run_python("1")
