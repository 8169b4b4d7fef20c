import io
import threading

import pytest
from rich.console import Console

from agentrl.progress import PlainProgress, SilentProgress, TerminalProgress, default_progress
from agentrl.progress_panel import ASCII_BLOCKS, BLOCKS, clock_text, trend

METRICS = {
    "reward/mean": 0.5,
    "staleness/mean": 0.75,
    "staleness/max": 1,
    "tokens_per_s": 12345.6,
    "rollout/unscorable_share": 0.004,
    "time/step_s": 2.0,
    "time/wait_s": 0.5,
}


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def plain(steps, clock, **options):
    console = Console(file=io.StringIO(), width=40)
    return PlainProgress(steps, console=console, clock=clock, **options), console.file


def screen(steps, clock, *, encoding="utf-8"):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, force_terminal=True, color_system=None, width=100, height=20)
    progress = TerminalProgress(steps, console=console, clock=clock)

    def shown():
        with console.capture() as capture:
            console.print(progress._render())
        return capture.get()

    return progress, shown


def test_a_plain_line_holds_all_that_is_known_and_is_not_wrapped():
    progress, file = plain(10, Clock())
    with progress:
        progress.step({"step": 1, **METRICS})
    assert file.getvalue() == (
        "step 1/10  reward 0.500  staleness 0.8 (max 1)  tokens/s 12,346  unscorable 0.4%  waited 25% of 2.0 s  left 0:18\n"
    )


OFFLINE = {"loss": 1.25, "eval_loss": 1.5, "mean_token_accuracy": 0.625, "epoch": 0.5, "tokens_per_s": 2000.0, "time/step_s": 2.0}


def test_a_step_on_a_dataset_shows_its_loss_and_what_else_it_knows():
    progress, file = plain(0, Clock())
    with progress:
        progress.step({"step": 1, "steps": 10, **OFFLINE})
    assert file.getvalue() == ("step 1/10  loss 1.250  eval loss 1.500  token accuracy 62.5%  epoch 0.50  tokens/s 2,000  left 0:18\n")
    progress, file = plain(4, Clock())
    with progress:
        progress.step({"step": 1, "loss": 0.5, "rewards/accuracies": 0.75, "mean_token_accuracy": 0.5})
    assert file.getvalue() == "step 1/4  loss 0.500  accuracy 75.0%\n"


def test_the_panel_of_an_offline_run_draws_the_loss():
    progress, shown = screen(0, Clock())
    assert shown().startswith("step 0 ")  # nobody knows of how many
    for step, loss in ((1, 2.0), (2, 1.0)):
        progress.step({"step": step, "steps": 4, **OFFLINE, "loss": loss})
    lines = shown().splitlines()
    assert lines[0].startswith("step 2/4 ")
    assert lines[1].split() == ["loss", "1.000", BLOCKS[-1] + BLOCKS[0]]
    assert "eval loss 1.500" in lines[2]


def test_a_plain_line_leaves_out_what_was_not_told():
    progress, file = plain(2, Clock())
    with progress:
        progress.step({"step": 2})
    assert file.getvalue() == "step 2/2\n"


def test_plain_lines_come_once_a_second_and_the_last_step_always():
    clock = Clock()
    progress, file = plain(40, clock)
    with progress:
        for step in range(1, 41):
            progress.step({"step": step})
            clock.now += 0.125
    assert [line.split()[1] for line in file.getvalue().splitlines()] == ["1/40", "9/40", "17/40", "25/40", "33/40", "40/40"]


def test_a_step_held_back_is_printed_when_the_run_ends_early():
    progress, file = plain(40, Clock())
    with progress:
        progress.step({"step": 1})
        progress.step({"step": 2})
    assert [line.split()[1] for line in file.getvalue().splitlines()] == ["1/40", "2/40"]


def test_plain_waits_are_printed_before_the_first_step_only():
    clock = Clock()
    progress, file = plain(2, clock)
    with progress:
        for on in ("the engine", "the engine", "", "rollouts"):
            progress.waiting(on)
            clock.now += 1
        progress.step({"step": 2})
        clock.now += 1
        progress.waiting("a checkpoint")
    assert file.getvalue().splitlines() == ["waiting for the engine", "waiting for rollouts", "step 2/2"]


def test_plain_waits_come_once_a_second():
    clock = Clock()
    progress, file = plain(2, clock)
    with progress:
        for done in range(17):
            progress.waiting(f"{done} of 16 tasks")
            clock.now += 0.125
    assert file.getvalue().splitlines() == [f"waiting for {done} of 16 tasks" for done in (0, 8, 16)]


def test_a_message_is_printed_as_it_is():
    progress, file = plain(2, Clock())
    progress.message("[bold] is no markup, and a line longer than the console is wide stays one line")
    assert file.getvalue() == "[bold] is no markup, and a line longer than the console is wide stays one line\n"


def test_the_total_can_be_told_late_and_steps_can_have_another_name():
    progress, file = plain(0, Clock(), noun="task")
    with progress:
        progress.step({"step": 5, "steps": 5})
    assert file.getvalue() == "task 5/5\n"


def test_time_left_counts_from_the_step_a_resumed_run_began_with():
    clock = Clock()
    progress, file = plain(100, clock)
    with progress:
        progress.step({"step": 91, "time/step_s": 2.0})
        clock.now += 2
        progress.step({"step": 92, "time/step_s": 2.0})
    assert [line.rpartition("left ")[2] for line in file.getvalue().splitlines()] == ["0:18", "0:16"]


def test_the_panel_shows_step_reward_trend_and_wait():
    clock = Clock()
    progress, shown = screen(4, clock)
    assert "step 0/4" in shown()
    assert "starting" in shown()
    for step in range(1, 4):
        progress.step({"step": step, **METRICS, "reward/mean": step / 4})
    progress.waiting("rollouts")
    clock.now += 65
    text = shown()
    assert "step 3/4" in text
    assert f"reward 0.750  {BLOCKS[0]}{BLOCKS[4]}{BLOCKS[7]}" in text
    assert "staleness 0.8 (max 1)  tokens/s 12,346  unscorable 0.4%" in text
    assert "waiting for rollouts 1:05" in text


def test_the_panel_keeps_its_height_while_waits_come_and_go():
    progress, shown = screen(4, Clock())
    progress.step({"step": 1, **METRICS})
    idle = shown()
    progress.waiting("rollouts")
    assert idle.count("\n") == shown().count("\n")


def test_the_panel_survives_a_terminal_without_unicode():
    progress, shown = screen(4, Clock(), encoding="ascii")
    for step in (1, 2):
        progress.step({"step": step, "reward/mean": step / 4})
    assert f"{ASCII_BLOCKS[0]}{ASCII_BLOCKS[-1]}" in shown()


def test_a_reward_that_is_not_finite_does_not_break_the_panel():
    progress, shown = screen(4, Clock())
    progress.step({"step": 1, "reward/mean": float("nan")})
    assert "reward nan" in shown()


def test_any_thread_may_tell():
    progress, shown = screen(200, Clock())
    threads = [threading.Thread(target=lambda: [progress.waiting(str(n)) or progress.step({}) for n in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "step 200/200" in shown()


@pytest.mark.parametrize(
    ("values", "marks"),
    [([], ""), ([3], "a"), ([2, 2, 2], "aaa"), ([0, 1], "ac"), ([0, 1, 2], "abc"), ([0, 0, 1, 1, 2, 2, 2, 2], "aabbcccc")],
)
def test_a_trend_is_scaled_from_lowest_to_highest(values, marks):
    assert trend(values, width=8, blocks="abc") == marks


def test_a_long_trend_is_averaged_down_to_its_width():
    assert trend(list(range(1000)), width=4, blocks="abcd") == "abcd"


def test_times_are_short():
    assert [clock_text(seconds) for seconds in (0, 59.6, 3599, 3600, 7205)] == ["0:00", "1:00", "59:59", "1:00:00", "2:00:05"]


def test_the_default_follows_the_terminal_and_the_rank():
    console = Console(file=io.StringIO(), force_terminal=True)
    piped = Console(file=io.StringIO(), force_terminal=False)
    assert isinstance(default_progress(3, console=console, environ={}), TerminalProgress)
    assert isinstance(default_progress(3, console=piped, environ={}), PlainProgress)
    assert isinstance(default_progress(3, console=console, environ={"RANK": "1", "WORLD_SIZE": "2"}), SilentProgress)
    assert isinstance(default_progress(3, console=piped, environ={"RANK": "1"}), PlainProgress), "left over from something else"


class Refusing(io.StringIO):
    """A file that takes nothing."""

    def __init__(self, error):
        super().__init__()
        self.error = error
        self.writes = 0

    def write(self, text):
        self.writes += 1
        raise self.error


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError(5, "Input/output error")])
def test_output_that_nobody_takes_does_not_end_a_run(error):
    file = Refusing(error)
    progress = default_progress(3, console=Console(file=file, force_terminal=False), environ={})
    progress.message("first")
    progress.step({"step": 1})
    assert file.writes == 1
