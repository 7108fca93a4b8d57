"""Progress: silent until asked, never on stdout, and one line now and then in a log."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from compressor import progress


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    progress.set_level("off")
    yield
    progress.set_level("off")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that each reading of the clock takes; the test fills in one number."""
    step, now = [0.0], [0.0]

    def monotonic() -> float:
        now[0] += step[0]
        return now[0]

    monkeypatch.setattr(progress.time, "monotonic", monotonic)
    return step


def test_a_library_user_hears_nothing(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    clock[0] = 60
    with progress.stage("Work"):
        assert list(progress.track(range(3), "items")) == [0, 1, 2]
    progress.note("note")
    assert capsys.readouterr() == ("", "")


def test_a_stage_says_how_long_it_took(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    progress.set_level("normal")
    clock[0] = 185
    with progress.stage("Work"):
        pass
    assert capsys.readouterr() == ("", "Work ...\nWork: done in 3 min 05 s\n")


def test_a_stage_that_raises_says_that_it_failed(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    progress.set_level("normal")
    clock[0] = 1
    with pytest.raises(ValueError, match="wrong"), progress.stage("Work"):
        raise ValueError("wrong")
    assert capsys.readouterr().err.endswith("Work: failed after 1.0 s\n")


def test_a_short_loop_says_nothing_in_a_log(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    progress.set_level("normal")
    clock[0] = 0.1
    assert len(list(progress.track(range(10), "items"))) == 10
    assert capsys.readouterr() == ("", "")


def test_a_long_loop_speaks_every_ten_seconds_and_at_its_end(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    progress.set_level("normal")
    clock[0] = 1
    list(progress.track((number for number in range(25)), "items", total=25))
    lines = capsys.readouterr().err.splitlines()
    assert [line.strip() for line in lines] == [
        "items: 2/25, 2.0 s",
        "items: 12/25, 12 s",
        "items: 22/25, 22 s",
        "items: 25/25 done in 26 s",
    ]


def test_details_are_for_verbose_only(capsys: pytest.CaptureFixture[str]) -> None:
    for level in ("off", "normal", "verbose"):
        progress.set_level(level)  # type: ignore[arg-type]
        progress.detail(f"detail at {level}")
    assert capsys.readouterr().err == "detail at verbose\n"


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    progress.set_level("normal")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert list(progress.track(range(3), "items")) == [0, 1, 2]
    assert capsys.readouterr().out == ""


def test_a_loop_inside_another_has_a_bar_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    progress.set_level("normal")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert [list(progress.track(range(2), "inner")) for _ in progress.track(range(2), "outer")] == [[0, 1]] * 2
    assert capsys.readouterr().out == ""


def test_what_is_told_once_is_told_again_in_another_run(capsys: pytest.CaptureFixture[str]) -> None:
    progress.forget()
    progress.note("wide", once=True)  # at level off nobody has heard it
    progress.set_level("normal")
    for _ in range(2):
        progress.note("wide", once=True)
    progress.note("other", once=True)
    assert capsys.readouterr().err == "wide\nother\n"
    progress.forget()
    progress.note("wide", once=True)
    assert capsys.readouterr().err == "wide\n"
