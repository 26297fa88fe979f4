"""From the fields of a configuration to click's parameters.

A value comes from a flag, from the environment (`MNIST_RAY_RUN_EPOCHS=3`) or from `--config FILE.toml`; the first of
these wins. A name that is not an option is an error in all three.
"""

from __future__ import annotations

import difflib
import itertools
import os
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click
import cloup
from click.shell_completion import CompletionItem

from mnist_ray.errors import InputError
from mnist_ray.options import Option, Options, flag


class Parameter(cloup.Option):
    """An option that shows a default given in words without the parentheses that click puts around it."""

    def get_help_extra(self, ctx: click.Context) -> Any:
        extra = super().get_help_extra(ctx)
        if isinstance(self.show_default, str):
            extra["default"] = self.show_default
        return extra


def parameters(command: str, kind: type[Options]) -> list[click.Parameter]:
    """The parameters of a command whose options are the fields of `kind`, and `--config`."""
    groups: dict[str, cloup.OptionGroup] = {}  # each command needs its own: cloup keeps the options in them
    config = cloup.Option(
        ["--config"],
        metavar="FILE.toml",
        is_eager=True,
        callback=_read_config,
        shell_complete=complete_path,
        help="TOML file of options by name, at the top level or in a table named after the command.",
    )
    return [*(_parameter(command, spec, groups) for spec in kind.options()), config]


def _parameter(command: str, spec: Option, groups: dict[str, cloup.OptionGroup]) -> click.Parameter:
    rules = spec.rules
    more: dict[str, Any] = {"shell_complete": complete_path} if rules.is_path else {}
    if rules.group is None:
        return click.Argument(
            [spec.name],
            metavar=rules.metavar,
            nargs=-1 if spec.is_many else 1,
            required=True,
            envvar=f"MNIST_RAY_{command}_{spec.name}".upper(),
            help=rules.help,
            **more,
        )
    if not spec.is_required and not spec.is_optional:  # an explicit None would count as a value
        more |= {"default": spec.default, "show_default": spec.type is not bool}
    if rules.unset:
        more["show_default"] = rules.unset
    if spec.type is bool:
        more["is_flag"] = True  # an explicit False would let click leave the value of any other option out
    return Parameter(
        [flag(spec.name)],
        type=click.Choice(rules.choices) if rules.choices else spec.type,
        required=spec.is_required,
        metavar=rules.metavar,
        help=rules.help,
        group=groups.setdefault(rules.group, cloup.OptionGroup(str(rules.group))),
        **more,
    )


def complete_path(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Let the shell complete names of files and folders."""
    return [CompletionItem(incomplete, type="file")]


def _read_config(ctx: click.Context, _: click.Parameter, path: str | None) -> str | None:
    """Make the file's values this command's defaults. An unknown name is an error that suggests a known one."""
    command = str(ctx.info_name)
    known = [str(param.name) for param in ctx.command.params if param.name != "config"]
    prefix = f"MNIST_RAY_{command.upper()}_"
    set_names = (name for name in os.environ if name.startswith(prefix))
    _refuse_unknown("environment", set_names, [prefix + name.upper() for name in [*known, "config"]])
    if path is None:
        return None
    try:
        content = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise InputError(f"cannot read --config {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"--config {path} is not TOML: {error}") from error
    ctx.default_map = _values_for(ctx, path, content)
    for param in ctx.command.params:
        if param.name in ctx.default_map and not _fits(param, value := ctx.default_map[param.name]):
            what = "a list of texts" if param.nargs == -1 else f"of type {param.type.name}"
            raise InputError(f"{path}: {param.name} must be {what}, not {value!r}")
    return path


def _values_for(ctx: click.Context, path: str, content: dict[str, Any]) -> dict[str, Any]:
    """The values of a file that are for this command, by name: at the top level, or in its table.

    Others may be for other commands, which read the same file. A name that no command has is an error.
    """
    command, group = str(ctx.info_name), ctx.find_root().command
    commands = group.commands if isinstance(group, click.Group) else {command: ctx.command}
    options = {
        name: [str(param.name) for param in each.params if param.name != "config"]
        for name, each in commands.items()
        if any(param.name == "config" for param in each.params)
    }
    tables = {key: value for key, value in content.items() if isinstance(value, dict)}
    _refuse_unknown(path, tables, list(options), what="table")
    for name, table in tables.items():
        _refuse_unknown(f"{path}: [{name}]", (key.replace("-", "_") for key in table), options[name])
    shared = {key.replace("-", "_"): value for key, value in content.items() if key not in tables}
    _refuse_unknown(path, shared, list(dict.fromkeys(itertools.chain(options[command], *options.values()))))
    own = {key.replace("-", "_"): value for key, value in tables.get(command, {}).items()}
    return {key: value for key, value in shared.items() if key in options[command]} | own


def _fits(param: click.Parameter, value: Any) -> bool:
    """Whether a TOML value has the option's type; click itself would cut 2.5 to 2 and take true for 1."""
    if param.nargs == -1:
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    if isinstance(value, bool) or param.type is click.BOOL:
        return isinstance(value, bool) and param.type is click.BOOL
    return isinstance(value, (str, int) if param.type is click.INT else (str, int, float))


def _refuse_unknown(where: str, names: Iterable[str], known: Sequence[str], what: str = "option") -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
            raise InputError(f"{where}: unknown {what} {name}; {hint}")
