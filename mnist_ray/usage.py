"""click's errors in our words: what is wrong, and what to do."""

from __future__ import annotations

import re

import click

_TYPES = {click.INT: "a whole number", click.FLOAT: "a number", click.BOOL: "true or false"}
_VALUE = re.compile(r"'.*' (?=is not )", re.DOTALL)  # at the beginning of a BadParameter's message


def usage_problem(error: click.ClickException) -> str:
    """One line for a wrong command line, environment or configuration file."""
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    command, see_help = (ctx.info_name, f"; try {ctx.command_path} --help") if ctx else ("mnist-ray", "")
    match error:
        case click.NoSuchOption():
            return f"there is no option {error.option_name}{_near(error.possibilities) or see_help}"
        case click.exceptions.NoSuchCommand():
            return f"there is no command {error.command_name}{_near(error.possibilities) or see_help}"
        case click.MissingParameter():
            return f"{command} needs {_name(error)}{see_help}"
        case click.BadParameter():
            return _bad_value(error)
        case click.BadOptionUsage() if "requires an argument" in error.message:
            return f"{error.option_name} needs a value; the command's --help describes it"
        case click.BadOptionUsage() if "does not take a value" in error.message:
            return f"{error.option_name} is a switch and takes no value; leave the = out"
        case click.UsageError() if error.message.startswith("Got unexpected extra argument"):
            surplus = error.message.partition("(")[2].rstrip(").")
            return f"{command} does not take {surplus!r}{see_help}"
    return error.format_message().rstrip(".") + see_help


def _near(possibilities: list[str] | None) -> str:
    return f"; did you mean {possibilities[0]}?" if possibilities else ""


def _name(error: click.BadParameter) -> str:
    """The parameter as a user writes it."""
    if error.param is None:
        return str(error.param_hint)
    return error.param.opts[0] if isinstance(error.param, click.Option) else error.param.human_readable_name


def _bad_value(error: click.BadParameter) -> str:
    found = _VALUE.match(error.message)
    kind = error.param.type if error.param else None
    if found is None or kind is None:
        return f"{_name(error)}: {error.message.rstrip('.')}"
    must = f"one of {', '.join(kind.choices)}" if isinstance(kind, click.Choice) else _TYPES.get(kind, "another value")
    return f"{_name(error)} must be {must}, not {found[0].strip()}"
