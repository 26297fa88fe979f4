"""The command line: parse → call → print. The exit code is the result.

Every option is a field of `config.py`; it can come from a flag, from the environment (`MNIST_RAY_RUN_EPOCHS=3`) or from
`--config FILE.toml`, in this order. What computes is imported when a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import difflib
import os
import sys
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

import click

from mnist_ray import __version__
from mnist_ray.config import Options, RunConfig, ScoreConfig, ShardConfig, TrainConfig
from mnist_ray.errors import InputError, Interrupted, UserError

C = TypeVar("C", bound=Options)

SETTINGS = {"auto_envvar_prefix": "MNIST_RAY", "help_option_names": ["-h", "--help"], "max_content_width": 110}


class _Interruptible(click.Group):
    """Ctrl-C and SIGTERM end a command as they should, whichever it is."""

    def invoke(self, ctx: click.Context) -> Any:
        from mnist_ray.cluster.signals import interruptible

        with interruptible():
            return super().invoke(ctx)


@click.group(cls=_Interruptible, context_settings=SETTINGS)
@click.version_option(__version__, prog_name="mnist-ray")
def cli() -> None:
    """Shard images, train a Keras 3 model data-parallel and score images exactly once, on Ray."""


def command(kind: type[C]) -> Callable[[Callable[[C], None]], click.Command]:
    """A command whose options are the fields of `kind`; the function is given the options, checked."""

    def decorate(function: Callable[[C], None]) -> click.Command:
        def call(**values: Any) -> None:
            values.pop("config")
            function(kind(**values))

        params: list[click.Parameter] = []
        for spec in fields(kind):
            rules, optional = spec.metadata, "None" in str(spec.type)
            types = {"int": int, "float": float, "bool": bool, "str": str, "tuple[str,": str}
            value_type: Any = click.Choice(rules["choices"]) if rules["choices"] else types[str(spec.type).split()[0]]
            is_many = str(spec.type).startswith("tuple")
            if spec.default is MISSING:
                positional = kind is not ScoreConfig or spec.name == "input"
                if positional:
                    variable = f"MNIST_RAY_{function.__name__.upper()}_{spec.name.upper()}" if is_many else None
                    params.append(
                        click.Argument(
                            [spec.name], metavar=rules["metavar"], nargs=-1 if is_many else 1, required=True,
                            envvar=variable,
                        )
                    )  # fmt: skip
                    continue
            params.append(
                click.Option(
                    ["--" + spec.name.replace("_", "-")],
                    type=value_type,
                    is_flag=value_type is bool,
                    required=spec.default is MISSING,
                    default=None if optional or spec.default is MISSING else spec.default,
                    show_default=not optional and spec.default is not MISSING and value_type is not bool,
                    metavar=None if rules["choices"] else rules["metavar"],
                    help=rules["help"],
                )
            )
        params.sort(key=lambda param: isinstance(param, click.Option))
        params.append(
            click.Option(
                ["--config"], metavar="FILE.toml", is_eager=True, expose_value=True, callback=_read_config,
                help="options by name, at the top or in a table named as the command",
            )
        )  # fmt: skip
        made = click.Command(function.__name__.rstrip("_"), params=params, callback=call, help=function.__doc__)
        cli.add_command(made)
        return made

    return decorate


def _read_config(ctx: click.Context, _: click.Parameter, path: str | None) -> str | None:
    """Make the file's values this command's defaults. A name that is no option is an error that suggests one."""
    command = str(ctx.info_name)
    known = [param.name for param in ctx.command.params if param.name not in (None, "config")]
    prefix = f"MNIST_RAY_{command.upper()}_"
    set_names = (name for name in os.environ if name.startswith(prefix))
    _refuse_unknown("environment", set_names, [prefix + str(name).upper() for name in [*known, "config"]])
    if path is None:
        return None
    try:
        content = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise InputError(f"cannot read --config {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"--config {path} is not TOML: {error}") from error
    tables = {key: value for key, value in content.items() if isinstance(value, dict)}
    _refuse_unknown(path, tables, list(cli.commands), what="table")
    values = {key: value for key, value in content.items() if key not in tables} | tables.get(command, {})
    _refuse_unknown(path, (key.replace("-", "_") for key in values), [str(name) for name in known])
    ctx.default_map = {key.replace("-", "_"): value for key, value in values.items()}
    for param in ctx.command.params:
        if param.name in ctx.default_map and not _fits(param, value := ctx.default_map[param.name]):
            raise InputError(f"{path}: {param.name} is of type {param.type.name}, which {value!r} does not fit")
    return path


def _fits(param: click.Parameter, value: Any) -> bool:
    """Whether a TOML value may be one of the option's; click itself would cut 2.5 to 2 and take true for 1."""
    if param.nargs == -1:
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    if isinstance(value, bool) or param.type is click.BOOL:
        return isinstance(value, bool) and param.type is click.BOOL
    return isinstance(value, (str, int) if param.type is click.INT else (str, int, float))


def _refuse_unknown(where: str, names: Iterable[str], known: Sequence[str], what: str = "option") -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise InputError(f"{where}: no {what} {name}; {hint}")


def _narrator() -> Any:
    from mnist_ray.console import Console

    return Console()


@command(RunConfig)
def run(config: RunConfig) -> None:
    """The whole job: shard, train, score, report. The same command again goes on, or shows the result."""
    from mnist_ray import pipeline

    pipeline.run(config, _narrator())


@command(ShardConfig)
def shard(config: ShardConfig) -> None:
    """Write the images of SRC as Parquet shards to DEST."""
    from mnist_ray import pipeline

    pipeline.shard(config, _narrator())


@command(TrainConfig)
def train(config: TrainConfig) -> None:
    """Train on SHARDS (what `mnist-ray shard` wrote): the same folder as `run` makes, up to the model."""
    from mnist_ray import pipeline

    pipeline.train(config, _narrator())


@command(ScoreConfig)
def score(config: ScoreConfig) -> None:
    """Score the images of INPUT with a model; each lands exactly once in the output, or in its quarantine."""
    from mnist_ray import pipeline

    pipeline.score(config, _narrator())


@cli.command()
@click.argument("run")
def report(run: str) -> None:
    """Write the HTML report of RUN (a run's folder) again."""
    from mnist_ray.report.page import write_report
    from mnist_ray.storage.location import Location

    click.echo(str(write_report(Location.parse(run))))


@cli.command()
@click.argument("output")
def verify(output: str) -> None:
    """Recount and re-hash OUTPUT (predictions, or a run's folder) offline; exit code 1 if anything differs."""
    from mnist_ray.predictions.verify import verify
    from mnist_ray.storage.location import Location

    click.echo(verify(Location.parse(output)))


@cli.command()
@click.argument("run")
@click.option("--address", metavar="URL", help="of the Ray dashboard, where RUN is a job's id")
def status(run: str, address: str | None) -> None:
    """Say how far RUN (a run's or an output's folder, or a job's id) is. Reads storage alone: no cluster is needed."""
    from mnist_ray.status import status

    click.echo(status(run, address))


@cli.command(context_settings={"ignore_unknown_options": True})
@click.option("--address", metavar="URL", help="of the Ray dashboard; http://127.0.0.1:8265 when unset")
@click.option("--working-dir", metavar="DIR", help="sent to the cluster; for code that its image does not have")
@click.option("--wait/--no-wait", default=True, help="follow the job's log to its end", show_default=True)
@click.argument("arguments", nargs=-1, required=True, metavar="-- COMMAND [ARGS]...")
def submit(address: str | None, working_dir: str | None, wait: bool, arguments: tuple[str, ...]) -> None:
    """Run the same commands as a Ray job: mnist-ray submit -- run --storage s3://…"""
    if arguments[0] not in cli.commands or arguments[0] == "submit":
        raise InputError(f"submit takes a command of mnist-ray after --, not {arguments[0]!r}")
    from mnist_ray.cluster import jobs

    code = jobs.submit(arguments, address=address, working_dir=working_dir, wait=wait, print_line=click.echo)
    raise click.exceptions.Exit(code)


@cli.command()
@click.option("--address", metavar="URL", help="of a Ray cluster, as for run")
@click.option("--storage", metavar="URI", default="./storage", help="where runs are to lie", show_default=True)
def doctor(address: str | None, storage: str) -> None:
    """Say in seconds what would fail, with the fix; exit code 1 if anything would."""
    from mnist_ray.doctor import examine

    sound = True
    for ok, line in examine(address, storage):
        sound &= ok
        click.echo(f"{'ok  ' if ok else 'FAIL'}  {line}")
    raise click.exceptions.Exit(0 if sound else 1)


def main(args: Sequence[str] | None = None) -> None:
    """Run a command and exit. What a user can act on is one line on stderr, never a traceback."""
    try:
        code = cli.main(args, prog_name="mnist-ray", standalone_mode=False) or 0
    except UserError as error:
        code = _fail(str(error) + (f" (README: {error.see})" if error.see else ""), error.exit_code)
    except click.ClickException as error:
        code = _fail(error.format_message(), 2)
    except Interrupted as error:
        code = _fail(str(error), 130)
    except Exception as error:
        if not type(error).__module__.startswith("ray."):
            raise
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        code = _fail(f"Ray failed: {first}; the same command goes on from what is committed", 1)
    sys.exit(code)


def _fail(message: str, code: int) -> int:
    click.echo(f"mnist-ray: {' '.join(message.split())}", err=True)
    return code


if __name__ == "__main__":
    main()
