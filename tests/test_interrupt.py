from __future__ import annotations

import os
import signal

import pytest

from agentrl.interrupt import Abandoned, Interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_breaks_off_a_wait_and_the_second_everything(number):
    interrupt = Interrupt()
    found = signal.signal(number, signal.SIG_DFL)  # under nohup SIGHUP is ignored, and stays so
    before = signal.getsignal(number)
    with interrupt.installed():
        with pytest.raises(KeyboardInterrupt) as first, interrupt.waiting():
            os.kill(os.getpid(), number)
        assert not isinstance(first.value, Abandoned)
        with pytest.raises(Abandoned):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
    signal.signal(number, found)


def test_a_signal_during_work_takes_effect_at_the_next_wait():
    interrupt = Interrupt()
    with interrupt.installed():
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt), interrupt.waiting():
            raise AssertionError("it must not begin")
