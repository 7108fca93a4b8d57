"""The advice names the best option, low-rank or not, and does not flatter us."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from compressor.recipe import Gate
from validators import advice, render
from validators.base import Finding
from validators.contest import winner
from validators.export_report import ExportReport
from validators.options import entered, options
from validators.pareto import beats
from validators.report import Report

ACCURACY = Gate(type="max-degradation", value=0.01)
GATES = {"accuracy": ACCURACY, "size": Gate(type="percent-min-improvement", value=30)}


def export(
    precision: str,
    role: Any = "candidate",
    accuracy: float = 0.93,
    size: float = 50.0,
    memory: float = 80.0,
    latency: float = 5.0,
    gates: dict[str, Gate] | None = None,
) -> ExportReport:
    """An export beside a dense model of accuracy 0.93, 100 MiB, 100 MiB and 10 ms."""
    near = (accuracy - 0.005, accuracy + 0.005)
    findings = [
        Finding("accuracy", "share", "higher", 0.93, accuracy, near, 0.95, details={"n": 1000}),
        Finding("parity", "agreement", "higher", 1.0, 0.999),
        Finding("size", "MiB", "lower", 100.0, size),
        Finding("peak_memory", "MiB", "lower", 100.0, memory, (memory - 1, memory + 1)),
        Finding("latency_p50", "ms", "lower", 10.0, latency, (0.98 * latency, 1.02 * latency), 0.95),
    ]
    judged = tuple(f.judged(gates[f.quantity]) if gates and f.quantity in gates else f for f in findings)
    name = f"onnx-{precision}" if role == "candidate" else f"dense-onnx-{precision}"
    return ExportReport(name, "onnx", precision, role, judged)


def with_finding(report: ExportReport, quantity: str, **changes: Any) -> ExportReport:
    changed = tuple(replace(f, **changes) if f.quantity == quantity else f for f in report.findings)
    return replace(report, findings=changed)


def dense_int8(accuracy: float = 0.93, size: float = 25, memory: float = 60, latency: float = 5) -> ExportReport:
    return export("int8", "reference", accuracy, size, memory, latency)


def test_advice_is_low_rank_int8_where_it_beats_dense_int8() -> None:
    report = Report((export("fp32"), export("int8", size=15, latency=3, memory=50), dense_int8(size=25, latency=5)))
    assert report.advice() == (
        "Low-rank int8 is the best choice here: smaller (0.15x), faster (0.30x) and lighter in memory (0.50x) "
        "than dense fp32 at the same accuracy. "
        "Against dense int8 it is smaller (0.60x), faster (0.60x) and lighter in memory (0.83x) at the same accuracy."
    )


def test_advice_says_plainly_when_low_rank_is_not_the_answer() -> None:
    report = Report((export("fp32", size=70, latency=8), export("int8", size=40, latency=7), dense_int8()))
    assert report.advice() == (
        "Dense int8 is smaller (0.62x), faster (0.71x) and lighter in memory (0.75x) than low-rank int8 "
        "at the same accuracy: low-rank is not the answer here."
    )


def test_advice_names_what_low_rank_is_still_good_for() -> None:
    report = Report((export("int8", size=20, latency=9, memory=60), dense_int8(size=25, latency=4, memory=60)))
    assert "the better balance" in report.advice()
    assert "Low-rank int8 is the answer only where size counts most" in report.advice()
    assert "not the answer" not in report.advice()


def test_advice_is_against_low_rank_that_loses_the_accuracy() -> None:
    gates = {"accuracy": ACCURACY}
    lost = export("int8", accuracy=0.80, size=5, latency=1, memory=50, gates=gates)
    assert Report((lost, dense_int8())).advice() == (
        "No low-rank export holds accuracy and parity: low-rank is not the answer here. Deploy dense int8."
    )
    kept = export("fp32", size=10, latency=2, memory=50, gates=gates)
    assert Report((kept, lost, dense_int8())).advice().endswith("Low-rank int8 does not hold accuracy and parity.")


def test_what_was_not_measured_is_said_where_dense_wins_too() -> None:
    lost = export("fp32", accuracy=0.80, gates={"accuracy": ACCURACY})
    assert Report((lost,)).advice().endswith("Dense int8 was not measured, so this is unproven against it.")


def test_a_reference_below_the_accuracy_limit_is_no_option() -> None:
    candidate = export("int8", size=30, gates={"accuracy": ACCURACY})
    advice = Report((candidate, dense_int8(accuracy=0.91, size=20, latency=1))).advice()
    assert advice.startswith("Low-rank int8 is the best choice")
    assert "Dense int8 does not hold accuracy and parity." in advice


def test_a_reference_below_the_parity_limit_is_no_option() -> None:
    gates = {"parity": Gate(type="threshold", value=0.99)}
    ours = with_finding(export("int8", size=30, gates=gates), "parity", candidate=0.985, verdict="fail", limit=0.99)
    theirs = with_finding(dense_int8(size=20, latency=1), "parity", candidate=0.6)
    advice = Report((ours, theirs)).advice()
    assert advice == "No low-rank export holds accuracy and parity: low-rank is not the answer here. Deploy dense fp32."


def test_advice_keeps_dense_fp32_when_nothing_is_gained() -> None:
    advice = Report((export("fp32", size=130, latency=14, memory=120),)).advice()
    assert advice.startswith("Dense fp32 is smaller (0.77x), faster (0.71x)")
    assert advice.endswith(
        "low-rank is not the answer here. Dense int8 was not measured, so this is unproven against it."
    )


def test_advice_names_the_gates_that_the_best_option_fails() -> None:
    advice = Report((export("int8", size=80, latency=2, gates=GATES), dense_int8(size=90, latency=9))).advice()
    assert advice.startswith("Low-rank int8 is the best choice")
    assert advice.endswith("It fails its gate on size.")


def test_advice_without_dense_int8_says_what_is_unproven() -> None:
    assert "Dense int8 was not measured" in Report((export("int8", size=20),)).advice()


def test_another_dense_export_does_not_stand_for_dense_int8() -> None:
    said = Report((export("int8", size=20), export("fp16", "reference", size=50))).advice()
    assert "Dense int8 was not measured" in said


def perplexed(report: ExportReport, perplexity: float, limit: float | None = None) -> ExportReport:
    """With a perplexity beside the dense model's 20.0, known to 1 %."""
    near = 0.99 * perplexity, 1.01 * perplexity
    found = Finding("perplexity", "perplexity", "lower", 20.0, perplexity, near, 0.95)
    judged = found if limit is None else found.judged(Gate(type="threshold", value=limit))
    return replace(report, findings=(*report.findings, judged))


def test_without_a_gate_perplexity_has_to_reach_dense_as_accuracy_has() -> None:
    lost = perplexed(export("int8", accuracy=0.929, size=10, latency=2), 32.0)
    assert "low-rank is not the answer here" in Report((lost,)).advice()
    assert winner((lost,)) is None
    kept = perplexed(export("int8", accuracy=0.929, size=10, latency=2), 20.1)
    assert Report((kept,)).advice().startswith("Low-rank int8 is the best choice")


def test_advice_says_what_perplexity_costs_where_a_gate_lets_it() -> None:
    ours = perplexed(export("int8", size=10, latency=2), 22.0, limit=23.0)
    said = Report((ours, perplexed(dense_int8(), 20.1))).advice()
    assert "than dense fp32 at the same accuracy and 1.10x the perplexity." in said
    assert "at the same accuracy and 1.09x the perplexity." in said


def test_differences_within_noise_are_no_reason() -> None:
    """Overlapping intervals of accuracy and costs within 2% leave the choice to what does differ."""
    candidate = export("int8", accuracy=0.929, size=20.0, latency=5.05, memory=60.5)
    advice = Report((candidate, dense_int8(accuracy=0.931, size=25.0, latency=5.0, memory=60))).advice()
    assert "Against dense int8 it is smaller (0.80x) with 0.20 points less accuracy (within noise)." in advice


@pytest.mark.parametrize("quantity", ["accuracy", "parity"])
def test_what_is_no_number_is_never_recommended(quantity: str) -> None:
    broken = with_finding(export("int8", size=1, latency=1), quantity, candidate=math.nan, interval=None)
    assert Report((broken, dense_int8())).advice().endswith("Deploy dense int8.")


def test_nothing_is_recommended_without_measurements() -> None:
    bare = export("int8")
    costs = {"size", "latency_p50", "peak_memory"}
    no_accuracy = replace(bare, findings=tuple(f for f in bare.findings if f.quantity != "accuracy"))
    no_costs = replace(bare, findings=tuple(f for f in bare.findings if f.quantity not in costs))
    assert "Accuracy was not measured" in Report((no_accuracy,)).advice()
    assert "Neither size, latency nor memory" in Report((no_costs,)).advice()
    assert "no low-rank export" in Report((dense_int8(),)).advice()
    for report in (no_accuracy, no_costs):
        assert Report((report,)).verdict == "pass"


def test_two_exports_of_one_kind_are_told_apart() -> None:
    other = replace(export("int8", size=10, latency=2), name="openvino-int8", runtime="openvino")
    assert "Low-rank int8 (openvino-int8) is the best" in Report((export("int8"), other)).advice()


def timed(name: str, runtime: str, role: Any, dense: float, latency: float, size: float = 25) -> ExportReport:
    """An export of a runtime whose dense fp32 takes `dense` ms."""
    one = export(name.rpartition("-")[2], role, size=size)
    findings = (
        replace(f, dense=dense, candidate=latency, interval=(0.99 * latency, 1.01 * latency))
        if f.quantity == "latency_p50"
        else f
        for f in one.findings
    )
    return replace(one, name=name, runtime=runtime, findings=tuple(findings))


def test_exports_of_two_runtimes_are_held_against_each_other_by_what_they_take() -> None:
    """0.4 of a slow dense model is no faster than 0.56 of one that is twice as fast."""
    exports = (
        timed("onnx-int8", "onnx", "candidate", 10.0, 4.0),
        timed("openvino-int8", "openvino", "candidate", 5.0, 3.0),
        timed("dense-openvino-int8", "openvino", "reference", 5.0, 2.8),
    )
    found = {option.label: option for option in options(exports)}
    taken = {label: 10 * option.costs["latency_p50"].value for label, option in found.items()}
    assert taken == pytest.approx(
        {
            "dense fp32 (onnx)": 10.0,
            "dense fp32 (openvino)": 5.0,
            "low-rank int8 (onnx-int8)": 4.0,
            "low-rank int8 (openvino-int8)": 3.0,
            "dense int8": 2.8,
        }
    )
    best = advice.recommend(exports).best
    assert best is not None
    assert best.name == "dense-openvino-int8"
    page = render.html(Report(exports))
    assert "dense fp32 (onnx)" in page
    assert "dense fp32 (openvino)" in page


def test_between_runtimes_a_few_percent_are_nothing_to_choose_by() -> None:
    one = timed("onnx-int8", "onnx", "candidate", 10.0, 4.0)
    alike, apart = (timed("openvino-int8", "openvino", "candidate", 5.0, taken) for taken in (3.85, 3.7))
    for other, faster in ((alike, False), (apart, True), (replace(alike, runtime="onnx"), False)):
        ours, theirs = entered(options((one, other)))
        assert beats(theirs, ours, "latency_p50") is faster


def test_noise_is_what_the_interval_of_the_difference_does_not_leave_out() -> None:
    """Intervals of 0.5 points each: 0.7 points are just more than their square and sum, 0.8 are told apart."""
    for lost, noise in ((0.006, True), (0.008, False)):
        ours = export("int8", accuracy=0.93, size=10, latency=2)
        said = Report((ours, dense_int8(accuracy=0.93 + lost))).advice()
        assert ("(within noise)" in said.split("Against dense int8")[1]) is noise


def speaking(precision: str, role: Any, perplexity: float, gate: Gate | None = None, size: float = 50) -> ExportReport:
    """An export of a language model of perplexity 20, a little less accurate than dense, with or without a gate."""
    plain = export(precision, role, accuracy=0.92, size=size)
    found = Finding("perplexity", "perplexity", "lower", 20.0, perplexity, (perplexity - 0.1, perplexity + 0.1), 0.95)
    return replace(plain, findings=(*plain.findings, found.judged(gate) if gate else found))


@pytest.mark.parametrize(("perplexity", "best"), [(21.0, "onnx-fp32"), (23.0, "dense")])
def test_perplexity_holds_by_its_gate(perplexity: float, best: str) -> None:
    gate = Gate(type="percent-max-degradation", value=10)
    found = advice.recommend((speaking("fp32", "candidate", perplexity, gate),)).best
    assert found is not None
    assert found.name == best


@pytest.mark.parametrize(("perplexity", "best"), [(21.0, "dense-onnx-int8"), (23.0, "onnx-fp32")])
def test_a_reference_is_held_to_the_candidates_limit_of_perplexity(perplexity: float, best: str) -> None:
    gate = Gate(type="percent-max-degradation", value=10)
    exports = (speaking("fp32", "candidate", 20.5, gate), speaking("int8", "reference", perplexity, size=20))
    found = advice.recommend(exports).best
    assert found is not None
    assert found.name == best


def test_infinite_perplexity_is_never_sound() -> None:
    found = advice.recommend((speaking("fp32", "candidate", math.inf),)).best
    assert found is not None
    assert found.name == "dense"


def test_an_accuracy_without_an_interval_is_judged_by_its_value() -> None:
    for accuracy, sound in ((0.92, False), (0.93, True)):
        one = export("int8", accuracy=accuracy)
        bare = replace(one, findings=tuple(replace(f, interval=None, confidence=None) for f in one.findings))
        assert [option.sound for option in options([bare]) if option.name == one.name] == [sound]


def test_what_is_alike_is_said_of_what_was_measured_alone() -> None:
    alike = export("int8", size=100, latency=10)
    bare = replace(alike, findings=tuple(f for f in alike.findings if f.quantity != "peak_memory"))
    said = Report((bare,)).advice()
    assert said.startswith("Dense fp32 is about as large and fast as low-rank int8 at the same accuracy")


def test_what_cannot_be_chosen_takes_no_cost_from_the_choice() -> None:
    """An export that lost the accuracy and whose costs are no numbers is no reason to choose by fewer of them."""
    broken = export("int8", accuracy=0.5)
    for quantity in ("size", "peak_memory", "latency_p50"):
        broken = with_finding(broken, quantity, candidate=math.nan, interval=None)
    assert Report((export("fp32", size=20), broken)).advice().startswith("Low-rank fp32 is the best choice here: small")
