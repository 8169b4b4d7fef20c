import pytest

from agentrl.envs.adapters import import_extra
from agentrl.errors import ConfigError


def test_a_library_that_is_there_is_imported():
    assert import_extra("json.decoder", "whatever").JSONDecoder


def test_a_missing_library_comes_with_its_cure():
    with pytest.raises(ConfigError, match=r'not_there is not installed in this Python; install it with: pip install "agentrl\[extra\]"'):
        import_extra("not_there.inner", "extra")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import not_there_either", "half is installed, but lacks 'not_there_either'"),
        ("raise RuntimeError('no licence')", "half is installed and does not import: RuntimeError: no licence"),
        ("import sys; sys.exit(3)", "half is installed and does not import: SystemExit: 3"),
    ],
)
def test_a_broken_library_is_not_called_missing(tmp_path, monkeypatch, code, said):
    (tmp_path / "half.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=said):
        import_extra("half", "extra")
