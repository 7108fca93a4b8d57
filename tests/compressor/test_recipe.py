"""The recipe: faults with lines, overrides, paths, round trips, and documentation that agrees with the schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compressor import document, paths, recipe, registry, schema
from compressor.errors import InputError, RecipeError

GOOD = """\
model: {path: some/model}
data:
  train: {path: some/data, split: train}
  evaluation: {path: some/data, split: test}
"""
DOCS = Path(__file__).parents[2] / "docs" / "recipe.md"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANKFOLD_MODELS", raising=False)
    monkeypatch.delenv("RANKFOLD_DATA", raising=False)


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def faults(tmp_path: Path, text: str, *settings: str) -> str:
    path = write(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        recipe.read(path, settings)
    return str(caught.value).replace(str(path), "recipe.yaml")


def test_a_short_recipe_gets_every_default(tmp_path: Path) -> None:
    read = recipe.read(write(tmp_path, GOOD))
    assert read.plan.budget.parameters == 0.5
    assert type(read.method).__name__ == "Jactus"
    assert [export.name for export in read.export] == ["onnx-fp32"]


def test_all_faults_are_listed_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = GOOD + "plan:\n  stratgey: gain\n  multiple_of: 0\nmethod: {name: jactus, unoin: 0.5}\nseed: many\n"
    assert faults(tmp_path, text).splitlines() == [
        "recipe.yaml has 4 faults:",
        "  recipe.yaml:6: plan.stratgey: unknown key. Did you mean 'strategy'?",
        "  recipe.yaml:7: plan.multiple_of: must be greater than or equal to 1, not 0.",
        "  recipe.yaml:8: method.unoin: unknown key. Did you mean 'union'?",
        "  recipe.yaml:9: seed: must be a valid integer, unable to parse string as an integer, not 'many'.",
    ]


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (
            "plan: {strategy: gian}\n",
            "recipe.yaml:5: plan.strategy: 'gian' is not allowed; allowed is 'gain', 'energy'",
        ),
        ("gates: {acuracy: {type: threshold, value: 1}}\n", "gates.acuracy: unknown key. Did you mean 'accuracy'?"),
        ("gates:\n  size: {type: threshold}\n", "recipe.yaml:6: gates.size.value: is missing: the limit"),
        ("method: {name: jactos}\n", "recipe.yaml:5: method.name: 'jactos' is not one of the methods"),
        ("method: jactus\n", "method: must be a section such as {name: jactus}, not 'jactus'."),
        ("method: {name: jactus, union: 7}\n", "recipe.yaml:5: method.union: must be less than 1, not 7."),
        ("export:\n  - {runtime: onxx}\n", "recipe.yaml:6: export.0.runtime: 'onxx' is not one of the runtimes"),
        ("plan:\n", "recipe.yaml:5: plan: must be a section with keys of its own, not nothing."),
        (
            "plan: {budget: 0.5}\n",
            "plan.budget: is 0.5 of what? Write one of {parameters: 0.5}, {latency: 0.5}, {memory: 0.5}.",
        ),
        ("seed: 4294967296\n", "recipe.yaml:5: seed: must be less than 4294967296, not 4294967296."),
        ("null: x\n", "recipe.yaml:5: null: is no text to YAML: put the key in quotes."),
        ("true: x\n", "recipe.yaml:5: true: is no text to YAML: put the key in quotes."),
        (
            "gates: {accuracy: {type: threshold, value: 90}}\n",
            "value: is a share between 0 and 1: a threshold of 90 % is",
        ),
        ("gates: {parity: {type: threshold, value: -1}}\n", "gates.parity.value: is a share between 0 and 1"),
        ("gates: {accuracy: {type: max-degradation, value: 2}}\n", "two points are 0.02, not 2."),
        ("gates: {accuracy: {type: max-degradation, value: 1}}\n", "two points are 0.02, not 1."),
        ("adapt: {learning_rate: .inf}\n", "adapt.learning_rate: must be a finite number, not inf."),
        ("method: {name: jactus, ridge: .inf}\n", "method.ridge: must be a finite number, not inf."),
        ("baseline: {path: ''}\n", "baseline.path: '' is empty: name a file or folder."),
        ("gates: {size: {type: percent-min-improvement, value: 101}}\n", "101 percent less than dense, which nothing"),
        ("gates: {size: {type: threshold, value: -5}}\n", "is -5, and nothing that is measured is less than 0."),
        ("gates: {accuracy: {type: percent-max-degradation, value: 150}}\n", "lets 150 percent of a share be lost"),
        ("gates: {size: {type: threshold, value: .nan}}\n", "gates.size.value: must be a finite number, not nan."),
        ("seed: 1\nseed: 2\n", "seed: stands on line 5 and on line 6: keep one of them."),
        ("epochs: 3\n", "epochs: unknown key. Allowed: version, seed, model"),
        ("export: [{}, {}]\n", "recipe.yaml:5: export.1: onnx-fp32 stands twice"),
        (
            "export: []\ngates: {size: {type: threshold, value: 1}}\n",
            "gates: limit what exports do, but `export` is empty",
        ),
        ("baseline: {path: a/b, train: full}\n", "baseline.train: cannot stand beside baseline.path"),
        (
            "validate: {device: cuda}\nexport: [{precision: int8}]\n",
            "0.precision: int8 of onnx runs on the cpu only, but",
        ),
        (
            "validate: {device: cuda}\nexport: [{precision: int8-static}]\n",
            "precision: int8-static of onnx runs on the cpu only",
        ),
        ("plan: {layout: pivoted}\nexport: [{precision: int4}]\n", "int4 does not go with the pivoted layout, which"),
        (
            "export: [{precision: int3}]\n",
            "export.0.precision: The onnx exporter writes fp32, fp16, int8, int8-static, int8-weights, int4, ",
        ),
        ("plan: {path: plan.json}\n", "plan.path: 'plan.json' does not exist. Looked for"),
    ],
)
def test_a_fault_says_where_and_what_is_allowed(tmp_path: Path, extra: str, said: str) -> None:
    assert said in faults(tmp_path, GOOD + extra)


def test_a_recipe_that_is_nowhere_gets_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    with pytest.raises(RecipeError, match=r"recipe\.yml: there is no such file\. Did you mean 'recipe\.yaml'\?"):
        recipe.read(tmp_path / "recipe.yml")
    with pytest.raises(RecipeError, match=r"init .*other` writes one to start from"):
        recipe.read(tmp_path / "other")


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("plan: {budget: 0.5}\ngates: {latency: {type: threshold, value: 1}}\n", ["plan.budget", "gates.latency"]),
        ("export: onnx\nplan: {budget: 0.5}\n", ["export", "plan.budget"]),
        ("export: [{precision: int9}]\nplan: {budget: 0.5}\n", ["export.0.precision", "plan.budget"]),
    ],
)
def test_two_faults_are_two_faults(tmp_path: Path, extra: str, said: list[str]) -> None:
    message = faults(tmp_path, GOOD + extra)
    assert message.startswith("recipe.yaml has 2 faults:")
    assert all(f"{name}: " in message for name in said)


def test_targets_that_are_neither_auto_nor_globs_make_one_fault(tmp_path: Path) -> None:
    message = faults(tmp_path, GOOD, "model.targets=5")
    assert message.count("model.targets:") == 1
    assert "'auto'" in message
    assert "valid list" in message


def test_a_wrong_item_of_a_list_is_named_by_its_index(tmp_path: Path) -> None:
    message = faults(tmp_path, GOOD, "model.targets=[query, 5]")
    assert "model.targets.1: must be a valid string, not 5." in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "must hold sections such as `model:` and `data:`; it holds nothing."),
        ("- a\n- b\n", "it holds a list."),
        ("model: [\n", "recipe.yaml:2: not valid YAML"),
        (
            "model: !!python/object/apply:os.system [ls]\n",
            "recipe.yaml:1: not valid YAML: could not determine a constructor",
        ),
        ("a: &a\n  - *a\n", "an anchor may refer to itself."),
        ("a: " + "[" * 3000, "nested too deeply"),
        ("day: 2026-99-99\n", "not valid YAML: month must be in 1..12"),
    ],
)
def test_text_that_is_no_recipe_is_refused(tmp_path: Path, text: str, said: str) -> None:
    assert said in faults(tmp_path, text)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"there is no such file. `python -m compressor init .*nothing.yaml`"):
        recipe.read(tmp_path / "nothing.yaml")
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        recipe.read(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="is no UTF-8 text"):
        recipe.read(tmp_path / "binary.yaml")


def test_settings_override_the_file_and_make_missing_sections(tmp_path: Path) -> None:
    text = GOOD + "export: [{precision: fp32}, {precision: int8}]\nplan:\n"
    settings = ["plan.budget.parameters=0.25", "method={name: cersa, alpha: 0.5}", "export.1.precision=fp32"]
    with pytest.raises(RecipeError, match="stands twice"):  # the third setting made the two exports the same
        recipe.read(write(tmp_path, text), settings)
    read = recipe.read(write(tmp_path, text), settings[:2])
    assert read.plan.budget.parameters == 0.25
    assert read.method.alpha == 0.5


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("plan.budgt.parameters=1", "--set plan.budgt.parameters=1: plan.budgt: unknown key. Did you mean 'budget'?"),
        ("plan.budget.parameters=2", "--set plan.budget.parameters=2: plan.budget.parameters: must be less than"),
        ("foo", "--set foo: foo: must have the form key.key=value"),
        ("seed=[", "--set seed=[: seed: while parsing"),
        ("model.path.x=1", "'model.path' is a single value here"),
        ("export.0.precision=int8", "'export' is no list in the file; give all of it"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, setting: str, said: str) -> None:
    assert said in faults(tmp_path, GOOD, setting)


def test_an_override_of_an_anchored_section_changes_one_place_only(tmp_path: Path) -> None:
    data = "  train: &all {path: c/d}\n  evaluation: {<<: *all, split: test}\n  validation: {<<: *all, split: dev}\n"
    text = f"model: {{path: a/b}}\ndata:\n{data}"
    read = recipe.read(write(tmp_path, text), ["data.train.text=words"])
    assert (read.data.train.text, read.data.validation and read.data.validation.text) == ("words", "text")


def test_subsets_are_other_rows(tmp_path: Path) -> None:
    text = "model: {path: a/b}\ndata:\n  train: {path: c/d, subset: en}\n"
    read = recipe.read(write(tmp_path, text + "  evaluation: {path: c/d, subset: de}\n"))
    assert (read.data.train.subset, read.data.evaluation.subset) == ("en", "de")
    assert "the same rows as data.train" in faults(tmp_path, text + "  evaluation: {path: c/d, subset: en}\n")


def test_validation_rows_are_no_training_rows(tmp_path: Path) -> None:
    text = GOOD.replace("data:\n", "data:\n  validation: {path: some/data, split: train, text: words}\n")
    assert "data.validation: chooses by the rows that are trained on, data.train." in faults(tmp_path, text)


def test_keys_that_nothing_would_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,b\n")
    (tmp_path / "weights").mkdir()
    text = GOOD.replace("train: {path: some/data, split: train}", "train: {path: train.csv, subset: en}")
    said = faults(tmp_path, text.replace("{path: some/model}", "{path: weights, revision: main}"))
    assert f"data.train.subset: is one of a hub data set, but {tmp_path / 'train.csv'} is a file; take it out." in said
    assert f"model.revision: is one of a hub id, but {tmp_path / 'weights'} is a folder; take it out." in said
    text = GOOD.replace("train: {path: some/data, split: train}", "train: {path: train.csv, split: dev}")
    assert f"data.train.split: is one of a folder or hub data set, but {tmp_path / 'train.csv'} is a" in faults(
        tmp_path, text
    )


@pytest.mark.parametrize(
    ("task", "key"),
    [("text-generation", "text_pair"), ("text-classification", "choices"), ("image-classification", "text")],
)
def test_columns_that_the_task_does_not_read_are_refused(tmp_path: Path, task: str, key: str) -> None:
    named = [f"data.{source}.{key}=other" for source in ("train", "evaluation")]
    said = faults(tmp_path, GOOD, f"model.task={task}", *named)
    for source in ("train", "evaluation"):
        assert f"data.{source}.{key}: is not read for the task {task}; take it out." in said


def test_second_texts_are_named_for_every_source_or_for_none(tmp_path: Path) -> None:
    pairs = ["data.train.text_pair=other", "data.evaluation.text_pair=second"]
    for named, where in ((pairs[:1], "evaluation"), (pairs[1:], "evaluation")):
        said = (
            f"data.{where}.text_pair: must be named for all sources or for none, data.train and data.evaluation alike"
        )
        assert said in faults(tmp_path, GOOD, *named)
    found = recipe.read(write(tmp_path, GOOD), pairs).data
    assert (found.train.text_pair, found.evaluation.text_pair) == ("other", "second")


@pytest.mark.parametrize(
    ("left_out", "said"),
    [
        ("  evaluation: {path: some/data, split: test}\n", "data.evaluation: is missing: what accuracy and parity are"),
        ("model: {path: some/model}\n", "model: is missing: Which pretrained model, for which task, and which of its"),
    ],
)
def test_what_is_missing_is_told_in_its_own_words(tmp_path: Path, left_out: str, said: str) -> None:
    found = faults(tmp_path, GOOD.replace(left_out, ""))
    assert said in found
    assert ".." not in found


def test_a_link_is_read_by_its_own_name_and_known_for_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "3f2a").write_text("text,label\na,b\n")
    (tmp_path / "folder").mkdir()
    for name, target in (("train.csv", "3f2a"), ("test.csv", "3f2a"), ("link", "folder")):
        (tmp_path / name).symlink_to(target)
    assert paths.resolve("train.csv", tmp_path, None) == str(tmp_path / "train.csv")
    for train, evaluation in (("train.csv", "test.csv"), ("link", "folder")):
        settings = [f"data.train={{path: ./{train}}}", f"data.evaluation={{path: ./{evaluation}}}"]
        assert "the same rows as data.train" in faults(tmp_path, GOOD, *settings)


def test_a_variable_that_is_empty_leads_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKFOLD_NOTHING", "")
    (tmp_path / "train.csv").write_text("text,label\na,b\n")
    said = faults(tmp_path, GOOD.replace("{path: some/data, split: train}", "{path: $RANKFOLD_NOTHING}"))
    assert "data.train.path: '$RANKFOLD_NOTHING' is empty: name a file or folder." in said


def test_dump_reads_back_to_the_same_recipe(tmp_path: Path) -> None:
    extra = "method: {name: moft, strict: true}\nbaseline: {path: x/y}\ngates: {size: {type: threshold, value: 3}}\n"
    read = recipe.read(write(tmp_path, GOOD + extra))
    data = json.loads(json.dumps(recipe.dump(read)))
    again = recipe.Recipe.model_validate(data)
    assert recipe.dump(again) == data
    assert again.method == read.method
    assert data["method"]["name"] == "psoft"
    assert recipe.read(write(tmp_path, json.dumps(data))).gates == read.gates


def test_a_given_baseline_is_not_trained(tmp_path: Path) -> None:
    assert recipe.read(write(tmp_path, GOOD + "baseline: {path: x/y}\n")).baseline.train == "none"


@pytest.mark.parametrize("role", ["train", "validation", "calibration.source"])
def test_evaluating_on_data_that_chose_something_is_refused(tmp_path: Path, role: str) -> None:
    (tmp_path / "rows").mkdir()
    settings = [
        "data.evaluation.path=./rows",
        f"data.{role}={{path: rows, split: test}}",
    ]  # two spellings of one folder
    message = faults(tmp_path, GOOD, *settings)
    assert f"the same rows as data.{role.partition('.')[0]}." in message


@pytest.mark.parametrize(
    ("train", "evaluation"),
    [
        ("{path: rows/all.csv, split: train}", "{path: rows/all.csv, split: test}"),  # a file has no splits
        ("{path: rows, split: all}", "{path: rows/all.csv}"),
    ],
)
def test_evaluating_on_the_file_that_is_trained_on_is_refused(tmp_path: Path, train: str, evaluation: str) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "all.csv").write_text("text,label\na,b\n")
    message = faults(tmp_path, GOOD, f"data.train={train}", f"data.evaluation={evaluation}")
    assert "evaluates on its own training data: the same rows as data.train." in message


def test_a_gate_on_what_the_task_does_not_measure_is_refused(tmp_path: Path) -> None:
    text = GOOD + "gates: {perplexity: {type: threshold, value: 3}}\n"
    assert "gates.perplexity: is not measured for the task text-classification, which has accuracy" in faults(
        tmp_path, text
    )
    assert recipe.read(write(tmp_path, text), ["model.task=text-generation"]).gates["perplexity"].value == 3


def test_paths_are_looked_up_beside_the_recipe_then_here_then_in_the_collection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside, here, collection = (tmp_path / name for name in ("beside", "here", "collection"))
    for folder in (beside, here, collection):
        (folder / "only").mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("SOME_MODELS", str(collection))
    for folder in (beside, here, collection):
        assert paths.resolve("only", beside, "SOME_MODELS") == str(folder / "only")
        (folder / "only").rmdir()
    assert paths.resolve("only", beside, "SOME_MODELS") == "only"


def test_variables_and_home_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PLACE", str(tmp_path))
    assert paths.resolve("~/", tmp_path, "X") == paths.resolve("$PLACE", tmp_path, "X") == str(tmp_path)
    with pytest.raises(InputError, match=r"environment variable \$NOWHERE, which is not set"):
        paths.resolve("$NOWHERE/model", tmp_path, "X")


@pytest.mark.parametrize("path", ["owner/name", "name", "bert-base-uncased"])
def test_what_looks_like_a_hub_id_is_left_alone(tmp_path: Path, path: str) -> None:
    assert paths.resolve(path, tmp_path, "X") == path


@pytest.mark.parametrize("path", ["package.module:factory", "module:factory"])
def test_code_is_only_named_where_a_model_is_meant(tmp_path: Path, path: str) -> None:
    assert paths.resolve(path, tmp_path, "X", code=True) == path
    with pytest.raises(InputError, match=rf"'{path}' names code, which only model\.path may do"):
        paths.resolve(path, tmp_path, "X")


def test_a_processor_of_its_own_is_looked_up_like_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "collection" / "words").mkdir(parents=True)
    monkeypatch.setenv("RANKFOLD_MODELS", str(tmp_path / "collection"))
    read = recipe.read(write(tmp_path, GOOD), ["model.processor=words"])
    assert read.model.processor == str(tmp_path / "collection" / "words")
    assert "model.processor: './nowhere' does not exist" in faults(tmp_path, GOOD, "model.processor=./nowhere")


@pytest.mark.parametrize("path", ["./name", "/no/such/place", "a/b/c", "rows.parquet", "../name"])
def test_a_missing_local_file_is_refused_with_all_places_tried(tmp_path: Path, path: str) -> None:
    with pytest.raises(InputError) as caught:
        paths.resolve(path, tmp_path / "beside", "X")
    tried = {str(Path(base, path).resolve()) for base in (tmp_path / "beside", tmp_path)}
    assert all(place in str(caught.value) for place in tried)


@pytest.mark.parametrize("place", ["beside", "here", "collection"])
def test_a_mistyped_folder_is_no_hub_id_where_its_parent_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / place / "models" / "minilm").mkdir(parents=True)
    (tmp_path / "here").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("SOME_MODELS", str(tmp_path / "collection"))
    with pytest.raises(InputError, match=r"'models/minlim' does not exist\. Looked for .*Did you mean 'minilm'\?"):
        paths.resolve("models/minlim", tmp_path / "beside", "SOME_MODELS")
    assert paths.resolve("owner/minlim", tmp_path / "beside", "SOME_MODELS") == "owner/minlim"


def test_the_line_of_every_value_is_known() -> None:
    text = "a:\n  b:\n    - x\n    -\n      c: 1\n"
    found = document.parse(text, "t")
    assert [found.place(at) for at in [("a",), ("a", "b"), ("a", "b", "0"), ("a", "b", "1", "c")]] == [1, 2, 3, 5]
    assert found.place(("a", "b", "1", "missing")) == found.place(("a", "b", "1"))


def test_the_schema_has_an_alternative_for_every_method_and_runtime() -> None:
    described = recipe.json_schema()
    alternatives = {one["properties"]["name"]["const"]: one for one in described["$defs"]["Method"]["oneOf"]}
    assert set(alternatives) == set(registry.names("methods"))
    assert all(one["additionalProperties"] is False for one in alternatives.values())
    assert described["$defs"]["ExportSection"]["properties"]["runtime"]["enum"] == sorted(registry.names("exporters"))
    assert "name" not in alternatives["jactus"]["required"]
    assert "name" in alternatives["cersa"]["required"]


def test_every_reference_of_the_schema_resolves() -> None:
    described = recipe.json_schema()
    text = json.dumps(described)
    names = {part.partition('"')[0] for part in text.split('"#/$defs/')[1:]}
    assert names <= set(described["$defs"])


def test_every_key_is_described() -> None:
    assert [row.key for row in schema.rows(recipe.json_schema()) if not row.description] == []


def test_the_documentation_lists_every_key_as_the_schema_has_it() -> None:
    documented = DOCS.read_text().partition("<!-- keys -->\n")[2].partition("<!-- end of keys -->")[0]
    assert documented == schema.markdown(recipe.json_schema()), (
        "docs/recipe.md and the schema differ: put what `python -m compressor schema --table` prints between the marks"
    )


def test_the_example_in_the_documentation_is_the_template(tmp_path: Path) -> None:
    example = DOCS.read_text().partition("```yaml\n")[2].partition("```")[0]
    assert example == Path(recipe.__file__).with_name("template.yaml").read_text()
    assert set(recipe.read(write(tmp_path, example)).gates) == {
        "accuracy",
        "parity",
        "size",
        "peak_memory",
        "latency_p50",
    }


def test_a_baseline_without_the_task_teaches_nothing(tmp_path: Path) -> None:
    read = recipe.read(write(tmp_path, GOOD))
    assert read.distillation == recipe.Distillation()
    untaught = recipe.read(write(tmp_path, GOOD + "baseline: {train: none}\n"))
    assert untaught.distillation is None
    assert recipe.Recipe.model_validate(recipe.dump(untaught)).distillation is None
    assert read.starts_adapted
    assert not untaught.starts_adapted
    assert "model.start: compresses the dense baseline, which baseline.train: none leaves without the task" in faults(
        tmp_path, GOOD.replace("}", ", start: adapted}", 1) + "baseline: {train: none}\n"
    )
    assert (
        "adapt.distill: is taught by the dense baseline, which baseline.train: none leaves without the task"
        in faults(tmp_path, GOOD + "baseline: {train: none}\nadapt: {distill: {hidden: 2}}\n")
    )


def test_lessons_can_be_switched_off(tmp_path: Path) -> None:
    assert recipe.read(write(tmp_path, GOOD + "adapt: {distill: null}\n")).distillation is None


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (
            "",
            [
                "onnx-fp32",
                "onnx-fp16",
                "onnx-int8",
                "onnx-int8-static",
                "onnx-int8-weights",
                "onnx-int4",
                "onnx-fp32-fused",
                "onnx-int8-fused",
            ],
        ),
        ("validate: {device: cuda}\n", ["onnx-fp32", "onnx-fp16", "onnx-int4"]),
        ("plan: {layout: pivoted}\n", ["onnx-fp32", "onnx-fp16", "onnx-fp32-fused"]),
    ],
)
def test_auto_exports_what_runs_on_the_device_and_suits_the_layout(
    tmp_path: Path, more: str, expected: list[str]
) -> None:
    read = recipe.read(write(tmp_path, f"{GOOD}export: auto\n{more}"))
    assert [export.name for export in read.exports] == expected
    assert recipe.Recipe.model_validate(recipe.dump(read)).exports == read.exports


def test_another_word_than_auto_is_refused_with_what_is_allowed(tmp_path: Path) -> None:
    found = faults(tmp_path, GOOD + "export: atuo\n")
    assert found.startswith("recipe.yaml:5: export: ")
    assert "'auto'" in found
