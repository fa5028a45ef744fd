"""Command lines from frozen dataclasses of options; a wrong one ends with a line that says what to do."""

import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn, TypeVar

import torch
import tyro

T = TypeVar("T")


class OptionError(Exception):
    """A wrong value of an option; no ValueError, of which tyro would make a frame of several lines."""


def parse(kind: type[T], arguments: Sequence[str] | None = None, *, description: str | None = None) -> T:
    """The options of a command line, by default this process's.

    A field ``weight_decay: float = 0.0`` is the option ``--weight-decay``, the comment behind it its help. An
    OptionError of ``__post_init__`` ends the process with its line and exit code 2.
    """
    with refusing():
        return tyro.cli(kind, args=arguments, description=description, config=(tyro.conf.FlagCreatePairsOff,))


@contextmanager
def refusing() -> Iterator[None]:
    """Ends the process with a line where an option is wrong, or what it names cannot be used."""
    try:
        yield
    except (OptionError, ValueError, OSError, ImportError) as error:
        refuse(str(error))


def refuse(message: str) -> NoReturn:
    """Ends the process with this line and exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def positive(options: object, *names: str) -> None:
    """Checks fields, None aside.

    Raises:
        OptionError: One is not above zero.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise OptionError(f"{option(name)} must be positive; got {value}")


def among(options: object, name: str, choices: Collection[str]) -> None:
    """Checks a field of several values.

    Raises:
        OptionError: There is none, or one is not among the choices.
    """
    values = getattr(options, name)
    if not values or (unknown := [value for value in values if value not in choices]):
        got = ", ".join(unknown) if values else "none"
        raise OptionError(f"{option(name)} must be of {', '.join(choices)}; got {got}")


def usable(options: object, name: str = "device") -> None:
    """Checks a field that names a device of torch.

    Raises:
        OptionError: There is none of this name here.
    """
    value = getattr(options, name)
    try:
        kind = torch.device(value).type
    except RuntimeError:
        raise OptionError(f"{option(name)} must be a device of torch, such as cpu or cuda; got {value}") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise OptionError(f"{option(name)} {value} needs a GPU that torch can use, and there is none: use cpu")


def option(name: str) -> str:
    """The option of a field."""
    return f"--{name.replace('_', '-')}"
