import random
import threading

import numpy as np
import pytest

from agentrl.envs.adapters.global_random import Dice


def draw(dice):
    with dice.held():
        return random.random(), float(np.random.random())


def test_a_stream_goes_on_whatever_others_draw():
    alone = Dice(7)
    expected = [draw(alone) for _ in range(3)]
    one, other = Dice(7), Dice(8)
    seen = []
    for _ in range(3):
        draw(other)
        random.random()
        np.random.random()
        seen.append(draw(one))
    assert seen == expected
    assert draw(Dice(8)) != expected[0]


def test_the_others_stream_is_put_back_even_after_an_error():
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()
    with pytest.raises(KeyError), Dice(2).held():
        raise KeyError(random.random(), np.random.random())
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_threads_do_not_share_a_stream():
    alone = Dice(3)
    expected = [draw(alone) for _ in range(200)]
    drawn = {}

    def work(name):
        dice = Dice(3)
        drawn[name] = [draw(dice) for _ in range(200)]

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(drawn[name] == expected for name in range(4))
