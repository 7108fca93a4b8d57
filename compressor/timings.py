"""What layers take on a runtime: a curve over ranks for each shape, timed once and kept in the user's cache folder.

Nothing here imports torch.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from filelock import FileLock

from compressor import progress
from compressor.concave import concave_slopes
from compressor.files import write_json

SCHEMA_VERSION = 1
POINTS = 12  # ranks at which a shape is timed; times between them are interpolated
Times = dict[str, float]  # microseconds by rank as text, and of the dense layer as DENSE
DENSE = "dense"


@dataclass(frozen=True)
class Site:
    """One call of a layer: all that its time depends on beside its rank."""

    out_features: int
    in_features: int
    inputs: tuple[int, ...]  # shape of what it is given: (..., in_features), or (B, channels, *sizes)
    bias: bool
    kernel: tuple[int, ...] = ()  # of a convolution, as what follows; a linear layer has none
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()  # zeros before every axis, then after every axis

    def __str__(self) -> str:
        text = f"{self.out_features}x{self.in_features} on {_by(self.inputs)}{' with bias' if self.bias else ''}"
        if not self.kernel:
            return text
        return f"{text}, {_by(self.kernel)} by {_by(self.strides)} over {_by(self.dilations)} in {_by(self.pads)}"


def _by(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


class Timer(Protocol):
    """Times layers on one runtime in one precision."""

    @property
    def label(self) -> str:
        """Runtime with its version, precision and threads: what times depend on beside the site and the CPU."""
        ...

    def __call__(self, site: Site, ranks: Sequence[int]) -> list[float]:
        """Microseconds of the dense layer, then of two factors of each rank; all of them took turns."""
        ...


@dataclass(frozen=True)
class Curve:
    """Microseconds of one call over ranks, made monotone by isotonic regression; straight lines in between."""

    ranks: tuple[int, ...]  # ascending
    times: tuple[float, ...]  # as measured
    dense: float

    @cached_property
    def rising(self) -> list[float]:
        """The non-decreasing times that are next to those measured, by least squares."""
        return [-slope for slope in concave_slopes([-time for time in self.times], [1.0] * len(self.times))]

    def at(self, rank: int | None) -> float:
        """Microseconds at a rank; of the dense layer where there is none."""
        if rank is None:
            return self.dense
        return float(np.interp(rank, self.ranks, self.rising))


def ladder(limit: int, multiple_of: int, points: int = POINTS) -> list[int]:
    """At most `points` multiples below `limit`, the lowest and the highest among them; never none."""
    count = (limit - 1) // multiple_of
    if count < 1:
        return [max(1, limit - 1)]
    spread = min(points, count) - 1
    return [multiple_of * (1 + round(place * (count - 1) / max(spread, 1))) for place in range(spread + 1)]


def curves(ranks: Mapping[Site, Sequence[int]], timer: Timer, cpu: str, path: Path | None = None) -> dict[Site, Curve]:
    """A curve for every site, over the ranks named for it; those that the cache lacks are timed and put there.

    A site of which one rank is missing is timed as a whole: what takes turns shares the machine's mood.
    """
    cache = Cache(path or default_path())
    known = cache.read()
    keys = {site: f"{timer.label} | {cpu} | {site}" for site in ranks}
    lacking = [site for site in ranks if not _covers(known.get(keys[site]), ranks[site])]
    for site in progress.track(lacking, "timing layers"):
        dense, *times = timer(site, ranks[site])
        known[keys[site]] = {DENSE: dense, **{str(rank): time for rank, time in zip(ranks[site], times, strict=True)}}
        cache.add(keys[site], known[keys[site]])
    return {site: _curve(known[keys[site]], found) for site, found in ranks.items()}


def _covers(times: Times | None, ranks: Iterable[int]) -> bool:
    return times is not None and {DENSE, *map(str, ranks)} <= times.keys()


def _curve(times: Times, ranks: Sequence[int]) -> Curve:
    return Curve(tuple(ranks), tuple(times[str(rank)] for rank in ranks), times[DENSE])


def default_path() -> Path:
    """`rankfold/timings.json` under $XDG_CACHE_HOME, or under ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "rankfold" / "timings.json"


@dataclass(frozen=True)
class Cache:
    """Times by what they depend on, in one file that several processes may add to."""

    path: Path

    def read(self) -> dict[str, Times]:
        """All that is known; nothing where there is no file. One that cannot be read is set aside, and said."""
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
            return _checked(data)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            aside = self.path.with_name(f"{self.path.name}.broken")
            progress.note(
                f"{self.path} cannot be read ({error}); it is set aside as {aside.name}, layers are timed anew."
            )
            with suppress(OSError):
                self.path.replace(aside)
            return {}

    def add(self, key: str, times: Times) -> None:
        """Write one entry beside those that are there; a folder that cannot be written only costs the next run time."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_name(f".{self.path.name}.lock")):
                write_json(self.path, {"schema_version": SCHEMA_VERSION, "microseconds": {**self.read(), key: times}})
        except OSError as error:
            progress.note(f"The times of layers cannot be kept in {self.path}: {error}. The next run times them again.")


def _checked(data: Any) -> dict[str, Times]:
    """The entries of the file's JSON.

    Raises:
        ValueError: it is not what `add` writes.
    """
    entries = data.get("microseconds") if isinstance(data, dict) else None
    if not isinstance(entries, dict) or data.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"no times of schema version {SCHEMA_VERSION}")
    for key, times in entries.items():
        whole = isinstance(times, dict) and all(isinstance(time, int | float) for time in times.values())
        if not whole or not all(math.isfinite(time) and time > 0 for time in times.values()):
            raise ValueError(f"no times under {key!r}")
    return entries
