"""Progress on stderr, never on stdout: stages with their durations, bars over long loops, notes.

Silent until the command line (or a user) calls `set_level`, so library code may call these functions freely.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

from compressor.errors import interrupted

if TYPE_CHECKING:
    from rich.console import Console

Level = Literal["off", "normal", "verbose"]
Item = TypeVar("Item")

QUIET_SECONDS = 2.0  # a loop shorter than this says nothing in a log
LOG_SECONDS = 10.0  # at most one line in so many seconds in a log

_level: Level = "off"
_told: set[str] = set()


def set_level(level: Level) -> None:
    """Choose how much is said: nothing, stages and bars and notes, or the `detail` notes too.

    Raises:
        ValueError: there is no such level.
    """
    global _level
    if level not in get_args(Level):
        raise ValueError(f"'{level}' is no level; allowed are {', '.join(get_args(Level))}.")
    _level = level


def level() -> Level:
    """The level in force."""
    return _level


def note(text: str, *, once: bool = False) -> None:
    """One line of information, from level normal on; `once` where it comes up again and again in a run."""
    if _level == "off" or (once and text in _told):
        return
    if once:
        _told.add(text)
    _write(text)


def forget() -> None:
    """A new run begins: what was told once is told again."""
    _told.clear()


def detail(text: str) -> None:
    """One line of information, at level verbose only."""
    if _level == "verbose":
        _write(text)


@contextmanager
def stage(title: str) -> Iterator[None]:
    """Say that a stage begins, and how long it took (seconds) when it ends or fails."""
    note(f"{title} ...")
    start, outcome = time.monotonic(), "failed after"
    try:
        yield
        outcome = "done in"
    except BaseException as error:
        outcome = "interrupted after" if interrupted(error) else outcome
        raise
    finally:
        note(f"{title}: {outcome} {seconds(time.monotonic() - start)}")


def track(iterable: Iterable[Item], title: str, total: int | None = None) -> Iterator[Item]:
    """The same items, with a bar on a terminal or now and then a line in a log; `total` defaults to `len(iterable)`."""
    if _level == "off":
        return iter(iterable)
    total = len(iterable) if total is None and isinstance(iterable, Sized) else total
    return _bar(iterable, title, total) if sys.stderr.isatty() else _lines(iterable, title, total)


def seconds(value: float) -> str:
    """A duration for people: `0.8 s`, `42 s`, `3 min 05 s`."""
    if value < 60:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s"


def _bar(iterable: Iterable[Item], title: str, total: int | None) -> Iterator[Item]:
    from rich.progress import track as rich_track

    yield from rich_track(iterable, title, total=total, console=_console(), transient=True)


@cache
def _console() -> Console:
    """One for all bars, so that one inside another stands below it."""
    from rich.console import Console

    return Console(stderr=True)


def _lines(iterable: Iterable[Item], title: str, total: int | None) -> Iterator[Item]:
    start = said = time.monotonic()
    done, spoke, of = 0, False, "" if total is None else f"/{total}"
    for item in iterable:
        yield item
        done += 1
        now = time.monotonic()
        if now - said >= (LOG_SECONDS if spoke else QUIET_SECONDS):
            note(f"  {title}: {done}{of}, {seconds(now - start)}")
            said, spoke = now, True
    if spoke:
        note(f"  {title}: {done}{of} done in {seconds(time.monotonic() - start)}")


def _write(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
