"""The command line: parse → call → print. The exit code is the result.

The options of run, shard, train and score are the fields of `config.py`; `parameters.py` makes click's parameters of
them. Whatever computes is imported when a command runs, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click
import cloup

from mnist_ray import __version__, operations
from mnist_ray.api import check_relative_paths
from mnist_ray.config import RunConfig, ScoreConfig, ShardConfig, Talk, TrainConfig
from mnist_ray.errors import InputError, Interrupted, UnexpectedError, last_line
from mnist_ray.messages import Messages, messages
from mnist_ray.operations import Job, epilog
from mnist_ray.options import Options
from mnist_ray.parameters import Parameter, complete_path, parameters
from mnist_ray.shadows import shadow
from mnist_ray.usage import usage_problem

if TYPE_CHECKING:
    from mnist_ray.console import Console
    from mnist_ray.storage.location import Location

C = TypeVar("C", bound=Options)

SETTINGS = {"auto_envvar_prefix": "MNIST_RAY", "help_option_names": ["-h", "--help"], "max_content_width": 110}

DEBUG = "MNIST_RAY_DEBUG"
"""Set to 1, this variable lets an unexpected error end with its traceback, which is otherwise in a log alone."""

EPILOG = f"""
Each command has its own --help. Options can also come from the environment
(MNIST_RAY_RUN_EPOCHS=3) or from a file (--config FILE.toml).

\b
Exit codes:
  0    done
  1    failed; a retry may help
  2    wrong usage, configuration or input
  3    too many bad images
  130  interrupted; the same command continues

\b
Shell completion: a line for ~/.bashrc, ~/.zshrc or config.fish:
  eval "$(_MNIST_RAY_COMPLETE=bash_source mnist-ray)"
  eval "$(_MNIST_RAY_COMPLETE=zsh_source mnist-ray)"
  _MNIST_RAY_COMPLETE=fish_source mnist-ray | source

An unexpected error is one line as well, which names the log that has the
traceback; {DEBUG}=1 shows it.
"""


WHOLE = cloup.Section("The whole job")
PARTS = cloup.Section("The job in parts")
RESULTS = cloup.Section("Results and progress")
CLUSTERS = cloup.Section("Clusters")


class _Interruptible(cloup.Group):
    """A group whose commands end in order on Ctrl-C and SIGTERM."""

    def invoke(self, ctx: click.Context) -> Any:
        from mnist_ray.cluster.ray_private import tell_job_id
        from mnist_ray.cluster.signals import interruptible

        tell_job_id()
        with interruptible():
            return super().invoke(ctx)


@cloup.group(cls=_Interruptible, context_settings=SETTINGS, epilog=EPILOG)
@click.version_option(__version__, prog_name="mnist-ray")
def cli() -> None:
    """Shard images, train a Keras 3 model data-parallel and score images exactly once, on Ray."""


def command(
    kind: type[C], *, section: cloup.Section, short_help: str, examples: str
) -> Callable[[Callable[[C], None]], click.Command]:
    """Decorate a function of a checked `kind` as a command whose options are the fields of `kind`."""

    def decorate(function: Callable[[C], None]) -> click.Command:
        def call(config: str | None, **values: Any) -> None:
            messages().as_json = values["log_format"] == "json"
            operations.check_shadows(".")
            options = kind(**values)
            check_relative_paths(options)
            function(options)

        made = Job(
            function.__name__,
            params=parameters(function.__name__, kind),
            callback=call,
            help=function.__doc__,
            short_help=short_help,
            epilog=epilog(examples),
        )
        made.kind = kind
        cli.add_command(made, section=section)
        return made

    return decorate


def _console(config: Talk) -> Console:
    from mnist_ray.console import Console

    console = Console.of(config)
    messages().place = console.place
    return console


def _location(text: str) -> Location:
    from mnist_ray.storage.location import Location

    return Location.parse(text)


@command(
    RunConfig,
    section=WHOLE,
    short_help="Shard, train, score and report.",
    examples="run --data photos/ --name photos --architecture cnn --epochs 10",
)
def run(config: RunConfig) -> None:
    """Run the whole job: shard, train, score, report.

    The same command again continues an unfinished run, and shows the result of a finished one.
    """
    from mnist_ray import pipeline

    pipeline.run(config, _console(config))


@command(
    ShardConfig,
    section=PARTS,
    short_help="Write images as Parquet shards.",
    examples="shard photos/ s3://bucket/shards",
)
def shard(config: ShardConfig) -> None:
    """Write the images of SRC as Parquet shards to DEST."""
    from mnist_ray import pipeline

    pipeline.shard(config, _console(config))


@command(
    TrainConfig,
    section=PARTS,
    short_help="Train a model on shards.",
    examples="train s3://bucket/shards --storage s3://bucket/runs --name photos",
)
def train(config: TrainConfig) -> None:
    """Train a model on SHARDS, which `mnist-ray shard` wrote.

    Makes the same folder as `mnist-ray run`, up to the model.
    """
    from mnist_ray import pipeline

    pipeline.train(config, _console(config))


@command(
    ScoreConfig,
    section=PARTS,
    short_help="Score images with a model.",
    examples="""
        score photos/ --model storage/photos --output scores/photos
        score "photos/day-*/*.png" --model my.keras --output scores/photos
    """,
)
def score(config: ScoreConfig) -> None:
    """Score the images of INPUT with a model.

    Each image ends up exactly once in the output, or in its quarantine. The same command again continues an unfinished
    output.
    """
    from mnist_ray import pipeline

    pipeline.score(config, _console(config))


@cli.command(
    section=RESULTS,
    short_help="Write the HTML report of a run, or compare several.",
    epilog=epilog("""
        report storage/mnist
        report storage/mlp storage/cnn --output mlp-cnn.html
        report scores/today --reference scores/last-week
    """),
)
@cloup.argument("runs", nargs=-1, required=True, metavar="RUN...", shell_complete=complete_path,
                help="Folders of finished runs, or of what `mnist-ray score` wrote.")  # fmt: skip
@cloup.option("--output", metavar="FILE.html", cls=Parameter, shell_complete=complete_path,
              show_default="report.html in RUN; of several, A-vs-B.html beside the first",
              help="File to write.")  # fmt: skip
@cloup.option("--reference", metavar="OUTPUT", shell_complete=complete_path,
              help="An earlier output, from which the report shows the drift of the predictions.")  # fmt: skip
def report(runs: tuple[str, ...], output: str | None, reference: str | None) -> None:
    """Write the HTML report of RUN again and print its path.

    Several are compared with the first: settings, curves, confusion, and which images changed sides.
    """
    from mnist_ray.report.page import write_comparison, write_report

    if reference is not None and len(runs) > 1:
        raise InputError("--reference takes one RUN; without it, several are compared")
    if output is not None and not output.endswith(".html"):
        raise InputError(f"--output must be the name of a file that ends in .html, not {output!r}")
    target, folders = _location(output) if output else None, [_location(each) for each in runs]
    if len(folders) > 1:
        written = write_comparison(folders, target=target)
    else:
        written = write_report(folders[0], target=target, reference=_location(reference) if reference else None)
    click.echo(str(written))


@cli.command(
    section=RESULTS, short_help="Recount and re-hash an output, offline.", epilog=epilog("verify storage/mnist")
)
@cloup.argument("output", help="A run's folder, or what `mnist-ray score` wrote.", shell_complete=complete_path)
def verify(output: str) -> None:
    """Recount and re-hash OUTPUT, offline.

    The exit code is 1 if anything differs from what was written.
    """
    from mnist_ray.cluster.machine import num_cpus
    from mnist_ray.predictions.verify import verify

    click.echo(verify(_location(output), processes=num_cpus(), notify=partial(click.echo, err=True)))


for operation in (operations.status, operations.logs, operations.stop):
    cli.add_command(operation, section=RESULTS)
for operation in (operations.submit, operations.doctor):
    cli.add_command(operation, section=CLUSTERS)


def main(args: Sequence[str] | None = None) -> None:
    """Run a command and exit. Every error is one line on stderr, without a traceback."""
    words = list(sys.argv[1:] if args is None else args)
    _open_closed_streams()
    if not os.path.isabs(os.path.expanduser("~")):  # noqa: PTH111, PTH117 - Path.home() would raise
        os.environ["HOME"] = "/"  # as containers have it: this user has neither HOME nor an entry in passwd
    ours = Messages()
    try:
        with _unexpected_in_background(ours):
            code = cli.main(words or ["--help"], prog_name="mnist-ray", standalone_mode=False, obj=ours) or 0
    except click.ClickException as error:
        code = ours.error(usage_problem(error), 2)
    except (Interrupted, KeyboardInterrupt, click.Abort) as error:
        code = ours.error(str(error) or "interrupted", Interrupted.exit_code)
    except SystemExit as error:  # click's, after a closed pipe
        code = error.code
    except BaseException as error:  # what comes out of Rust is not an Exception
        code = _last_resort(error, ours)
    _flush()
    sys.exit(code)


def _open_closed_streams() -> None:
    """Give a process that was started with closed streams (`>&-`) open ones, before other files get their numbers."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # the lowest free number is taken first
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


@contextmanager
def _unexpected_in_background(ours: Messages) -> Iterator[None]:
    """Tell the errors of threads and destructors, which Python would print with their tracebacks, in one line each."""

    def tell(unhandled: Any) -> None:
        from mnist_ray.runs.crash import explained

        if unhandled.exc_value is not None and not isinstance(unhandled.exc_value, SystemExit):
            ours.error(f"in the background: {explained(unhandled.exc_value)}", 0)

    before = threading.excepthook, sys.unraisablehook
    threading.excepthook = sys.unraisablehook = tell
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = before


def _flush() -> None:
    """Drop what cannot be written, about which Python would complain when it exits."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _last_resort(error: BaseException, ours: Messages) -> int:
    """Tell a UserError; of any other error its last line, and where the full log is."""
    try:
        from mnist_ray.runs.crash import explained

        known = explained(error)
    except Exception:  # a module of Python's own that a file replaces
        known = UnexpectedError(f"unexpected {last_line(error)}")
    message = str(known) + (f" (see docs/{known.see})" if known.see else "")
    if isinstance(known, UnexpectedError):
        if os.environ.get(DEBUG) == "1":
            raise error
        message = "; ".join(filter(None, [message, shadow()]))
    return ours.error(message, known.exit_code)


if __name__ == "__main__":
    main()
