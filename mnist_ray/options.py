"""What an option is: its help, unit, bounds and group, and the check of its value. `config.py` lists the options."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from enum import StrEnum
from math import isinf
from numbers import Integral, Real
from operator import ge, gt, le, lt
from types import NoneType
from typing import Any, NamedTuple, TypeVar, dataclass_transform, get_args, get_origin, get_type_hints

from mnist_ray.errors import InputError

T = TypeVar("T")

PathOrUri = str | os.PathLike[str]
"""A path or a URI."""


class Group(StrEnum):
    """The headings of --help, in their order."""

    REQUIRED = "Required options"
    DATA = "Data"
    RUN = "Run"
    MODEL = "Model"
    TRAINING = "Training"
    RECOVERY = "Checkpoints and failures"
    OUTPUT = "Output"
    RESOURCES = "Resources"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What users must know about an option, and what its values must fulfil.

    `low` and `high` include the bound, `above` and `below` exclude it. `unset` describes what happens without a value.
    """

    help: str
    group: Group | None = None
    """None: a positional argument."""
    unset: str | None = None
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] | None = None
    metavar: str | None = None
    is_path: bool = False
    """Whether a shell completes file names."""
    changes_result: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raise InputError unless the value is within the bounds, finite and one of the choices. None is allowed."""
        if value is None:
            return
        bounds = (
            (self.low, "at least", ge),
            (self.high, "at most", le),
            (self.above, "more than", gt),
            (self.below, "less than", lt),
        )
        for bound, words, holds in bounds:
            if bound is not None and not holds(value, bound):
                raise InputError(f"{flag(name)} must be {words} {bound}, not {value}")
        if isinstance(value, float) and isinf(value):
            raise InputError(f"{flag(name)} must be finite, not {value}")
        if self.choices and value not in self.choices:
            raise InputError(f"{flag(name)} must be one of {', '.join(self.choices)}, not {value!r}")


def option(default: Any, help: str, *, group: Group, **rules: Any) -> Any:  # noqa: A002 - click's word for it
    """A field that is an option of the command line. `rules` are further fields of Rules."""
    return field(default=default, metadata={"rules": Rules(help=help, group=group, **rules)})


def required(help: str, **rules: Any) -> Any:  # noqa: A002
    """A field that is an option without a default."""
    return field(metadata={"rules": Rules(help=help, group=Group.REQUIRED, **rules)})


def argument(help: str, *, metavar: str, kw_only: bool, **rules: Any) -> Any:  # noqa: A002
    """A field that is a positional argument. kw_only is False, which type checkers read where this is called."""
    return field(kw_only=kw_only, metadata={"rules": Rules(help=help, metavar=metavar, **rules)})


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(required, argument))
def configuration(cls: type[T]) -> type[T]:
    """Decorate a class of options as a frozen dataclass, of which type checkers know what is required."""
    return dataclass(frozen=True, kw_only=True)(cls)


_PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]*@|://\S*[?&][^=&\s]*(password|secret|token|signature|account_key)=", re.I)
"""Before the host of a URI, or in its query."""

_WORDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}


class Option(NamedTuple):
    """A field of a configuration, as the command line needs it."""

    name: str
    type: type
    """bool, int, float or str: of the value, or of each value where there are many."""
    is_optional: bool
    """Whether None is a value: no default is shown, only `rules.unset`."""
    is_many: bool
    takes_numbers: bool
    """Whether a number does for the text, as in `num_workers=2`."""
    default: Any
    """MISSING where a value is required."""
    rules: Rules

    @property
    def title(self) -> str:
        """As the user types it."""
        return flag(self.name) if self.rules.group else str(self.rules.metavar).rstrip(".")

    @property
    def is_required(self) -> bool:
        return self.default is MISSING

    def value(self, given: Any) -> Any:
        """What the command line would make of a value: a path is text, one of many a tuple. Raises InputError where
        its type is not the option's."""
        if given is None and self.is_optional:
            return None
        if self.is_many:
            each = [given] if isinstance(given, str | os.PathLike) else given if isinstance(given, Sequence) else None
            if not each:
                raise self._is_not("text, a path, or several", given)
            return tuple(map(self._one, each))
        return self._one(given)

    def _one(self, given: Any) -> Any:
        if self.type is str:
            if self.rules.is_path and isinstance(given, os.PathLike):
                given = os.fspath(given)
            if self.takes_numbers and isinstance(given, Real) and given is not True and given is not False:
                given = str(given)
            if isinstance(given, str):
                return str(given)
        elif self.type is bool or isinstance(given, bool):
            if self.type is type(given):
                return given
        elif isinstance(given, Integral if self.type is int else Real):  # numpy's, too
            return self.type(given)
        raise self._is_not(_WORDS[self.type], given)

    def _is_not(self, what: str, given: Any) -> InputError:
        is_short = isinstance(given, str | bool | int | float | NoneType)
        return InputError(
            f"{self.title} must be {what}, not {repr(given) if is_short else f'a {type(given).__name__}'}"
        )


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base class of all configurations. Checks the values against the types and the rules of their fields."""

    def __post_init__(self) -> None:
        for spec in _options(type(self)):
            object.__setattr__(self, spec.name, value := spec.value(getattr(self, spec.name)))
            for each in value if isinstance(value, tuple) else (value,):
                refuse_password(spec.title, each)  # first, as other messages repeat the value
            spec.rules.check(spec.name, value)

    @classmethod
    def options(cls) -> Iterator[Option]:
        """The fields in the order of --help: positional arguments, then by group, the class's own first."""
        order = [None, *Group]

        def place(spec: Option) -> tuple[int, bool]:
            return order.index(spec.rules.group), spec.name not in cls.__annotations__

        yield from sorted(_options(cls), key=place)

    def written_to(self) -> tuple[str, str] | None:
        """The option that says where the command writes, and the folder; None where there is no such option."""
        return None

    def fingerprint(self) -> dict[str, Any]:
        """The values that change the result. Workers, addresses and failure budgets are not among them."""
        return {spec.name: getattr(self, spec.name) for spec in fields(self) if spec.metadata["rules"].changes_result}


def _options(cls: type[Options]) -> tuple[Option, ...]:
    """The fields of a configuration, in their order."""
    hints = get_type_hints(cls)
    return tuple(_option(spec, get_args(hints[spec.name]) or (hints[spec.name],)) for spec in fields(cls))


def _option(spec: Field[Any], types: tuple[Any, ...]) -> Option:
    """types: those that the field takes, the command line's first."""
    return Option(
        name=spec.name,
        type=types[0],
        is_optional=NoneType in types,
        is_many=any(get_origin(each) is Sequence for each in types),
        takes_numbers=types[0] is str and not {int, float}.isdisjoint(types),
        default=spec.default,
        rules=spec.metadata["rules"],
    )


def refuse_password(name: str, value: Any) -> None:
    """Raise InputError where a value has a password of a URI: options are kept with the results, and shown."""
    if isinstance(value, str) and _PASSWORD.search(value):
        raise InputError(
            f"{name} with a password would be stored and shown; put it into the environment", see="errors.md#passwords"
        )


def flag(name: str) -> str:
    """The option as the user types it: `batch_size` → `--batch-size`."""
    return "--" + name.replace("_", "-")
