"""Command lines from frozen dataclasses of options; a wrong one ends with a line that says what to do."""

import dataclasses
import io
import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any, NoReturn, TypeVar

import torch
import tyro

T = TypeVar("T")
PICTURES = (".png", ".pdf", ".svg")
UNBOUNDED = ("seed", "seeds", "weight_decay")  # numbers that `sound` does not take for sizes


class OptionError(Exception):
    """A wrong value of an option; no ValueError, of which tyro would make a frame of several lines."""


def parse(kind: type[T], arguments: Sequence[str] | None = None, *, description: str | None = None) -> T:
    """The options of a command line, by default this process's.

    A field ``weight_decay: float = 0.0`` is the option ``--weight-decay``, the comment behind it its help. An
    OptionError of ``__post_init__`` ends the process with its line and exit code 2, and so does what tyro refuses.
    """
    said = io.StringIO()
    with refusing():
        try:
            with redirect_stderr(said):
                return tyro.cli(kind, args=arguments, description=description, config=(tyro.conf.FlagCreatePairsOff,))
        except SystemExit as end:
            if end.code:
                refuse(unboxed(said.getvalue()))
            raise


def unboxed(text: str) -> str:
    r"""A line of what tyro says in a frame, its only public form: each part up to its first empty line.

    Example:
        >>> print(unboxed("╭─ Error ─╮\n│ Not --x. │\n│ ──────── │\n│ Only --y │\n│ ──────── │\n│ See help │\n╰─────╯"))
        Not --x; Only --y; --help says more
    """
    lines = [line.strip("│| ") for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()[1:-1]]
    parts = [part.strip().split("\n\n")[0] for part in re.split(r"^[─-]+$", "\n".join(lines), flags=re.MULTILINE)]
    told = [" ".join(part.split()).rstrip(".") for part in parts if part]
    return "; ".join([*told[:-1], "--help says more"])  # the last part says so too, in more words


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


def sound(options: Any) -> None:  # noqa: ANN401 -- any dataclass
    """Checks fields by what they hold, so that a script need only name what is special about its own.

    Numbers must be positive, ``weight_decay`` may be zero, a seed is any; lists that have values by default need one;
    ``device`` must be usable, ``out`` and ``record`` writable.

    Raises:
        OptionError: A field is not so.
    """
    for field in dataclasses.fields(options):
        name, value = field.name, getattr(options, field.name)
        if value == () != field.default:
            raise OptionError(f"{option(name)} needs a value or more; got none")
        if name not in UNBOUNDED and any(type(part) in (int, float) for part in parts_of(value)):
            positive(options, name)
    for name, check in (("weight_decay", not_negative), ("device", usable), ("out", writable), ("record", writable)):
        if hasattr(options, name):
            check(options, name)


def parts_of(value: object) -> tuple[Any, ...]:
    """What a field holds: nothing, one thing, or several."""
    return () if value is None else value if isinstance(value, tuple) else (value,)


def positive(options: object, *names: str) -> None:
    """Checks fields, None aside.

    Raises:
        OptionError: One, or a part of one, is not above zero.
    """
    for name in names:
        for value in parts_of(getattr(options, name)):
            if not value > 0:
                raise OptionError(f"{option(name)} must be positive; got {value}")


def not_negative(options: object, *names: str) -> None:
    """Checks fields.

    Raises:
        OptionError: One is below zero.
    """
    for name in names:
        value = getattr(options, name)
        if not value >= 0:
            raise OptionError(f"{option(name)} must not be negative; got {value}")


def at_least(options: object, least: int, *names: str) -> None:
    """Checks fields.

    Raises:
        OptionError: One is below.
    """
    for name in names:
        value = getattr(options, name)
        if value < least:
            raise OptionError(f"{option(name)} must be at least {least}; got {value}")


def fractions(options: object, *names: str) -> None:
    """Checks fields of one or several values.

    Raises:
        OptionError: One does not lie between zero and one.
    """
    for name in names:
        for value in parts_of(getattr(options, name)):
            if not 0 < value < 1:
                raise OptionError(f"{option(name)} must be in (0, 1); got {value}")


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
        device = torch.device(value)
    except RuntimeError:
        raise OptionError(f"{option(name)} must be a device of torch, such as cpu or cuda; got {value}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise OptionError(f"{option(name)} {value} needs a GPU that torch can use, and there is none: use cpu")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise OptionError(f"{option(name)} must be of cuda:0 to cuda:{count - 1}; got {value}")
    if device.type not in ("cpu", "cuda"):
        try:
            torch.empty(0, device=device).cpu()
        except (RuntimeError, AssertionError):
            raise OptionError(f"{option(name)} {value} is no device that torch can use here: use cpu") from None


def writable(options: Any, name: str = "out") -> None:  # noqa: ANN401 -- any dataclass
    """Checks a field that names what is written to, None aside: a picture or a folder, as its default; else a file.

    Raises:
        OptionError: It is of the other kind, a picture of no known kind, or what it would be in takes no files.
    """
    path, default = getattr(options, name), type(options).__dataclass_fields__[name].default
    if path is None:
        return
    folder, picture = default is not None and not default.suffix, default is not None and default.suffix in PICTURES
    if path.exists() and path.is_dir() != folder:
        there, needed = ("file", "folder") if folder else ("folder", "file")
        raise OptionError(f"{option(name)} {path} is a {there}: give a {needed}")
    if picture and path.suffix not in PICTURES:
        raise OptionError(f"{option(name)} must end with {', '.join(PICTURES)}; got {path}")
    there = next(place for place in (path, *path.parents) if place.exists())
    if there != path and not there.is_dir():
        raise OptionError(f"{option(name)} {path} is in {there}, which is a file: give a path in a folder")
    if not os.access(there, os.W_OK):
        raise OptionError(f"{option(name)} {path} needs {there}, which may not be written: give another path")


def option(name: str) -> str:
    """The option of a field."""
    return f"--{name.replace('_', '-')}"
