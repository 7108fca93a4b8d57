"""Tables and the page of results from a few rows that are made up."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import export_tables
import overview
import plots
import pytest
import report
import results
import tables

from compressor.errors import InputError

MACHINE = {"machine": {"cpu": "one"}, "threads": 1, "model": "tiny", "rows": {"train": 10, "measured": 20}}


def row(arm: str, budget: float, seed: int, accuracy: float, **fields: Any) -> dict[str, Any]:
    base = {"phase": "final", "suite": "trec", "arm": arm, "budget": budget, "seed": seed, "accuracy": accuracy}
    cost = {"trainable": 1000, "seconds": 60.0, "final_loss": 0.5, "epochs": 3, "kept": budget, "before_training": 0.4}
    memory = {"training_bytes": {"peak": 2_000_000, "teacher": 1_000_000, "rows": 32}}
    return base | cost | memory | MACHINE | fields


ROWS = [
    row("jactus", 0.5, 1, 0.93),
    row("jactus", 0.5, 0, 0.95),
    row("svdllm-lora", 0.5, 0, 0.97),
    row("dense", 1.0, 0, 0.96),
    row("jactus", 0.5, 0, 0.2, phase="select"),
    row("jactus", 0.5, 0, 0.1, suite="elsewhere"),
]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def table(rows: list[dict[str, Any]], suite: str = "trec") -> dict[str, list[str]]:
    head, _, *lines = tables.compared(tables.summaries(rows, suite))
    return {found[0]: found for found in map(cells, [head, *lines])}


def test_a_cell_has_the_mean_the_deviation_and_the_number_of_seeds() -> None:
    found = table(ROWS)["JACTUS (R4)"]
    mean, deviation = statistics.mean([0.95, 0.93]), statistics.stdev([0.95, 0.93])
    assert found[1:3] == ["50%", f"{mean:.4f} ± {deviation:.4f} (2)"]
    assert found[5:] == ["0.500", "3 MB", "1.0"]  # weights of the teacher included


def test_memory_of_a_batch_that_was_not_full_is_left_out() -> None:
    cut = row("cersa", 0.5, 0, 0.9, training_bytes={"peak": 1_000_000})
    assert table([*ROWS, cut])["CERSA"][6] == "-"


def test_only_arms_of_the_same_seeds_and_machine_are_held_against_each_other() -> None:
    others = [row("jactus-corrected", 0.5, 5, 0.99), row("cersa", 0.5, 0, 0.98) | {"gpu": "a card"}]
    found = table([*ROWS, row("svdllm-lora", 0.5, 1, 0.90), *others])
    assert [name for name, cells in found.items() if "**" in cells[2]] == ["JACTUS (R4)"]
    alone = table([ROWS[0], ROWS[3]])
    assert not any("**" in cells[2] for cells in alone.values())


def test_a_star_is_on_what_was_trained_at_two_rates() -> None:
    found = table([ROWS[0] | {"learning_rate": 1e-3}, ROWS[1] | {"learning_rate": 2e-3}, *ROWS[2:]])
    assert "JACTUS (R4)*" in found
    assert "full fine-tuning" in found


def test_a_rival_that_is_ahead_is_what_is_bold() -> None:
    found = table([*ROWS, row("svdllm-lora", 0.5, 1, 0.97)])
    assert found["SVD-LLM, LoRA 16 on both factors"][2] == "**0.9700 ± 0.0000 (2)**"
    assert "**" not in found["JACTUS (R4)"][2] + found["full fine-tuning"][2]


def test_an_arm_without_a_row_is_left_out() -> None:
    assert set(table(ROWS)) == {"arm", "full fine-tuning", "SVD-LLM, LoRA 16 on both factors", "JACTUS (R4)"}


def test_the_best_perplexity_is_the_lowest_and_nothing_is_said_of_training_that_was_not() -> None:
    def untrained(arm: str, perplexity: float) -> dict[str, Any]:
        found = row(arm, 0.5, 0, 0.0, perplexity=perplexity, epochs=0, training_bytes=None)
        return {key: value for key, value in found.items() if key not in ("accuracy", "final_loss", "seconds")}

    found = table([untrained("svdllm", 156.2), untrained("gfwsvd", 107.8), untrained("dense", 22.8)])
    assert found["arm"] == ["arm", "kept", "perplexity (seeds)"]
    assert found["GFWSVD"][2] == "**108 (1)**"
    assert found["dense"][2] == "22.8 (1)"


def test_each_of_several_sets_has_a_column() -> None:
    rows = [row("jactus", 0.5, 0, 0.5, sets={"arc_easy": 0.6, "piqa": 0.4})]
    head, _, line = tables.by_set(tables.summaries(rows, "trec"))
    assert cells(head)[2:] == ["arc_easy", "piqa", "mean"]
    assert cells(line)[2:] == ["0.6000", "0.4000", "0.5000"]


def test_the_recorded_rows_can_still_be_read() -> None:
    folder = Path(__file__).parents[2] / "benchmarks" / "results"
    rows = results.read(folder / "comparison.jsonl")
    assert {"trec", "banking77", "cifar10", "arc_easy", "wikitext2"} <= set(tables.suites_of(rows))
    for suite in tables.suites_of(rows):
        assert len([*tables.compared(tables.summaries(rows, suite))]) > 2
    assert len([*export_tables.deployment(results.read(folder / "deployment.jsonl"))]) == 2 + 30


def test_the_page_is_written_between_its_markers_from_the_rows_alone(tmp_path: Path) -> None:
    (tmp_path / "comparison.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in ROWS[:4]))
    made = report.generated(tmp_path, tmp_path / "images", "images")
    text = report.page(f"before\n{report.BEGIN}\nstale\n{report.END}\nafter\n", made)
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "stale" not in text
    assert "### trec" in text
    assert "10 training rows, 20 measured rows, 3 epochs; 4 runs" in text
    for name in ("kept", "memory"):
        assert f"(images/bench-trec-{name}.png)" in text
        assert (tmp_path / "images" / f"bench-trec-{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(InputError, match="no part to write"):
        report.page("text", "table")


def test_the_same_rows_give_the_same_figure(tmp_path: Path) -> None:
    found = tables.summaries(ROWS, "trec")
    first, second = (plots.draw(found, tmp_path / name, memory=False).read_bytes() for name in ("a.png", "b.png"))
    assert first == second


def test_a_row_that_a_kill_cut_short_is_left_out_and_the_next_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"suite": "a", "seed": 0}\n{"suite": "a", "se')
    rows = results.Rows(path)
    assert rows.find(suite="a") == [{"suite": "a", "seed": 0}]
    rows.add({"suite": "b"})
    assert results.read(path) == [{"suite": "a", "seed": 0}, {"suite": "b"}]


TWO = [
    row("dense", 1.0, 0, 0.90),
    row("dense", 1.0, 1, 0.80),
    row("jactus", 0.5, 0, 0.91),
    row("jactus", 0.5, 1, 0.80),
    row("jactus", 0.5, 2, 0.10),  # full fine-tuning has no such seed
    row("dense", 1.0, 0, 0.70, suite="sst2"),
    row("jactus", 0.5, 0, 0.68, suite="sst2"),
    row("svdllm-lora", 0.5, 0, 0.66, suite="sst2"),
    row("svdllm-lora", 0.5, 0, 0.89),
    row("cersa", 0.5, 0, 0.5),
]


def test_the_overview_holds_each_seed_against_full_fine_tuning_of_that_seed() -> None:
    first, _, *lines = map(cells, overview.table(TWO))
    assert first[2:] == ["trec", "sst2", "mean"]
    found = {line[0]: line[1:] for line in lines}
    assert found["JACTUS (R4)"] == ["50%", "+0.50", "-2.00", "**-0.75**"]
    assert found["SVD-LLM, LoRA 16 on both factors"] == ["50%", "-1.00", "-4.00", "**-2.50**"]
    assert len(found) == 2  # CERSA has rows of one suite alone


def test_rows_of_a_gpu_are_held_against_full_fine_tuning_there_alone() -> None:
    moved = [one | ({"gpu": "a card"} if one["arm"] == "jactus" else {}) for one in TWO]
    assert {one.arm for one in overview.standings(moved)} == {"svdllm-lora"}
    both = [*moved, *(one | {"gpu": "a card"} for one in TWO if one["arm"] == "dense")]
    assert {one.arm for one in overview.standings(both)} == {"svdllm-lora", "jactus"}


def test_an_arm_with_rows_of_both_machines_has_a_line_of_each() -> None:
    found = table([*ROWS, ROWS[3] | {"gpu": "a card", "accuracy": 0.98}])
    assert found["full fine-tuning, on a CPU"][2] == "0.9600 (1)"
    assert found["full fine-tuning, on a GPU"][2] == "0.9800 (1)"
    assert "JACTUS (R4)" in found


def test_the_overview_takes_an_arms_rows_of_both_machines_together() -> None:
    card = [one | {"gpu": "a card"} for one in TWO if one["seed"] == 0 and one["arm"] in ("dense", "jactus")]
    (found,) = [one for one in overview.standings([*TWO, *card]) if one.arm == "jactus"]
    assert [len(found.points[suite]) for suite in ("trec", "sst2")] == [3, 2]


def test_two_arms_are_held_apart_on_the_seeds_that_both_have() -> None:
    corrected = [one | {"arm": "jactus-corrected"} for one in TWO if one["arm"] == "jactus"]
    missing = [one | {"accuracy": 0.9} for one in corrected if (one["suite"], one["seed"]) != ("trec", 1)]
    first, _, *lines = map(cells, overview.duel([*TWO, *missing], "jactus", "jactus-corrected"))
    assert first[2:] == ["trec", "sst2", "mean", "seeds of each set"]
    assert lines == [
        ["JACTUS (R4)", "50%", "+1.00", "-2.00", "**-0.50**", "1, 1"],
        ["JACTUS (R4), corrected", "50%", "+0.00", "+20.00", "**+10.00**", "1, 1"],
    ]
    assert list(overview.duel(TWO, "jactus", "jactus-corrected")) == []


def test_a_suites_machine_is_the_gpu_where_there_was_one() -> None:
    assert "\na card or one with 1 thread" in report.described([ROWS[0], ROWS[1] | {"gpu": "a card"}])


def test_an_arm_without_rows_of_a_suite_has_no_mean() -> None:
    rows = [*TWO, row("dense", 1.0, 0, 0.9, suite="snips"), row("jactus", 0.5, 0, 0.9, suite="snips")]
    _, _, *lines = map(cells, overview.table(rows))
    means = {line[0]: line[-1] for line in lines}
    assert means == {"JACTUS (R4)": "**-0.50**", "SVD-LLM, LoRA 16 on both factors": "-"}


def test_the_overview_is_drawn_where_two_compressed_arms_have_the_same_suites(tmp_path: Path) -> None:
    found = overview.draw(TWO, tmp_path / "one.png")
    assert found is not None
    assert found.read_bytes().startswith(b"\x89PNG")
    alone = [one for one in TWO if one["arm"] != "svdllm-lora"]
    assert overview.draw(alone, tmp_path / "none.png") is None


def test_the_overview_leaves_out_what_was_not_trained() -> None:
    rows = [one | {"epochs": 0} if one["suite"] == "sst2" else one for one in TWO]
    assert overview.standings(rows) == []
