"""Our exports in other people's tools, each in an environment of its own: `make interop`.

    python tests/interop/run.py [--out build/interop] [--skip TOOL] [--fresh]

Environments, exports and answers lie under --out; what is there is not made again. Exit code 1 where a tool says
something else than our own runner, or cannot be had and is not skipped.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import exports
from environments import ENVIRONMENTS, NotHad, ask, prepare
from verdict import Row, compare, exit_code, table


def main() -> int:
    """Ask every tool about every export; prints the table."""
    asked = _arguments()
    root = asked.out.resolve()
    exports.make(root / "exports")
    rows = [
        row for name in ENVIRONMENTS if name not in asked.skip for row in _rows(name, root, fresh=bool(asked.fresh))
    ]
    print(table(rows))
    for name in asked.skip:
        print(f"\n{name} was skipped, as was asked.")
    return exit_code(rows)


def _rows(name: str, root: Path, *, fresh: bool) -> list[Row]:
    """One tool's answers about the exports of its kind of model."""
    environment = ENVIRONMENTS[name]
    models = root / "exports" / environment.model
    names = [f"onnx-{precision}" for precision in exports.PRECISIONS]
    folder = root / "environments" / name
    try:
        command = prepare(environment, folder)
    except NotHad as error:
        return [Row(name, export, f"cannot be had: {error}") for export in names]
    rows = []
    for export in names:
        print(f"{name}: {environment.model}/{export}", file=sys.stderr)
        answer = folder / f"{export}.json"
        if fresh or not answer.is_file() or _older(answer, models / export):
            answer.unlink(missing_ok=True)
            fault = ask(environment, command, folder, [models / export, models / exports.ASKED, answer])
            if fault:
                rows.append(Row(name, export, fault))
                continue
        rows.append(compare(name, export, exports.ours(models / export, _read(models / exports.ASKED)), _read(answer)))
    return rows


def _older(answer: Path, export: Path) -> bool:
    return answer.stat().st_mtime < max(path.stat().st_mtime for path in export.iterdir())


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/interop"))
    parser.add_argument("--skip", action="append", default=[], choices=list(ENVIRONMENTS), help="a tool not to ask")
    parser.add_argument("--fresh", action="store_true", help="ask again what was answered before")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
