"""What every command shares: switches, option types, results on stdout, failures as a sentence and an exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

ANYWHERE = ("--quiet", "-q", "--verbose", "-v", "--debug")


class Verbs(TyperGroup):
    """The program's own switches may stand before or after the verb."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Move the switches to the front."""
        switches = [word for word in args if word in ANYWHERE]
        return super().parse_args(ctx, switches + [word for word in args if word not in ANYWHERE])


class Verb(TyperCommand):
    """A command whose failures become one sentence on stderr and an exit code."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except (Exception, KeyboardInterrupt) as error:
            if ctx.find_root().params["debug"]:
                traceback.print_exc()
            raise typer.Exit(_tell(error)) from error


RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe, a YAML file.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Out = Annotated[Path, typer.Option("--out", help="The run folder to write.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key: plan.budget.parameters=0.3.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on after the last finished stage.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start again in a folder that holds a run.")]
FactoryName = Annotated[
    str | None,
    typer.Option("--factory", metavar="MODULE:FUNCTION", help="Run your own code that the recipe's model.path named."),
]
Trust = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the code that the checkpoint ships, as its recipe did.")
]
Gates = Annotated[
    list[str] | None,
    typer.Option("--gate", metavar="QUANTITY=PERCENT", help="How much worse it may be: latency_p50=10."),
]
Markdown = Annotated[Path | None, typer.Option("--markdown", help="Append the result to this file.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def print_version(asked: bool) -> None:
    """Callback of --version."""
    if asked:
        from importlib.metadata import version

        typer.echo(f"rankfold {version('rankfold')}")
        raise typer.Exit


def show(data: dict[str, Any], text: Callable[[], str], as_json: bool) -> None:
    """Print a result: one JSON object, or its text."""
    from compressor.display import to_json

    typer.echo(to_json(data) if as_json else text())


def _tell(error: BaseException) -> int:
    from compressor.failures import explain

    text, code = explain(error)
    typer.echo(f"error: {text}", err=True)
    return code


@contextmanager
def working() -> Iterator[None]:
    """What libraries print meanwhile goes to stderr: stdout is for the result."""
    with redirect_stdout(sys.stderr):
        yield
