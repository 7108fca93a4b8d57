"""The tools, each in an environment of its own: what is installed there, and which program asks it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
READY = ".ready"  # holds what was installed


class NotHad(Exception):
    """A tool that cannot be had here; says what to install."""


@dataclass(frozen=True)
class Environment:
    """One tool: `program` is run as `program EXPORT ASKED ANSWER` and writes its answer as JSON."""

    packages: tuple[tuple[str, ...], ...]  # installed together, one tuple after the other
    program: str
    model: str = "classifier"
    node: bool = False


TORCH = os.environ.get("TORCH", "torch==2.13.0")  # pinned and first: unpinned it takes several GB of CUDA packages
ENVIRONMENTS = {
    "optimum": Environment(((TORCH,), ("optimum-onnx[onnxruntime]", "transformers>=4.57,<4.58")), "in_optimum.py"),
    "transformers.js": Environment((("@huggingface/transformers@4",),), "in_transformers_js.mjs", node=True),
    "openvino": Environment((("openvino", "tokenizers"),), "in_openvino.py"),
    "genai": Environment((("onnxruntime-genai", "onnxruntime"),), "in_genai.py", model="decoder"),
}


def prepare(environment: Environment, folder: Path) -> list[str]:
    """Install what the tool needs into `folder`, where that is not done yet; returns the command that runs programs.

    Raises:
        NotHad: node, npm, a package or the network is missing.
    """
    wanted = repr(environment.packages)
    command = [_found("node")] if environment.node else [str(folder / "venv" / "bin" / "python")]
    if not (folder / READY).is_file() or (folder / READY).read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (_npm if environment.node else _pip)(environment, folder)
        (folder / READY).write_text(wanted)
    return command


def ask(environment: Environment, command: Sequence[str], folder: Path, arguments: Sequence[Path]) -> str:
    """Run the tool's program; returns what went wrong, in a line, or nothing."""
    program = HERE / environment.program
    if environment.node:  # node looks for packages beside the program
        program = Path(shutil.copy(program, folder))
    try:
        _run([*command, str(program), *map(str, arguments)], folder)
    except NotHad as error:
        return str(error)
    return ""


def _pip(environment: Environment, folder: Path) -> None:
    _run([sys.executable, "-m", "venv", "venv"], folder)
    for packages in environment.packages:
        _run(["venv/bin/python", "-m", "pip", "install", "--quiet", *packages], folder)


def _npm(environment: Environment, folder: Path) -> None:
    npm = _found("npm")
    (folder / "package.json").write_text('{"private": true}\n')
    for packages in environment.packages:  # without scripts, one of which downloads CUDA libraries
        _run([npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent", *packages], folder)


def _found(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise NotHad(
            f"{program} is not installed: get Node.js 20 or newer (https://nodejs.org, or apt install nodejs npm)"
        )
    return path


def _run(command: Sequence[str], folder: Path) -> None:
    quiet = {"PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        command, cwd=folder, env=os.environ | quiet, capture_output=True, text=True, check=False, errors="replace"
    )
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        said = next((line for line in reversed(lines) if "rror" in line), lines[-1] if lines else "")
        raise NotHad(f"`{Path(command[0]).name} {' '.join(command[1:])[:80]}` failed: {said[:200]}")
