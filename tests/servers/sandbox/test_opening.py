import pytest

from agentrl.errors import ConfigError
from agentrl.servers.sandbox import open_sandbox


@pytest.mark.parametrize("kind", ["subprocess", "unsafe", "", "docker", "BUBBLEWRAP", "ftp://x"])
def test_nothing_stands_in_for_a_kind_that_does_not_exist(kind):
    with pytest.raises(ConfigError, match="bubblewrap, unsafe-subprocess and http://HOST:PORT"):
        open_sandbox(kind)
