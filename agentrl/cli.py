"""The `agentrl` command: reads the command line, calls the library, and turns its outcome into words and an exit status.

Exit status: 0 done, 1 the run failed, 2 the configuration is wrong, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.metadata
import json
import math
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agentrl import cli_data, cli_env_server, cli_env_test, cli_grade, cli_hub, cli_merge, cli_reward, cli_sandbox
from agentrl.errors import AgentRLError, ConfigError

if TYPE_CHECKING:
    from agentrl.config import RunConfig
    from agentrl.evaluation import EvalResult
    from agentrl.run_folder import RunResult

FAILED, WRONG_CONFIG, INTERRUPTED = 1, 2, 130
SHOWN_TASKS = 2
"""Tasks of each split that `env show` prints."""

RunFile = Annotated[Path | None, typer.Argument(metavar="RUN.yaml", help="The run file.", show_default=False)]
Env = Annotated[
    str | None,
    typer.Option(metavar="SPEC", help="The environment: NAME?arg=value, file.py:Name or package.module:Name.", show_default=False),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the run file; can be repeated.", show_default=False),
]
Imports = Annotated[
    list[str] | None,
    typer.Option("--import", metavar="FILE", help="A file or module that registers objectives; can be repeated.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _option(declared: str, metavar: str, text: str) -> Any:
    return typer.Option(declared, metavar=metavar, help=text, show_default=False)


def make_app(train: Callable[..., RunResult], evaluate: Callable[..., EvalResult], serve: Callable[..., None] | None = None) -> typer.Typer:
    """Build the command from what it calls: `agentrl.run.train`, `agentrl.evaluation.evaluate`, and what starts a server from flags."""
    app = typer.Typer(
        help="Train language models by reinforcement learning from environments.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.command("train", short_help="Train a model.")(_train_command(train))
    app.command("eval", short_help="Score a model on an environment.")(_eval_command(evaluate))
    app.command("serve", short_help="Start a vLLM server to generate with.")(_serve_command(serve or _serve))
    cli_env_server.add_to(app)
    cli_sandbox.add_to(app)
    cli_reward.add_to(app)
    cli_hub.add_to(app)
    cli_merge.add_to(app)
    app.add_typer(_environments(), name="env")
    cli_grade.add_to(app)
    cli_data.add_to(app)
    app.add_typer(_objectives(), name="objectives")
    app.command("version")(version)
    return app


def _train_command(train: Callable[..., RunResult]) -> Callable[..., None]:
    def command(
        run: RunFile = None,
        env: Env = None,
        model: Annotated[
            str | None, typer.Option(metavar="MODEL", help="A folder, a Hub name, or `quickstart`.", show_default=False)
        ] = None,
        objective: Annotated[str | None, typer.Option(metavar="NAME", help="The objective, such as grpo.", show_default=False)] = None,
        dataset: Annotated[
            str | None, typer.Option(metavar="FILE", help="Rows to train on: a file, a folder or a Hub name.", show_default=False)
        ] = None,
        on_bad_row: Annotated[
            str | None, typer.Option(metavar="error|skip", help="What a wrong row of the dataset does.", show_default=False)
        ] = None,
        overrides: Overrides = None,
        output: Annotated[Path | None, typer.Option(metavar="DIR", help="The run folder.  [default: runs/...]", show_default=False)] = None,
        resume: Annotated[Path | None, typer.Option(metavar="RUNDIR", help="Go on with an earlier run.", show_default=False)] = None,
        print_config: Annotated[bool, typer.Option("--print-config", help="Print the resolved configuration and stop.")] = False,
    ) -> None:
        """Train a model, from a run file, from flags, or on from where a run stopped.

        \b
        agentrl train examples/quickstart.yaml --set learner.lr=1e-4
        agentrl train --env arithmetic --model quickstart --objective grpo
        agentrl train --resume runs/RUN
        """  # noqa: D301  # \b keeps the lines apart
        with exit_status():
            flags = {"env": env, "model": model, "objective": objective, "dataset": dataset, "output": output}
            overrides = [*(overrides or []), *([] if on_bad_row is None else [f"data.on_bad_row={on_bad_row}"])]
            config = _config_to_resume(resume, run, flags, overrides) if resume else _config(run, overrides, flags)
            if print_config:
                from agentrl import runfile

                typer.echo(runfile.dump(config), nl=False)
                return
            from agentrl.progress import default_progress

            with default_progress(config.steps or 0) as progress:  # an offline run learns it from its data
                result = train(config, resume=resume, progress=progress)
            if result.interrupted:
                raise typer.Exit(INTERRUPTED)

    return command


def _eval_command(evaluate: Callable[..., EvalResult]) -> Callable[..., None]:
    def command(
        run: RunFile = None,
        model: Annotated[
            str | None, typer.Option(metavar="DIR", help="The model to score.  [default: the run file's]", show_default=False)
        ] = None,
        env: Env = None,
        num_tasks: Annotated[
            int | None,
            typer.Option(metavar="N", min=1, help="Score the first so many evaluation tasks.  [default: all]", show_default=False),
        ] = None,
        samples: Annotated[int, typer.Option(metavar="N", min=1, help="Rollouts of each task, for pass@k.")] = 1,
        seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of the samples.")] = 0,
        temperature: Annotated[
            float | None, typer.Option(metavar="T", min=0, help="0 is greedy.  [default: sampling.temperature]", show_default=False)
        ] = None,
        overrides: Overrides = None,
        output: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep the rollouts here.", show_default=False)] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    ) -> None:
        """Score a model on an environment's evaluation tasks: mean reward and pass@k, with intervals.

        \b
        agentrl eval examples/quickstart.yaml --model runs/RUN/model --num-tasks 200
        agentrl eval --env countdown --model quickstart --samples 8 --json
        """  # noqa: D301  # \b keeps the lines apart
        with exit_status():
            config = _config(run, overrides, {"env": env, "model": model})
            from rich.console import Console

            from agentrl.progress import default_progress

            with default_progress(num_tasks or 0, noun="task", console=Console(stderr=True)) as progress:
                result = evaluate(
                    config,
                    model=config.model,
                    num_tasks=num_tasks,
                    samples=samples,
                    seed=seed,
                    temperature=temperature,
                    output=output,
                    progress=progress,
                )
            typer.echo(_in_json(result) if as_json else _in_words(result))

    return command


def _serve_command(start: Callable[..., None]) -> Callable[..., None]:
    def serve(
        model: Annotated[str, typer.Argument(metavar="MODEL", help="A folder, a Hub name, or `quickstart`.", show_default=False)],
        args: Annotated[list[str] | None, typer.Argument(metavar="[-- VLLM_ARGS]", help="vLLM's own.", show_default=False)] = None,
        port: Annotated[int, typer.Option(help="Where it listens.")] = 8000,
        host: Annotated[str, typer.Option(help="Beyond this machine it takes a key, in AGENTRL_VLLM_API_KEY.")] = "127.0.0.1",
        devices: Annotated[str | None, _option("--devices", "1,2", "GPUs by number.  [default: the first ones]")] = None,
        tensor_parallel: Annotated[int | None, _option("--tensor-parallel", "N", "GPUs that share one copy of the model.")] = None,
        data_parallel: Annotated[int | None, _option("--data-parallel", "N", "Copies of the model.")] = None,
        device: Annotated[str | None, _option("--device", "D", "cpu or cuda.  [default: what vLLM is built for]")] = None,
        dtype: Annotated[str | None, _option("--dtype", "T", "float32 or bfloat16.  [default: by the device]")] = None,
        context_length: Annotated[int | None, _option("--context-length", "N", "Tokens a request may hold.")] = None,
        lora_rank: Annotated[int | None, _option("--lora-rank", "N", "Serve adapters of up to this rank.")] = None,
        max_loras: Annotated[int | None, _option("--max-loras", "N", "Adapters in use at once.  [default: 3]")] = None,
        transfer: Annotated[str | None, _option("--transfer", "NAME", "agentrl, or nccl between GPUs.  [default: agentrl]")] = None,
        python: Annotated[str | None, _option("--python", "PATH", "Of vLLM's environment.  [default: .venv-vllm's]")] = None,
    ) -> None:
        """Start a vLLM server with what training needs; Ctrl-C ends it."""
        flags = dict(locals())  # the closure's variable too
        with exit_status():
            start(**{name: value for name, value in flags.items() if name != "start"})

    return serve


def _environments() -> typer.Typer:
    app = typer.Typer(help="Look at environments.", no_args_is_help=True, rich_markup_mode=None)

    @app.command("list")
    def names() -> None:
        """List the environments that have a name, and the libraries that have more."""
        from agentrl import registry

        with exit_status():
            known = registry.registered()
            width = max(map(len, known), default=0)
            for name, factory in known.items():
                typer.echo(f"{name:{width}}  {_first_line(factory)}".rstrip())
            typer.echo("\nFrom other libraries:")
            libraries = registry.adapters()
            width = max(map(len, libraries), default=0) + len(":NAME")
            for prefix, place in sorted(libraries.items()):
                module, _, name = place.partition(":")
                factory = getattr(registry.import_module(module), name)
                typer.echo(f"{prefix + ':NAME':{width}}  {_first_line(factory)}".rstrip())

    @app.command("show")
    def show(spec: Annotated[str, typer.Argument(metavar="SPEC", help="NAME?arg=value, file.py:Name or package.module:Name.")]) -> None:
        """Show an environment's tasks and tools."""
        from agentrl.env_report import describe

        with exit_status():
            typer.echo(describe(spec, num_tasks=SHOWN_TASKS))

    cli_env_test.add_to(app)
    return app


def _objectives() -> typer.Typer:
    app = typer.Typer(help="Look at objectives.", no_args_is_help=True, rich_markup_mode=None)

    @app.command("list")
    def names(imports: Imports = None, as_json: AsJson = False) -> None:
        """List the objectives: what each compares, what a run must provide for it."""
        from agentrl import objective_report, objective_tables

        with exit_status():
            _import(imports)
            _print(objective_report.facts_of_all(), as_json, objective_tables.listed)

    @app.command("show")
    def show(
        name: Annotated[str, typer.Argument(metavar="NAME", help="An objective, or one of the topics corrections and kl.")],
        imports: Imports = None,
        as_json: AsJson = False,
    ) -> None:
        """Show an objective's formula, source, options and what it needs."""
        from agentrl import objective_report, objective_tables

        with exit_status():
            _import(imports)
            _print(objective_report.facts_of(name), as_json, objective_tables.shown)

    return app


def _import(names: list[str] | None) -> None:
    from agentrl import registry

    for name in names or ():
        registry.import_module(name)


def _print(facts: Any, as_json: bool, lay_out: Callable[[Any, int], Iterator[Any]]) -> None:
    if as_json:
        typer.echo(json.dumps(facts, indent=2, default=str))
        return
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    for part in lay_out(facts, console.width):
        console.print(part)


def version() -> None:
    """Print the versions that matter in a bug report."""
    found = [f"{name} {_version_of(name)}" for name in ("agentrl", "torch", "transformers", "accelerate", "peft")]
    typer.echo(", ".join([*found, f"Python {platform.python_version()}", platform.platform()]))


def main() -> None:
    """Entry point of the `agentrl` script and of `python -m agentrl`."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # an environment's `package.module:Name` is looked for here too
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what runs is ended in order
    try:
        make_app(_train, _evaluate)(prog_name="agentrl")
    except KeyboardInterrupt:  # outside a command: while modules are imported
        sys.exit(INTERRUPTED)


def _train(config: RunConfig, **options: Any) -> RunResult:
    from agentrl.run import train

    return train(config, **options)


def _evaluate(config: RunConfig, **options: Any) -> EvalResult:
    from agentrl.evaluation import evaluate

    return evaluate(config, **options)


def _serve(*, model: str, **flags: Any) -> None:
    from agentrl.session import resolve_model

    server = importlib.import_module("agentrl.servers.serve")  # by name, as everything in servers/
    server.serve(server.options_from_flags(resolve_model(model), **flags), say=typer.echo)


@contextlib.contextmanager
def exit_status() -> Iterator[None]:
    """Turn errors that agentrl raises on purpose into one message and a status; any other is a bug and keeps its traceback."""
    try:
        yield
    except AgentRLError as error:
        typer.echo(f"agentrl: {error}", err=True)
        raise typer.Exit(WRONG_CONFIG if isinstance(error, ConfigError) else FAILED) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        raise typer.Exit(INTERRUPTED) from None  # Ctrl-C while tasks ran beside each other


def _config(run: Path | None, overrides: list[str] | None, flags: dict[str, Any]) -> RunConfig:
    from agentrl import runfile

    return runfile.load(run, overrides or (), flags)


def _config_to_resume(resume: Path, run: Path | None, flags: dict[str, Any], overrides: list[str] | None) -> RunConfig:
    """The configuration in a run folder; only `--set` may change it."""
    given = [str(run)] if run else []
    given += [f"--{name}" for name, value in flags.items() if value is not None]
    if given:
        raise ConfigError(
            f"--resume goes on with the run in {resume} as it was configured: leave out {', '.join(given)}, or change a key with --set"
        )
    if not (resume / "config.yaml").is_file():
        raise ConfigError(f"--resume {resume}: that is no run folder, it has no config.yaml; give the folder that `agentrl train` made")
    return _config(resume / "config.yaml", overrides, {"output": resume})


def _in_json(result: EvalResult) -> str:
    values = dataclasses.asdict(result)
    values["interval"] = None if math.isnan(result.interval[0]) else result.interval  # NaN is no JSON
    return json.dumps(values, allow_nan=False)


def _in_words(result: EvalResult) -> str:
    low, high = result.interval
    interval = "one task has no interval" if math.isnan(low) else f"95% interval {low:.4f} to {high:.4f}"
    lines = [
        f"mean reward  {result.mean:.4f}  ({interval})",
        *(f"pass@{k:<7} {share:.4f}" for k, share in result.pass_at.items()),
        f"{result.num_tasks} tasks x {result.samples} rollouts of {result.mean_length:.1f} sampled tokens, {result.unscorable} unscorable",
    ]
    return "\n".join(lines)


def _first_line(factory: Any) -> str:
    return (factory.__doc__ or "").strip().partition("\n")[0]


def _version_of(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)" if name != "agentrl" else "(from a checkout)"
