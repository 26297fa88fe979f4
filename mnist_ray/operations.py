"""The commands that look at jobs and clusters, and send jobs to them: status, logs, stop, submit, doctor."""

from __future__ import annotations

import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import cloup

from mnist_ray import __version__
from mnist_ray.api import refuse_shadows
from mnist_ray.errors import InputError, Interrupted
from mnist_ray.options import Options
from mnist_ray.parameters import Parameter, complete_path
from mnist_ray.shadows import shadow

if TYPE_CHECKING:
    from mnist_ray.cluster.dashboard import Dashboard


class Job(cloup.Command):
    """A command that can be submitted: its options are the fields of `kind`."""

    kind: type[Options]


def epilog(examples: str) -> str:
    """The last lines of a help page: commands that run as they stand."""
    lines = [f"  mnist-ray {line.strip()}" for line in examples.strip().splitlines()]
    return "\n".join(["\b", "Example:" if len(lines) == 1 else "Examples:", *lines])


def check_shadows(folder: str) -> None:
    """Raise InputError if a file in the folder replaces a package that every job needs; warn of others."""
    refuse_shadows(folder)
    if message := shadow(folder):
        _warn(message)


def _warn(message: str) -> None:
    click.echo(f"mnist-ray: warning: {message}", err=True)


_DASHBOARD = "http://127.0.0.1:8265"

run_or_job = cloup.argument("run", help="Folder of a run or an output, or the id of a Ray job.",
                            shell_complete=complete_path, metavar="RUN|JOB")  # fmt: skip
dashboard_address = cloup.option("--address", metavar="URL", cls=Parameter, show_default=_DASHBOARD,
                                 help="Ray dashboard to ask for a job.")  # fmt: skip


@cloup.command(
    short_help="Show the progress of a run, an output or a job.",
    epilog=epilog("status storage/mnist\nstatus raysubmit_x4kEYbRZGDmfzzVn --address http://127.0.0.1:8265"),
)
@run_or_job
@dashboard_address
@cloup.option("--watch", is_flag=True, help="Go on until the end. The exit code is then 1 unless it ended well.")
@click.pass_context
def status(ctx: click.Context, run: str, address: str | None, watch: bool) -> None:
    """Show the progress of a run, an output or a job in one line.

    For a folder, only its files are read: no cluster is needed.
    """
    from mnist_ray import status as look

    if not watch:
        click.echo(look.status(run, address))
    elif not look.watch(run, address, click.echo if not sys.stdout.isatty() else _rewrite):
        ctx.exit(1)


def _rewrite(text: str) -> None:
    """Show a line in place of the one before, as far as the terminal is wide."""
    width = shutil.get_terminal_size().columns
    click.echo(f"\r\033[K{text[: width - 1]}", nl=False)


@cloup.command(
    short_help="Show what a run or a job has printed.",
    epilog=epilog("logs storage/mnist --workers\nlogs raysubmit_x4kEYbRZGDmfzzVn --address http://127.0.0.1:8265"),
)
@run_or_job
@dashboard_address
@cloup.option("--workers", is_flag=True, help="Show what the train workers and scoring actors have printed as well.")
def logs(run: str, address: str | None, workers: bool) -> None:
    """Show what a run, an output or a job has printed so far.

    For a folder, the log that it keeps is read: no cluster is needed. `submit --follow JOB` shows a job's log as it
    grows.
    """
    from mnist_ray.status import log

    click.echo(log(run, address, workers=workers))


@cloup.command(
    short_help="Stop a run or a job.",
    epilog=epilog("stop storage/mnist\nstop raysubmit_x4kEYbRZGDmfzzVn --address http://127.0.0.1:8265"),
)
@run_or_job
@dashboard_address
def stop(run: str, address: str | None) -> None:
    """Stop a run or a job in order. What is committed stays, and the same command continues from there."""
    from mnist_ray.status import stop

    click.echo(stop(run, address))


@cloup.command(
    short_help="Run one of these commands as a Ray job.",
    context_settings={"ignore_unknown_options": True},
    epilog=epilog(
        "submit --working-dir . -- run --storage s3://bucket/runs\nsubmit --follow raysubmit_x4kEYbRZGDmfzzVn"
    ),
)
@cloup.argument("arguments", nargs=-1, metavar="-- COMMAND [ARGS]...")
@cloup.option("--address", metavar="URL", cls=Parameter, show_default=_DASHBOARD,
              help="Ray dashboard to submit to.")  # fmt: skip
@cloup.option("--working-dir", metavar="DIR", shell_complete=complete_path,
              help="Folder to send to the cluster: code that its image does not contain.")  # fmt: skip
@cloup.option("--wait/--no-wait", default=True, show_default=True, help="Follow the job's log to its end.")
@cloup.option("--follow", metavar="JOB", help="Follow a job that was submitted before, instead of a new one.")
@click.pass_context
def submit(
    ctx: click.Context, arguments: tuple[str, ...], address: str | None, working_dir: str | None, wait: bool,
    follow: str | None,
) -> None:  # fmt: skip
    """Run one of these commands as a Ray job. The exit code is the job's."""
    if follow and (arguments or working_dir or not wait):
        raise InputError("--follow takes the id of a job, and neither a command nor --working-dir nor --no-wait")
    if not follow and not arguments:
        raise click.MissingParameter(
            ctx=ctx, param=next(each for each in ctx.command.params if each.name == "arguments")
        )
    config = None if follow else _checked(ctx, arguments)
    if working_dir:
        check_shadows(working_dir)
    from mnist_ray.cluster.dashboard import reach

    dashboard = reach(address)
    job = follow or _submit(dashboard, arguments, config, working_dir)
    if wait:
        raise click.exceptions.Exit(_follow(dashboard, job))
    click.echo(f"follow  mnist-ray submit --follow {job} --address {dashboard.url}")
    click.echo(f"stop    mnist-ray stop {job} --address {dashboard.url}")


def _checked(ctx: click.Context, arguments: Sequence[str]) -> Options | None:
    """The command's options, where they can be read here. Raises what the command itself would raise of them."""
    from mnist_ray.cluster.jobs import require_absolute

    group = ctx.find_root().command
    commands = group.commands if isinstance(group, click.Group) else {}
    name, *words = arguments
    if name not in commands or name == "submit":
        raise InputError(f"submit takes a command of mnist-ray after --, not {name!r}")
    command = commands[name]
    files = [after.removeprefix("--config=") for before, after in zip(["", *words], words, strict=False)
             if before == "--config" or after.startswith("--config=")]  # fmt: skip
    if not isinstance(command, Job) or not all(Path(file).exists() for file in files):  # a file of the cluster's image
        return None
    values = command.make_context(name, words, parent=ctx.find_root()).params
    config = command.kind(**{key: value for key, value in values.items() if key != "config"})
    if there := config.written_to():
        require_absolute(*there)
    return config


def _submit(dashboard: Dashboard, arguments: Sequence[str], config: Options | None, working_dir: str | None) -> str:
    """Submit, and say what is sent where. Returns the id of the job."""
    import ray

    from mnist_ray.cluster import jobs
    from mnist_ray.cluster.upload import Upload

    if dashboard.ray_version != ray.__version__:
        _warn(f"the cluster has Ray {dashboard.ray_version}, which the job will use; here is Ray {ray.__version__}")
    if working_dir:
        upload = Upload.of(working_dir)
        module, is_own, _ = (getattr(config, "architecture", None) or "").partition(":")
        if is_own:
            upload.require_module(module)
        click.echo(f"sending {upload} (unless the cluster has them already)")
    folder = ((config and config.written_to()) or (None, None))[1]
    metadata = jobs.metadata_of(shlex.join(arguments), __version__, folder, config.fingerprint() if config else None)
    job = jobs.submit(dashboard, arguments, working_dir=working_dir, metadata=metadata)
    click.echo(f"submitted {job} to {dashboard.url}" + (f", for {folder}" if folder else ""))
    return job


def _follow(dashboard: Dashboard, job: str) -> int:
    """Follow a job to its end. Returns its exit code. On a terminal, Ctrl-C asks what is to happen to the job."""
    from mnist_ray.cluster import jobs
    from mnist_ray.cluster.signals import interruptible

    follower = jobs.Follower(dashboard, job, click.echo)
    while True:
        try:
            with interruptible():
                return follower.follow()
        except Interrupted as error:
            match _choice(error):
                case "stop":
                    click.echo(f"stopping {job} ...")
                    state = jobs.stop(dashboard, job)
                    raise Interrupted(
                        f"job {job}: {state}; the same command continues from what is committed"
                    ) from error
                case "detach":
                    raise Interrupted(
                        f"interrupted; the job continues: mnist-ray submit --follow {job} --address {dashboard.url}"
                        f" follows it, mnist-ray stop {job} --address {dashboard.url} ends it"
                    ) from error


def _choice(interrupted: Interrupted) -> str:
    """What the user wants after Ctrl-C: "detach", "stop" or "watch". Whoever is not at a terminal detaches."""
    if interrupted.signal != signal.SIGINT or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return "detach"
    try:
        choice: str = click.prompt(
            "\nThe job still runs. Detach, stop it, or watch on",
            type=click.Choice(["detach", "stop", "watch"]), default="detach",
        )  # fmt: skip
    except click.Abort:  # a second Ctrl-C
        click.echo()
        return "detach"
    return choice


@cloup.command(
    short_help="Check the machine, the storage and the cluster.",
    epilog=epilog("doctor --storage s3://bucket/runs --address auto\n"
                  "doctor --storage s3://bucket/runs --address http://127.0.0.1:8265"),
)  # fmt: skip
@cloup.option("--address", metavar="ADDR", help="Ray cluster to check: auto, HOST:PORT, ray://HOST:PORT, or the URL of"
              " its dashboard, from which a job looks at the nodes.")  # fmt: skip
@cloup.option("--storage", metavar="URI", default="./storage", show_default=True, shell_complete=complete_path,
              help="Folder that is to hold the runs.")  # fmt: skip
@cloup.option("--num-workers", metavar="N", type=click.IntRange(1), default=2, show_default=True,
              help="Train workers that are to fit.")  # fmt: skip
@cloup.option("--cpus-per-worker", metavar="CPUS", type=click.FloatRange(0, min_open=True), default=1.0,
              show_default=True, help="CPUs that each of them reserves.")  # fmt: skip
@cloup.option("--working-dir", metavar="DIR", shell_complete=complete_path,
              help="Folder that `submit --working-dir` is to send.")  # fmt: skip
def doctor(
    address: str | None, storage: str, num_workers: int, cpus_per_worker: float, working_dir: str | None
) -> None:
    """Check within seconds what would fail, and how to fix it.

    The exit code is 1 if any check fails.
    """
    from mnist_ray.doctor import Setup, examine

    sound = True
    for finding in examine(Setup(address, storage, num_workers, cpus_per_worker, working_dir)):
        sound &= finding.level != "FAIL"
        click.echo(f"{finding.level:<4}  {finding.line}")
    raise click.exceptions.Exit(0 if sound else 1)
