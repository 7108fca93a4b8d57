"""The inputs that exports are tried on, and the comparison with the model."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressor.errors import ExportError, RuntimeFailure
from exporters import verify
from exporters.base import Arrays


class Sum(nn.Module):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return (input_ids * attention_mask).sum(1, keepdim=True).float()  # (B, 1)


class Scaled:
    """A runner whose logits are those of Sum times a factor."""

    providers = ("TestProvider",)

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        total = (inputs["input_ids"] * inputs["attention_mask"]).sum(1, keepdims=True)
        return {"logits": total.astype(np.float32) * self.factor}


class Failing(Scaled):
    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        raise RuntimeFailure("Reshape: 7 against 4.")


class Fixed(Failing):
    """Takes five tokens."""

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        return Scaled.__call__(self, inputs) if inputs["input_ids"].shape[1] == 5 else super().__call__(inputs)


class Flat(Scaled):
    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        return {"logits": super().__call__(inputs)["logits"][:, 0]}


@pytest.fixture
def example() -> dict[str, Tensor]:
    ids = torch.tensor([[3, 5, 7, 11, 13], [17, 19, 23, 29, 31]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_trials_end_where_their_texts_end_and_nowhere_else() -> None:
    end, pad = 2, 1
    ids = torch.tensor([[0, 5, 6, 7, end], [0, 8, end, pad, pad]])
    mask = (ids != pad).long()
    for trial in verify.trials(Sum(), {"input_ids": ids, "attention_mask": mask}):
        found = trial["input_ids"]
        assert (found[:, -1] == end).all()
        assert (found == end).sum(1).tolist() == [1] * len(found)


def test_trials_have_new_shapes_known_values_and_padding(example: dict[str, Tensor]) -> None:
    trials = verify.trials(Sum(), example)
    assert [tuple(trial["input_ids"].shape) for trial in trials] == [(1, 5), (2, 3), (3, 10)]
    for trial in trials:
        assert set(trial["input_ids"].flatten().tolist()) <= set(example["input_ids"].flatten().tolist())
        assert trial["attention_mask"].sum(1).tolist() == [
            trial["attention_mask"].shape[1] - row for row in range(len(trial["attention_mask"]))
        ]


def test_padding_is_never_drawn_as_text() -> None:
    ids = torch.tensor([[3, 5, 7, 11, 13], [17, 19, 0, 0, 0]])
    kinds = torch.stack([ids, ids], dim=2)  # (B, T, 2), as some models number their tokens
    for trial in verify.trials(Sum(), {"input_ids": ids, "kinds": kinds, "attention_mask": (ids > 0).long()}):
        texts = [set(row.tolist()) for row in trial["input_ids"]]
        assert all(text <= {3, 5, 7, 11, 13} or text <= {17, 19} for text in texts)
        assert torch.equal(trial["kinds"], trial["input_ids"][:, :, None].expand_as(trial["kinds"]))


def test_trials_stay_within_the_positions_of_the_model(example: dict[str, Tensor]) -> None:
    model = Sum()
    model.config = SimpleNamespace(max_position_embeddings=9)  # type: ignore[assignment]
    assert verify.trials(model, example)[2]["input_ids"].shape == (3, 7)


@pytest.mark.parametrize(("said", "found"), [(9, 9), (-1, verify.ENDLESS), (None, verify.ENDLESS)])
def test_a_config_may_say_that_positions_have_no_end(said: int | None, found: int) -> None:
    model = Sum()
    model.config = SimpleNamespace(max_position_embeddings=said)  # type: ignore[assignment]
    assert verify.positions(model) == found


class Short(Sum):
    """Takes so many tokens at most, and says so nowhere."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.places = nn.Embedding(most, 1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        self.places(torch.arange(input_ids.shape[1]))
        return super().forward(input_ids, attention_mask)  # type: ignore[no-any-return]


def test_trials_are_no_longer_than_a_model_takes_that_says_nowhere_how_many(example: dict[str, Tensor]) -> None:
    shapes = [[tuple(one["input_ids"].shape) for one in verify.trials(Short(most), example)] for most in (9, 10)]
    assert shapes == [[(1, 5), (2, 3), (3, 5)], [(1, 5), (2, 3), (3, 10)]]


def test_what_a_tracing_is_not_sure_of_is_tried_where_the_model_takes_it(example: dict[str, Tensor]) -> None:
    def shapes(most: int, span: tuple[int, int]) -> tuple[list[tuple[int, ...]], dict[str, int]]:
        tried, last = verify.beyond(Short(most), example, {5: span})
        return [tuple(one["input_ids"].shape) for one in tried], last

    assert shapes(20, (0, 12)) == ([(1, 13)], {})
    assert shapes(20, (4, 12)) == ([(1, 3), (1, 13)], {})
    assert shapes(12, (2, 12)) == ([], {"max_length": 12})
    assert shapes(20, (0, verify.ENDLESS)) == ([], {})


def test_memory_that_is_wanting_is_no_end_of_a_model(example: dict[str, Tensor]) -> None:
    model = Sum()
    model.forward = MagicMock(side_effect=torch.OutOfMemoryError("wanting"))  # type: ignore[method-assign]
    with pytest.raises(torch.OutOfMemoryError):
        verify.beyond(model, example, {5: (0, 12)})


def test_texts_of_several_lengths_and_floats_beside_tokens_are_drawn_each_in_its_own(
    example: dict[str, Tensor],
) -> None:
    longer = torch.arange(18).reshape(2, 9)
    inputs = example | {"weights": example["input_ids"].float(), "other": longer, "features": torch.rand(2, 4)}
    assert verify.sequences(inputs) == {"input_ids": 5, "attention_mask": 5, "weights": 5, "other": 9}
    for trial, (rows, columns, others) in zip(
        verify.trials(MagicMock(config=None), inputs), [(1, 5, 9), (2, 3, 5), (3, 10, 18)], strict=True
    ):
        assert torch.equal(trial["weights"], trial["input_ids"].float())
        assert trial["input_ids"].shape == (rows, columns)
        assert trial["other"].shape == (rows, others)
        assert trial["features"].shape == (rows, 4)


class Turning(Sum):
    """Puts another module into its own place when it reads its first text, and can read no second one."""

    def __init__(self) -> None:
        super().__init__()
        self.way: nn.Module = nn.Identity()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if isinstance(self.way, nn.Tanh):
            raise TypeError("too many arguments")
        self.way = nn.Tanh()
        return super().forward(input_ids, attention_mask)  # type: ignore[no-any-return]


@pytest.mark.parametrize("runs", [1, 2])
def test_a_model_that_replaces_its_own_modules_is_refused(example: dict[str, Tensor], runs: int) -> None:
    def read(model: nn.Module) -> None:
        with verify.unchanged(model):
            for _ in range(runs):
                model(**example)

    with pytest.raises(ExportError, match=r"Turning replaces its own modules .*\(way first\)"):
        read(Turning())


def test_only_the_rows_of_float_features_change() -> None:
    features = torch.rand(2, 6)
    trials = verify.trials(nn.Identity(), {"features": features})
    assert [tuple(trial["features"].shape) for trial in trials] == [(1, 6), (2, 6), (3, 6)]


def test_the_figures_are_the_differences(example: dict[str, Tensor]) -> None:
    trials = verify.trials(Sum(), example)
    figures = verify.compare(Sum(), Scaled(1.25), trials, limit=1e9)
    totals = [float((trial["input_ids"] * trial["attention_mask"]).sum(1).max()) for trial in trials]
    assert [figure["largest_logit"] for figure in figures] == totals
    assert [figure["max_difference"] for figure in figures] == [total / 4 for total in totals]


@pytest.mark.parametrize(
    ("runner", "message"),
    [
        (Scaled(1.25), r"differs from the model by .*, more than the \de-03 allowed; by shape: \[1, 5\]"),
        (Scaled(float("nan")), r"At the shape \[1, 5\] the export gives logits that are not finite"),
        (Failing(1), r"does not run at the shape \[1, 5\]: Reshape: 7 against 4"),
        (Fixed(1), r"at the shape \[2, 3\], though at another, so .* axis was fixed.*Reshape: 7 against 4"),
        (Flat(1), r"gives logits \(1,\), the model \(1, 1\)"),
    ],
)
def test_an_export_that_does_otherwise_is_refused(runner: Scaled, message: str, example: dict[str, Tensor]) -> None:
    with pytest.raises(ExportError, match=message):
        verify.compare(Sum(), runner, verify.trials(Sum(), example), limit=1e-3)


class Overflowing(Sum):
    """Gives no number where a text has more than three tokens."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found: Tensor = super().forward(input_ids, attention_mask)
        return found if input_ids.shape[1] <= 3 else found * float("inf")


def test_a_model_whose_logits_are_no_numbers_proves_no_export(example: dict[str, Tensor]) -> None:
    with pytest.raises(ExportError, match=r"At the shape \[1, 5\] the model itself gives logits that are not finite"):
        verify.compare(Overflowing(), Scaled(1.25), verify.trials(Sum(), example), limit=1e-3)


def test_large_logits_may_differ_by_what_float32_leaves(example: dict[str, Tensor]) -> None:
    trials = verify.trials(Sum(), example)
    assert verify.compare(Sum(), Scaled(1 + 0.9 * verify.RELATIVE), trials, limit=1e-9)
    with pytest.raises(ExportError, match="differs from the model by"):
        verify.compare(Sum(), Scaled(1 + 1.1 * verify.RELATIVE), trials, limit=1e-9)


def test_a_model_that_fails_itself_is_not_blamed_on_the_export(example: dict[str, Tensor]) -> None:
    model = nn.Module()
    model.forward = lambda input_ids, attention_mask: input_ids.reshape(2, 5)  # type: ignore[assignment]
    with pytest.raises(ExportError, match="The torch model itself fails at"):
        verify.compare(model, Scaled(1), verify.trials(model, example), limit=1)


@pytest.mark.parametrize("output", [torch.ones(1), (torch.ones(1), None), SimpleNamespace(logits=torch.ones(1))])
def test_logits_are_found_in_every_usual_output(output: object) -> None:
    assert verify.logits_of(output).shape == (1,)


def test_an_output_without_logits_is_named() -> None:
    with pytest.raises(ExportError, match="returned dict without logits"):
        verify.logits_of({"hidden": 1})


class Sums(nn.Module):
    """Of every token the sum of those so far: (B, T, 1)."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return (input_ids * attention_mask).cumsum(1)[..., None].float()


class Cached:
    """A runner with a cache of the last sum, which it forgets where it is told to."""

    providers = ("TestProvider",)
    cached = True

    def __init__(self, *, forgets: bool) -> None:
        self.forgets = forgets

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        return {"logits": self.step(inputs)["logits"]}

    def step(self, inputs: Arrays) -> dict[str, np.ndarray]:
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        before = 0 if self.forgets else inputs.get("past_key_values.0", np.zeros((len(ids), 1)))
        sums = (ids * mask[:, -ids.shape[1] :]).cumsum(1) + before
        return {"logits": sums[..., None].astype(np.float32), "present.0": sums[:, -1:]}


def test_an_export_with_a_cache_is_held_to_what_it_continues(example: dict[str, Tensor]) -> None:
    figures = verify.compare(Sums(), Cached(forgets=False), verify.trials(Sums(), example), limit=1e-3)
    assert [figure.get("cached", False) for figure in figures] == [False, False, False, True]
    assert figures[-1]["shape"] == figures[0]["shape"] == [1, 5]
    assert max(figure["max_difference"] for figure in figures) == 0
    with pytest.raises(ExportError, match=r"\[1, 5\] from its cache: 1\.[0-9]+e\+01"):
        verify.compare(Sums(), Cached(forgets=True), verify.trials(Sums(), example), limit=1e-3)
