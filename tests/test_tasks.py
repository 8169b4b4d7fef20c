from __future__ import annotations

import pytest

from agentrl.errors import ConfigError
from agentrl.tasks import TaskSource


@pytest.mark.parametrize("count", [1, 2, 10, 16, 129])
def test_every_task_comes_once_an_epoch_in_an_order_of_the_seed(count):
    rows = [{"prompt": str(number)} for number in range(count)]
    source = TaskSource("env", rows, seed=3)
    epochs = [[source.task(epoch * count + place).row["prompt"] for place in range(count)] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch, key=int) == [row["prompt"] for row in rows]
    if count > 2:
        assert epochs[0] != epochs[1]
    again = TaskSource("env", rows, seed=3)
    assert again.task(2 * count).row["prompt"] == epochs[2][0], "a place needs no earlier place"


def test_no_tasks_is_an_error_that_names_the_environment():
    with pytest.raises(ConfigError, match="'env' gave no training tasks"):
        TaskSource("env", [], seed=0)


def test_a_row_that_is_no_json_is_named():
    with pytest.raises(ConfigError, match="row 0 is not a JSON object"):
        TaskSource("env", [{"prompt": object()}], seed=0).task(0)
