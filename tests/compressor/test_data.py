"""Data sets from small files: what is read, what is refused and how rows become batches."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from compressor import data, progress, registry
from compressor.errors import DataError, ModelError
from compressor.failures import explain
from compressor.paths import resolve
from compressor.sections.data import Calibration, DataSection, Source
from compressor.tasks import text as texts_of
from compressor.tasks.text import padding
from compressor.tasks.text_classification import TextClassification

ROWS = {"text": ["red one", "blue", "green three x", "red"], "label": ["warm", "cold", "cold", "warm"]}
TASK = TextClassification()
WORDS = ["[PAD]", "[UNK]", "red", "one", "blue", "green", "three", "x"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))  # beside no rows


@pytest.fixture
def tokenizer() -> Any:
    """One token per word."""
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")


def write(path: Path, rows: dict[str, list[Any]] = ROWS) -> Source:
    """The rows in the format of the path's suffix."""
    frame = pd.DataFrame(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_json(path, orient="records", lines=True)
    return Source(path=str(path))


def many(count: int) -> dict[str, list[Any]]:
    return {"text": [f"text {number}" for number in range(count)], "label": ["a", "b"] * (count // 2)}


def section(folder: Path, count: int = 40, **changes: Any) -> DataSection:
    train = write(folder / "train.csv", many(count))
    evaluation = write(folder / "test.csv", {"text": ["red", "blue"], "label": ["b", "a"]})
    return DataSection(train=train, evaluation=evaluation, **changes)


# ---- reading ----


@pytest.mark.parametrize("kind", [".parquet", ".csv", ".jsonl"])
def test_a_file_is_read_as_rows_of_text_and_label(tmp_path: Path, kind: str) -> None:
    rows = data.read(write(tmp_path / f"rows{kind}"), TASK)
    assert rows.to_dict() == ROWS


def test_cells_of_a_csv_are_read_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label,weight\nNA,none\n007,01\nnull,NA\n")
    rows = data.read(Source(path=str(tmp_path / "rows.csv")), TASK)
    assert list(rows["text"]) == ["NA", "007", "null"]
    assert TASK.labels(rows) == ["01", "NA", "none"]
    (tmp_path / "numbers.csv").write_text("text,label\na,10\nb,9\nc,-1\n")
    assert TASK.labels(data.read(Source(path=str(tmp_path / "numbers.csv")), TASK)) == ["-1", "9", "10"]


def test_csvs_in_a_folder_are_read_as_they_are_written_too(tmp_path: Path) -> None:
    write(tmp_path / "mine" / "data" / "train.csv", {"text": ["NA", "null"], "label": ["007", "008"]})
    (tmp_path / "mine" / "README.md").write_text("# Mine")
    rows = data.read(Source(path=str(tmp_path / "mine")), TASK)
    assert (rows["text"][:], rows["label"][:]) == (["NA", "null"], ["007", "008"])


@pytest.mark.parametrize(("name", "mark"), [("my_train.tsv", "\t"), ("my_train.csv.gz", ","), ("my_train.csv", ",")])
def test_what_else_lies_in_a_folder_changes_no_cell(tmp_path: Path, name: str, mark: str) -> None:
    text = f"text{mark}label\nNA{mark}007\n\nnull{mark}008\n".encode()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    for other in ("LICENSE", "notes.txt", "convert.py"):
        (tmp_path / "mine" / other).write_text("1\n2\n")
    rows = data.read(Source(path=str(tmp_path / "mine")), TASK)
    assert (rows["text"][:], rows["label"][:]) == (["NA", "null"], ["007", "008"])


@pytest.mark.parametrize("name", ["rows.csv", "mine/train.csv", "mine/my_train.csv", "mine/my_train.csv.gz"])
@pytest.mark.parametrize("header", ["text,label", "\ntext,label", "text"])
def test_a_csv_whose_rows_have_more_cells_than_names_is_refused(tmp_path: Path, name: str, header: str) -> None:
    names = len(header.split(","))
    text = (f"{header}\n" + "red, one" + ",a" * names + "\n").encode()
    (tmp_path / "mine").mkdir()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    path = tmp_path / name if name == "rows.csv" else tmp_path / "mine"
    with pytest.raises(DataError, match=rf"{name} names {names} columns, but its first row has {names + 2} cells: put"):
        data.read(Source(path=str(path)), TASK)


def test_a_file_may_be_a_link_to_one_without_its_suffix(tmp_path: Path) -> None:
    write(tmp_path / "rows.parquet")
    (tmp_path / "rows.parquet").rename(tmp_path / "3f2a")
    (tmp_path / "train.parquet").symlink_to("3f2a")
    assert data.read(Source(path=resolve("train.parquet", tmp_path, None)), TASK).to_dict() == ROWS


def test_texts_in_a_folder_are_whole(tmp_path: Path) -> None:
    (tmp_path / "books" / "train").mkdir(parents=True)
    for name, text in (("a", "one\ntwo\n\nthree\n"), ("b", "four")):
        (tmp_path / "books" / "train" / f"{name}.txt").write_text(text)
    rows = data.read(Source(path=str(tmp_path / "books")), registry.task("text-generation"))
    assert sorted(rows["text"]) == ["four", "one\ntwo\n\nthree\n"]


def test_a_column_that_is_not_asked_for_may_hold_anything(tmp_path: Path) -> None:
    file = tmp_path / "many.csv"
    lines = [f"text {number},a,{number}" for number in range(12_000)]  # the readers look at so many rows at once
    file.write_text("\n".join(["text,label,id", *lines, "last,b,A12"]))
    rows = data.read(Source(path=str(file)), TASK)
    assert (len(rows), rows[-1]) == (12_001, {"text": "last", "label": "b"})


def test_a_header_that_no_reader_takes_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "broken.csv").write_text(f"text,label,{'x' * 200_000}\na,b,c\n")
    with pytest.raises(DataError, match=r"broken\.csv cannot be read as a data set: field larger"):
        data.read(Source(path=str(tmp_path / "broken.csv")), TASK)


def test_one_of_several_subsets_is_to_be_named(tmp_path: Path) -> None:
    parts = "".join(f"- config_name: {name}\n  data_files: {name}.csv\n" for name in "ab")
    for name in "ab":
        write(tmp_path / "two" / f"{name}.csv", {"text": [name], "label": ["x"]})
    (tmp_path / "two" / "README.md").write_text(f"---\nconfigs:\n{parts}---\n")
    with pytest.raises(DataError, match=r"has several subsets: 'a', 'b'\. Name one as `subset`"):
        data.read(Source(path=str(tmp_path / "two")), TASK)
    assert data.read(Source(path=str(tmp_path / "two"), subset="b"), TASK)["text"][:] == ["b"]


def test_a_data_set_of_code_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.py").write_text("raise SystemExit")
    with pytest.raises(DataError, match="scripts are no longer supported"):
        data.read(Source(path=str(tmp_path / "mine")), TASK)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_is_no_fault_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrapped: bool) -> None:
    def load(*_: Any, **__: Any) -> None:
        full = OSError(errno.ENOSPC, "No space left on device")
        if wrapped:
            raise datasets.exceptions.DatasetGenerationError("failed") from full
        raise full

    source = write(tmp_path / "train.csv")
    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises((OSError, datasets.exceptions.DatasetGenerationError)) as error:
        data.read(source, TASK)
    text, code = explain(error.value)
    assert code == 5
    assert "disk full" in text


def test_a_column_has_one_role(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.csv").model_copy(update={"label": "text"})
    with pytest.raises(DataError, match="the column 'text' is named for text and label"):
        data.read(source, TASK)


def test_a_folder_holds_one_file_per_split(tmp_path: Path) -> None:
    write(tmp_path / "test.csv", {"text": ["other"], "label": ["x"]})
    write(tmp_path / "train.parquet")
    assert list(data.read(Source(path=str(tmp_path), split="train"), TASK)["text"]) == ROWS["text"]
    assert list(data.read(Source(path=str(tmp_path), split="test"), TASK)["text"]) == ["other"]


def test_columns_are_renamed_and_others_left_out(tmp_path: Path) -> None:
    write(tmp_path / "pairs.jsonl", {"a": ["one"], "b": ["two"], "y": [3], "other": [0]})
    source = Source(path=str(tmp_path / "pairs.jsonl"), text="a", text_pair="b", label="y")
    assert data.read(source, TASK).to_dict() == {"text": ["one"], "text_pair": ["two"], "label": [3]}


def test_a_limit_draws_rows_by_the_seed(tmp_path: Path) -> None:
    limited = write(tmp_path / "many.csv", many(40)).model_copy(update={"limit": 8})
    first, again, other = (data.read(limited, TASK, seed) for seed in (0, 0, 1))
    assert list(first["text"]) == list(again["text"]) != list(other["text"])
    assert len(set(first["text"])) == 8
    assert list(first["text"]) != many(40)["text"][:8]


# ---- what is refused ----


def test_a_missing_column_is_named_with_those_there_are_and_the_nearest(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.csv").model_copy(update={"label": "lable"})
    with pytest.raises(DataError, match=r"no column 'lable' \(Did you mean 'label'\?\); it has text, label\."):
        data.read(source, TASK)


@pytest.mark.parametrize("name", ["rows.parquet", "rows.csv", "header.csv", "rows.jsonl"])
def test_a_file_without_rows_is_called_empty(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("text,label\n" if name == "header.csv" else "")
    if name == "rows.parquet":
        pd.DataFrame({"text": pd.Series(dtype=str), "label": pd.Series(dtype=str)}).to_parquet(path)
    with pytest.raises(DataError, match=f"{name}.* is empty: it needs at least one row"):
        data.read(Source(path=str(path)), TASK)


@pytest.mark.parametrize("column", ["text", "label"])
def test_rows_with_holes_are_counted(tmp_path: Path, column: str) -> None:
    rows: dict[str, list[Any]] = {key: list(values) for key, values in ROWS.items()}
    rows[column][1] = rows[column][2] = None
    with pytest.raises(DataError, match=rf"2 rows have no {column} \('{column}'\)"):
        data.read(write(tmp_path / "holes.jsonl", rows), TASK)


def test_a_column_of_numbers_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the text column 'text' holds int64, not strings"):
        data.read(write(tmp_path / "numbers.parquet", {"text": [1, 2], "label": ["a", "b"]}), TASK)


@pytest.mark.parametrize("labels", [["a", 1], [["a"], ["b"]], [0.5, 1.25]])
def test_a_label_is_one_string_or_number_of_one_kind(tmp_path: Path, labels: list[Any]) -> None:
    with pytest.raises(DataError, match=r"the label column 'label' holds .*, not strings or whole numbers"):
        data.read(write(tmp_path / "labels.jsonl", {"text": ["red", "blue"], "label": labels}), TASK)


def test_an_unknown_kind_of_file_is_refused_with_those_that_are_read(tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").write_bytes(b"")
    with pytest.raises(DataError, match=r"rows\.xlsx is none of the kinds.*\.parquet, \.csv, \.json, \.jsonl"):
        data.read(Source(path=str(tmp_path / "rows.xlsx")), TASK)


def test_a_damaged_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(DataError, match=r"rows\.parquet cannot be read as a data set: ") as caught:
        data.read(Source(path=str(tmp_path / "rows.parquet")), TASK)
    assert "\n" not in str(caught.value)


def test_a_missing_split_of_a_folder_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.csv")
    with pytest.raises(DataError, match=r"no split 'tests'; it has train"):
        data.read(Source(path=str(tmp_path), split="tests"), TASK)


def test_a_data_set_that_is_nowhere_is_refused_without_a_network(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read as a data set"):
        data.read(Source(path="nobody/nothing"), TASK)


# ---- labels ----


def classes(names: list[str], numbers: list[int]) -> Any:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_dict({"text": ["red"] * len(numbers), "label": numbers}, features=features)


def test_string_labels_are_sorted_and_class_features_keep_their_order(tmp_path: Path) -> None:
    assert TASK.labels(data.read(write(tmp_path / "rows.csv"), TASK)) == ["cold", "warm"]
    assert TASK.labels(classes(["warm", "hot", "cold"], [2, 0])) == ["warm", "hot", "cold"]


def test_whole_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    rows = data.read(write(tmp_path / "rows.csv", {"text": list("abcd"), "label": [10, 9, 2, 10]}), TASK)
    assert TASK.labels(rows) == ["2", "9", "10"]


def test_a_class_is_known_by_its_name_and_not_by_its_number(tokenizer: Any) -> None:
    encoded = TASK.encode(classes(["cold", "warm"], [0, 1, 1]), tokenizer, ["warm", "cold"], 8, "data")
    assert list(encoded["labels"]) == [1, 0, 0]


def test_rows_that_a_hub_has_published_without_labels_are_refused(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"data\.evaluation: 2 of 3 rows have no label \(-1\)\. Name a split"):
        TASK.encode(classes(["cold", "warm"], [-1, 1, -1]), tokenizer, ["cold", "warm"], 8, "data.evaluation")


def test_a_label_that_training_has_not_seen_is_named(tmp_path: Path, tokenizer: Any) -> None:
    rows = data.read(write(tmp_path / "rows.csv"), TASK)
    with pytest.raises(DataError, match=r"data\.evaluation has labels .*: 'warm'; the 2 known are 'cold', 'hot'\."):
        TASK.encode(rows, tokenizer, ["cold", "hot"], 8, "data.evaluation")


# ---- batches ----


def test_texts_are_cut_to_the_greatest_length(tmp_path: Path, tokenizer: Any) -> None:
    encoded = TASK.encode(data.read(write(tmp_path / "rows.csv"), TASK), tokenizer, ["cold", "warm"], 2, "data")
    assert list(encoded["length"]) == [2, 1, 2, 1]
    assert encoded["input_ids"][2] == [WORDS.index("green"), WORDS.index("three")]


def test_batches_pad_to_their_longest_and_keep_every_row(tmp_path: Path, tokenizer: Any) -> None:
    encoded = TASK.encode(data.read(write(tmp_path / "rows.csv"), TASK), tokenizer, ["cold", "warm"], 8, "data")
    batches = list(data.batches(encoded, TASK, tokenizer, 3))
    assert [batch["input_ids"].shape for batch in batches] == [(3, 2), (1, 3)]
    rows = {
        " ".join(WORDS[token] for token, seen in zip(ids, mask, strict=True) if seen): int(label)
        for batch in batches
        for ids, mask, label in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
    }
    assert rows == {"red one": 1, "blue": 0, "green three x": 0, "red": 1}
    padding = torch.cat([batch["input_ids"][batch["attention_mask"] == 0] for batch in batches])
    assert padding.tolist() == [0, 0]


def test_rows_without_a_length_keep_their_order(tmp_path: Path, tokenizer: Any) -> None:
    encoded = TASK.encode(data.read(write(tmp_path / "rows.csv"), TASK), tokenizer, ["cold", "warm"], 8, "data")
    batches = data.batches(encoded.remove_columns("length"), TASK, tokenizer, 3)
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == [1, 0, 0, 1]


def test_batches_are_made_when_they_are_asked_for(tmp_path: Path, tokenizer: Any) -> None:
    encoded = TASK.encode(data.read(write(tmp_path / "rows.csv"), TASK), tokenizer, ["cold", "warm"], 8, "data")
    made: list[int] = []
    batches = data.Batches(encoded, 3, lambda rows: made.append(len(rows)) or [row["length"] for row in rows])
    assert len(batches) == 2
    assert made == []
    assert batches[-1] == [3]
    assert batches[:2] == [[1, 1, 2], [3]]
    assert made == [1, 3, 1]
    assert list(batches.then(sum)) == [4, 3]
    with pytest.raises(IndexError):
        batches[2]


def test_rows_are_tokenized_a_few_at_a_time(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = data.read(write(tmp_path / "rows.csv"), TASK)
    whole, asked = TASK.encode(rows, tokenizer, ["cold", "warm"], 8, "data"), list[int]()
    monkeypatch.setattr(texts_of, "AT_ONCE", 3)

    def counted(found: Any, *others: Any, **options: Any) -> Any:
        asked.append(len(found))
        return tokenizer(found, *others, **options)

    parts = TASK.encode(rows, counted, ["cold", "warm"], 8, "data")
    assert asked == [3, 1]
    assert (parts.to_dict(), parts.features) == (whole.to_dict(), whole.features)


def test_pairs_are_encoded_together(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path / "pairs.jsonl", {"text": ["red"], "other": ["blue one"], "label": ["a"]})
    rows = data.read(Source(path=str(tmp_path / "pairs.jsonl"), text_pair="other"), TASK)
    encoded = TASK.encode(rows, tokenizer, ["a"], 8, "data")
    assert [WORDS[token] for token in encoded["input_ids"][0]] == ["red", "blue", "one"]


# ---- the digest ----


def test_a_digest_depends_on_the_rows_and_not_on_the_format(tmp_path: Path) -> None:
    digests = {data.digest(data.read(write(tmp_path / f"rows{kind}"), TASK)) for kind in (".parquet", ".csv", ".jsonl")}
    assert len(digests) == 1
    changed = {"text": [*ROWS["text"][:3], "blue"], "label": ROWS["label"]}
    assert data.digest(data.read(write(tmp_path / "changed.csv", changed), TASK)) not in digests


def test_a_digest_is_that_of_the_rows_as_lines_of_json(tmp_path: Path) -> None:
    rows = many(2 * data.AT_ONCE + 2)
    lines = [{"label": label, "text": text} for text, label in zip(rows["text"], rows["label"], strict=True)]
    plain = "".join(f"{json.dumps(line)}\n" for line in lines)
    assert (
        data.digest(data.read(write(tmp_path / "rows.csv", rows), TASK)) == hashlib.sha256(plain.encode()).hexdigest()
    )


def test_the_order_of_rows_is_part_of_the_digest(tmp_path: Path) -> None:
    turned = {key: values[::-1] for key, values in ROWS.items()}
    found = [data.digest(data.read(write(tmp_path / f"{n}.csv", rows), TASK)) for n, rows in enumerate((ROWS, turned))]
    assert found[0] != found[1]


# ---- the whole section ----


def texts(encoded: Any) -> set[tuple[int, ...]]:
    return {tuple(ids) for ids in encoded["input_ids"]}


@pytest.fixture
def numbered(tokenizer: Any) -> Any:
    """A tokenizer that tells the texts of `many` apart."""
    words = ["[PAD]", "[UNK]", "text", "red", "blue", *map(str, range(100))]
    told = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    told.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=told, pad_token="[PAD]", unk_token="[UNK]")


def test_the_holdout_is_disjoint_complete_and_seeded(tmp_path: Path, numbered: Any) -> None:
    given = section(tmp_path, holdout=0.25)
    first, again, other = (data.prepare(given, TASK, numbered, 8, seed) for seed in (0, 0, 1))
    assert first.validation is not None
    assert len(first.validation) == 10
    assert not texts(first.train) & texts(first.validation)
    assert len(texts(first.train) | texts(first.validation)) == 40
    assert texts(first.validation) == texts(again.validation) != texts(other.validation)


def test_calibration_is_drawn_from_the_rows_that_are_trained_on(tmp_path: Path, numbered: Any) -> None:
    found = data.prepare(section(tmp_path, calibration=Calibration(samples=12)), TASK, numbered, 8, 0)
    assert len(found.calibration) == 12
    assert texts(found.calibration) <= texts(found.train)


def test_calibration_may_have_data_of_its_own_and_fewer_rows_than_asked(tmp_path: Path, numbered: Any) -> None:
    own = write(tmp_path / "own.csv", {"text": ["blue 7"], "label": ["a"]})
    found = data.prepare(section(tmp_path, calibration=Calibration(samples=12, source=own)), TASK, numbered, 8, 0)
    assert [numbered.decode(ids) for ids in found.calibration["input_ids"]] == ["blue 7"]


def test_rows_that_are_trained_on_and_proven_by_are_counted_and_told(
    tmp_path: Path, numbered: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    given = section(tmp_path, holdout=0)
    evaluation = {"text": ["text 3", "red", "text 4", "text 5"], "label": ["b", "b", "b", "b"]}  # "text 4" is an "a"
    write(tmp_path / "test.csv", evaluation)
    progress.set_level("normal")
    try:
        found = data.prepare(given, TASK, numbered, 8, 0)
    finally:
        progress.set_level("off")
    assert found.facts["evaluation"]["rows_also_in_train"] == 2
    assert "2 of the 4 rows of data.evaluation stand in data.train, too." in capsys.readouterr().err
    assert "rows_also_in_train" not in found.facts["train"]


def test_wrong_columns_and_separators_are_told(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", {"sentence": ["red"], "labels": ["a"]})
    said = r"no column 'text', 'label' \(Did you mean 'labels'\?\); it has sentence, labels\. Name the right one under"
    with pytest.raises(DataError, match=said):
        data.read(source, TASK)
    (tmp_path / "b.csv").write_text("text;label\nred, blue;a\n")
    with pytest.raises(DataError, match=r"its cells are not parted by commas \('text;label'\)"):
        data.read(Source(path=str(tmp_path / "b.csv")), TASK)


def test_without_a_holdout_nothing_validates(tmp_path: Path, numbered: Any) -> None:
    found = data.prepare(section(tmp_path, holdout=0), TASK, numbered, 8, 0)
    assert found.validation is None
    assert len(found.train) == 40


def test_named_validation_data_takes_nothing_from_training(tmp_path: Path, numbered: Any) -> None:
    own = write(tmp_path / "own.csv", {"text": ["blue 7"], "label": ["a"]})
    found = data.prepare(section(tmp_path, validation=own), TASK, numbered, 8, 0)
    assert found.validation is not None
    assert (len(found.train), len(found.validation)) == (40, 1)


def test_the_facts_name_path_rows_and_digest_of_each_source(tmp_path: Path, numbered: Any) -> None:
    given = section(tmp_path)
    facts = json.loads(json.dumps(dict(data.prepare(given, TASK, numbered, 8, 0).facts)))
    assert facts["train"]["rows"] == 40
    assert facts["evaluation"]["path"] == given.evaluation.path
    assert facts["evaluation"]["digest"] == data.digest(data.read(given.evaluation, TASK))
    assert facts["labels"] == 2


def test_a_single_class_is_nothing_to_learn(tmp_path: Path, numbered: Any) -> None:
    one = write(tmp_path / "one.csv", {"text": ["red", "blue"], "label": ["a", "a"]})
    with pytest.raises(DataError, match=r"data\.train has one class only, 'a': to tell classes apart takes two"):
        data.prepare(section(tmp_path).model_copy(update={"train": one}), TASK, numbered, 8, 0)


def test_a_holdout_that_leaves_nothing_is_refused(tmp_path: Path, numbered: Any) -> None:
    with pytest.raises(DataError, match=r"data\.holdout 0\.95 of the 4 examples of data\.train is all of them"):
        data.prepare(section(tmp_path, count=4, holdout=0.95), TASK, numbered, 8, 0)


def test_texts_without_a_token_are_counted(tmp_path: Path, tokenizer: Any) -> None:
    rows = data.read(write(tmp_path / "rows.jsonl", {"text": ["red", " ", ""], "label": ["a", "b", "b"]}), TASK)
    with pytest.raises(DataError, match=r"data\.train: 2 of 3 texts give no token; leave them out"):
        TASK.encode(rows, tokenizer, ["a", "b"], 8, "data.train")


def test_a_tokenizer_without_padding_pads_with_what_ends_a_text(tokenizer: Any) -> None:
    tokenizer.pad_token = None
    with pytest.raises(ModelError, match="has no token to pad with"):
        padding(tokenizer, "somewhere")
    tokenizer.eos_token = WORDS[3]
    assert padding(tokenizer, "somewhere").pad_token == WORDS[3]


def test_evaluation_labels_outside_training_are_refused(tmp_path: Path, numbered: Any) -> None:
    given = section(tmp_path)
    write(tmp_path / "test.csv", {"text": ["red"], "label": ["c"]})
    with pytest.raises(
        DataError, match=r"data\.evaluation has labels that training does not have: 'c'.*data\.train\.limit"
    ):
        data.prepare(given, TASK, numbered, 8, 0)
