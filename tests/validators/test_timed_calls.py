"""How runs are timed on a GPU and off it, with runners that need none."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from compressor.errors import RankfoldError, ResourceError, RuntimeFailure
from validators.timed_calls import BOUND, COPIED, PLAIN, REPLAYED, timed_calls


class Plain:
    """A runner."""

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> str:
        return "plain"


class Bound(Plain):
    """A runner on a GPU, whose run can be recorded or not."""

    def __init__(self, name: str, *, recorded: bool) -> None:
        self.name, self.recorded = name, recorded

    def bound(self, inputs: Mapping[str, np.ndarray], *, replayed: bool = False) -> Callable[[], str]:
        if replayed and not self.recorded:
            raise RuntimeFailure("a part of it runs on the CPU")
        return lambda: f"{self.name} {'replayed' if replayed else 'bound'}"


def test_on_the_cpu_arrays_go_in_and_come_out() -> None:
    way, calls = timed_calls([Bound("a", recorded=True)], {}, on_gpu=False)
    assert (way, calls[0]()) == (PLAIN, "plain")


def test_on_a_gpu_nothing_is_copied_and_all_are_replayed_or_none() -> None:
    both, one = [Bound("a", recorded=True), Bound("b", recorded=True)], Bound("c", recorded=False)
    way, calls = timed_calls(both, {}, on_gpu=True)
    assert (way, [call() for call in calls]) == (REPLAYED, ["a replayed", "b replayed"])
    way, calls = timed_calls([both[0], one], {}, on_gpu=True)
    assert (way, [call() for call in calls]) == (BOUND, ["a bound", "c bound"])


@pytest.mark.parametrize("error", [RuntimeFailure("an input is empty"), ResourceError("it does not fit twice")])
def test_where_binding_fails_the_runs_are_timed_with_their_copies(error: RankfoldError) -> None:
    class Unbound(Plain):
        def bound(self, inputs: Mapping[str, np.ndarray], *, replayed: bool = False) -> Callable[[], str]:
            raise error

    way, calls = timed_calls([Bound("a", recorded=True), Unbound()], {}, on_gpu=True)
    assert (way, [call() for call in calls]) == (COPIED, ["plain", "plain"])


def test_a_runner_that_cannot_bind_is_timed_with_its_copies_and_so_is_the_other() -> None:
    way, calls = timed_calls([Bound("a", recorded=True), Plain()], {}, on_gpu=True)
    assert (way, [call() for call in calls]) == (COPIED, ["plain", "plain"])
