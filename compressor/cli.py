"""The command line: a thin command for each verb. Results go to stdout, progress and errors to stderr.

Exit codes: 0 done, 1 a gate or a verification failed, 2 usage, recipe or input, 3 environment, 4 export, runtime or an
unexpected failure, 5 memory, disk or an interruption. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import os
import signal
import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from compressor import display, terminal
from compressor.terminal import Verb, show, working

if TYPE_CHECKING:
    from compressor.factory import Allowed
    from compressor.recipe import Recipe
    from validators.bench import Bench
    from validators.changes import Comparison
    from validators.report import Report

app = typer.Typer(
    cls=terminal.Verbs,
    help="Compress and adapt a pretrained model by low rank, fold, export, and prove it against the dense one.",
    no_args_is_help=True,
    rich_markup_mode=None,  # rich nearly doubles the time of --help
    pretty_exceptions_enable=False,
    add_completion=False,
)


def main() -> None:
    """Run the command line."""
    # torch's threads spin while they wait for each other; with other work on the cores that made eigh and matrix
    # products 10 to 70 times slower. A short spin costs nothing on an idle machine. To be said before torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what ends a CI job or a pod is an interruption, too
    app(prog_name="python -m compressor" if Path(sys.argv[0]).name == "__main__.py" else None)


@app.callback()
def program(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only results and errors.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Ranks and training losses too.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,  # noqa: ARG001 (read by Verb)
    version: Annotated[  # noqa: ARG001 (answered by its callback)
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=terminal.print_version)
    ] = False,
) -> None:
    """Set how much is said."""
    from compressor import progress

    progress.set_level("off" if quiet else "verbose" if verbose else "normal")


@app.command(cls=Verb)
def run(
    recipe: terminal.RecipePath,
    out: terminal.Out,
    settings: terminal.Settings = None,
    resume: terminal.Resume = False,
    overwrite: terminal.Overwrite = False,
    as_json: terminal.Json = False,
) -> None:
    """Do the whole line: baseline, compress, export, validate. Exit code 1 when a gate fails."""
    asked = _read(recipe, settings, out, overwrite)
    with working():
        from compressor import pipeline

        report = pipeline.run(asked, out, resume=resume, overwrite=overwrite)
    _judge(report, as_json)


@app.command(cls=Verb)
def compress(
    recipe: terminal.RecipePath,
    out: terminal.Out,
    settings: terminal.Settings = None,
    resume: terminal.Resume = False,
    overwrite: terminal.Overwrite = False,
    as_json: terminal.Json = False,
) -> None:
    """Stop at the folded model.

    Nothing is exported, nothing is judged.
    """
    asked = _read(recipe, settings, out, overwrite)
    with working():
        from compressor import pipeline

        artifact = pipeline.compress(asked, out, resume=resume, overwrite=overwrite)
    facts = {
        "path": str(artifact.path),
        "parameters": artifact.plan.parameters,
        "dense": artifact.plan.dense_parameters,
    }
    show(facts, lambda: f"{artifact.path}: {facts['parameters']:,} of {facts['dense']:,} parameters", as_json)


@app.command(cls=Verb)
def plan(
    recipe: terminal.RecipePath,
    out: Annotated[Path | None, typer.Option("--out", help="The run folder; a scratch one otherwise.")] = None,
    settings: terminal.Settings = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the resolved recipe and the stages.")] = False,
    resume: terminal.Resume = False,
    overwrite: terminal.Overwrite = False,
    as_json: terminal.Json = False,
) -> None:
    """Choose the ranks and stop."""
    from dataclasses import asdict

    asked = _read(recipe, settings, out, overwrite)
    if dry_run:
        show(display.dry_run(asked, out), lambda: display.dry_run_text(asked, out), as_json)
        return
    with working():
        from compressor import pipeline

        chosen = pipeline.plan(asked, out, resume=resume, overwrite=overwrite)
    totals = {"parameters": chosen.parameters, "dense_parameters": chosen.dense_parameters}
    show(asdict(chosen) | totals, lambda: display.plan_table(chosen), as_json)


@app.command(cls=Verb)
def export(
    path: terminal.RunPath,
    to: Annotated[str, typer.Option("--to", help="The runtime; `list exporters` names them.")] = "onnx",
    precision: Annotated[str, typer.Option("--precision", help="fp32, int8, ...; the runtime says which.")] = "fp32",
    factory: terminal.FactoryName = None,
    trust_remote_code: terminal.Trust = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an export that is there.")] = False,
    as_json: terminal.Json = False,
) -> None:
    """Export a run once more, and measure all its exports. Exit code 1 when a gate fails."""
    from compressor import registry

    registry.exporter(to, precision)  # a wrong name is told before anything slow begins
    with working():
        from compressor import exporting, proving

        code: Allowed = {"factory": factory, "trust_remote_code": trust_remote_code}
        exporting.export(path, to, precision=precision, overwrite=overwrite, **code)
        report = proving.validate(path, **code)
    _judge(report, as_json)


@app.command(cls=Verb)
def validate(
    path: terminal.RunPath,
    settings: terminal.Settings = None,
    factory: terminal.FactoryName = None,
    trust_remote_code: terminal.Trust = False,
    as_json: terminal.Json = False,
) -> None:
    """Measure every export of a run again, by other gates too. Exit code 1 when a gate fails."""
    with working():
        from compressor import proving

        code: Allowed = {"factory": factory, "trust_remote_code": trust_remote_code}
        report = proving.validate(path, settings=settings or (), **code)
    _judge(report, as_json)


@app.command(cls=Verb)
def report(path: terminal.RunPath, as_json: terminal.Json = False) -> None:
    """Draw the report's pages again, and print it.

    report.md, report.html and junit.xml, from the report.json beside them; a file of another name is only printed.
    """
    from compressor.artifact import REPORT
    from validators.report import Report

    saved = Report.read(path)
    folder = path.parent if path.name == REPORT else path
    show(saved.to_dict(), lambda: str(saved), as_json)
    if folder.is_dir():
        saved.draw(folder)  # after it is printed: the folder may not let pages be written


@app.command(cls=Verb)
def compare(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="The last release: a run folder or report.json.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="What is held against it: the same.")],
    gates: terminal.Gates = None,
    markdown: terminal.Markdown = None,
    allow_different_data: Annotated[
        bool, typer.Option("--allow-different-data", help="Compare although the evaluation data differs.")
    ] = False,
    as_json: terminal.Json = False,
) -> None:
    """Hold a report against the last release's. Exit code 1 when it is worse."""
    from validators import compare

    percents = compare.percentages(gates or ())
    found = compare.compare(*compare.read(before, after), percents, allow_different_data=allow_different_data)
    _judge(found, as_json, markdown)


@app.command(cls=Verb)
def bench(
    exports: Annotated[
        list[Path],
        typer.Argument(metavar="EXPORT", help="Export folders or ONNX files, anybody's; the first is held against."),
    ],
    device: Annotated[Literal["cpu", "cuda"], typer.Option("--device", help="Where they run.")] = "cpu",
    threads: Annotated[int, typer.Option("--threads", min=0, help="0: as many as this process may use.")] = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Rows of made-up inputs.")] = 1,
    sequence_length: Annotated[int, typer.Option("--sequence-length", min=1, help="Their tokens.")] = 64,
    inputs: Annotated[Path | None, typer.Option("--inputs", metavar="NPZ", help="Real inputs by name instead.")] = None,
    runs: Annotated[int, typer.Option("--runs", min=10, help="Timed rounds.")] = 200,
    gates: terminal.Gates = None,
    markdown: terminal.Markdown = None,
    as_json: terminal.Json = False,
) -> None:
    """Hold any exports against the first.

    In size, memory and latency, without recipe or data. Exit code 1 when a gate fails.
    """
    from exporters.base import Session
    from validators import compare
    from validators.bench import bench

    percents = compare.percentages(gates or ())
    with working():
        found = bench(
            exports,
            Session(device, threads),
            batch_size=batch_size,
            sequence_length=sequence_length,
            runs=runs,
            inputs_file=inputs,
            percents=percents,
        )
    _judge(found, as_json, markdown)


@app.command(cls=Verb)
def generate(
    path: Annotated[Path, typer.Argument(metavar="EXPORT", help="A folder under exports/ of a text-generation run.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to continue.")],
    new_tokens: Annotated[int, typer.Option("--new-tokens", min=1, help="At most so many tokens.")] = 64,
    as_json: terminal.Json = False,
) -> None:
    """Continue a text with an exported model.

    A language model, which says the likeliest token, again and again, without torch.
    """
    from exporters.generate import text

    pieces = text(path, prompt, new_tokens=new_tokens)
    if as_json:
        show({"prompt": prompt, "text": "".join(pieces)}, str, as_json)
        return
    first = next(pieces, "")  # what cannot be continued is told before anything is printed
    for piece in chain([prompt, first], pieces):
        typer.echo(piece, nl=False)
    typer.echo()


@app.command(cls=Verb)
def package(
    path: terminal.RunPath,
    export: Annotated[  # its name shadows a verb here, as the option's must
        str | None,
        typer.Option(
            "--export", help="A folder under exports/, or baseline/NAME; the winner or smallest that holds otherwise."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The archive to write; <RUN>.tar.gz beside the run otherwise.")
    ] = None,
    sign_with: Annotated[
        Path | None,
        typer.Option("--sign-with", metavar="KEY", help="Sign with this private key (elliptic curve, PEM)."),
    ] = None,
    allow_failed_gates: Annotated[
        bool, typer.Option("--allow-failed-gates", help="Package it all the same; its model card says so.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an archive that is there.")] = False,
    trust_remote_code: terminal.Trust = False,
    as_json: terminal.Json = False,
) -> None:
    """Write the one file that ships. Exit code 1 when a gate fails or nothing is proven."""
    from dataclasses import asdict

    with working():
        from compressor.packaging import assemble

        made = assemble.package(
            path,
            out,
            export=export,
            sign_with=sign_with,
            allow_failed_gates=allow_failed_gates,
            overwrite=overwrite,
            trust_remote_code=trust_remote_code,
        )
    show(asdict(made), lambda: str(made), as_json)


@app.command(cls=Verb)
def verify(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A package, its unpacked folder, or a run folder.")],
    public_key: Annotated[
        Path | None, typer.Option("--public-key", metavar="KEY", help="Check a package's signature with it (PEM).")
    ] = None,
    as_json: terminal.Json = False,
) -> None:
    """Compare every file of a package or run with its digest. Exit code 1 when something differs."""
    from compressor.packaging.verification import verify

    found = verify(path, public_key)
    data = {"path": str(found.path), "kind": found.kind, "verified": True, "files": found.files}
    show(data | ({"signature": found.signature} if found.kind == "package" else {}), lambda: str(found), as_json)


@app.command(cls=Verb)
def inspect(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A local folder, a hub id, or package.module:function.")
    ],
    targets: Annotated[list[str] | None, typer.Option("--targets", help="Globs over module names.")] = None,
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="Globs over names that stay dense.")] = None,
    task: Annotated[str, typer.Option("--task", help="Its task; `list tasks` names them.")] = "text-classification",
    trust_remote_code: terminal.Trust = False,
    as_json: terminal.Json = False,
) -> None:
    """Show every linear layer of a model.

    And whether it would be compressed, or why not.
    """
    from dataclasses import asdict

    from compressor.paths import resolve

    path = resolve(model, Path.cwd(), "RANKFOLD_MODELS", code=True)
    with working():
        from compressor import registry
        from compressor.models import describe

        asked = registry.task(task)
        found = describe(path, asked, targets or "auto", exclude or (), trust_remote_code=trust_remote_code)
    rows = [asdict(one) | {"parameters": one.parameters, "break_even": one.break_even} for one in found]
    show({"model": path, "layers": rows}, lambda: display.layer_table(found), as_json)


@app.command(cls=Verb)
def doctor(as_json: terminal.Json = False) -> None:
    """Look over this environment. Exit code 3 when something required is broken."""
    from dataclasses import asdict

    from compressor.doctor import diagnose

    found = diagnose()
    healthy = all(one.status != "broken" for one in found)
    data = {"healthy": healthy, "diagnoses": [asdict(one) for one in found]}
    show(data, lambda: display.diagnosis_list(found), as_json)
    if not healthy:
        raise typer.Exit(3)


@app.command(cls=Verb)
def init(path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("recipe.yaml")) -> None:
    """Write a commented recipe to start from."""
    from importlib.resources import files

    from compressor.errors import InputError

    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(files("compressor").joinpath("template.yaml").read_text(encoding="utf-8"))
    except FileExistsError as error:
        raise InputError(f"{path} is there already and is left as it is; name another file.") from error
    typer.echo(f"{path}: edit model.path and data, then `python -m compressor run {path} --out runs/first`")


@app.command(cls=Verb)
def schema(
    table: Annotated[bool, typer.Option("--table", help="Print a Markdown table of the keys.")] = False,
) -> None:
    """Print the JSON Schema of a recipe, for editors."""
    from compressor import recipe
    from compressor.schema import markdown

    described = recipe.json_schema()
    typer.echo(markdown(described).rstrip() if table else display.to_json(described))


@app.command("list", cls=Verb)
def catalog(
    kind: Annotated[Literal["tasks", "methods", "exporters", "checks"], typer.Argument(help="What to list.")],
    as_json: terminal.Json = False,
) -> None:
    """Show what a recipe can name: tasks, methods and their keys, runtimes and their precisions, checks and gates."""
    from compressor.catalog import entries, to_dict

    found = entries(kind)
    show({kind: [to_dict(one) for one in found]}, lambda: display.catalog_list(found), as_json)


def _read(path: Path, settings: list[str] | None, out: Path | None, overwrite: bool) -> Recipe:
    from compressor import recipe
    from compressor.run_folder import require_spared

    if overwrite and out is not None:
        require_spared([str(path)], out)
    return recipe.read(path, settings or ())


def _judge(result: Report | Comparison | Bench, as_json: bool, markdown: Path | None = None) -> None:
    from compressor import step_summary

    show(result.to_dict(), lambda: str(result), as_json)
    step_summary.append(result, markdown)
    result.raise_for_gates()
