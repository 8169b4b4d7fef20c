"""An Env of its own with a user who is a program, in the API of verifiers 0.4."""

import verifiers.v1 as vf

__all__ = ["DialogEnv", "DialogTaskset"]


class DialogData(vf.TaskData):
    secret: int


class DialogTask(vf.Task[DialogData, vf.State, vf.TaskConfig]):
    @vf.reward
    async def found(self, task: DialogData, trace: vf.Trace) -> float:
        return float(trace.last_reply == str(task.secret))


class DialogTaskset(vf.Taskset[DialogTask, vf.TasksetConfig]):
    def load(self):
        for secret in range(3, 6):
            yield DialogTask(DialogData(prompt="Guess a number.", secret=secret), self.config.task)


class DialogConfig(vf.EnvConfig):
    player: vf.AgentConfig = vf.AgentConfig()


class DialogEnv(vf.Env[DialogConfig]):
    async def run(self, task, agents):
        async with agents.player.interaction(task) as interaction:
            segment = await interaction.turn()
            for _ in range(3):
                if segment.terminated or segment.last_reply == str(task.data.secret):
                    break
                hint = "higher" if int(segment.last_reply) < task.data.secret else "lower"
                segment = await interaction.turn(hint)
        interaction.trace.record_metric("guesses", float(interaction.trace.num_turns))
