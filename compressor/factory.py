"""Dense models that the user's own code makes: "package.module:function", named by a recipe or by the caller.

Importing the module runs it, so it is done only for a name that was given by hand: in the recipe of a run, with
`--factory`, or as an argument. What an artifact says about its factory is compared with that, never followed.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from compressor import structure
from compressor.errors import ArtifactError, ModelError, first_line, some
from compressor.failures import out_of_memory
from compressor.files import file_digest, read_json
from compressor.paths import is_factory
from compressor.plain import answering_
from compressor.tasks.base import Task

if TYPE_CHECKING:
    from compressor.sections.data import ModelSection


RECORD = "factory.json"  # beside a model's weights: which code makes its dense structure
Function = Callable[..., Any]


class Allowed(TypedDict):
    """Whose code may run while a model is loaded, by the names that `compressor.load` has for it."""

    factory: Factory | str | Function | None
    trust_remote_code: bool


@dataclass(frozen=True)
class Factory:
    """A function that makes the dense model."""

    name: str  # "package.module:function"
    code: str | None = None  # a folder that the module is looked for in, before all others
    function: Function | None = None  # the function itself, where the caller has imported it already

    @classmethod
    def of(cls, section: ModelSection) -> Factory | None:
        """The one that a recipe names; None where it names a checkpoint."""
        return cls(section.path, section.code) if is_factory(section.path) else None

    @classmethod
    def given(cls, factory: Factory | str | Function) -> Factory:
        """The one that a caller gives: by name, looked for in the current folder first, or as a function."""
        if isinstance(factory, Factory):
            return factory
        if isinstance(factory, str):
            if not is_factory(factory):
                raise ModelError(f"'{factory}' names no factory: that looks like package.module:function.")
            return cls(factory, str(Path.cwd()))
        return cls(f"{factory.__module__}:{getattr(factory, '__qualname__', type(factory).__name__)}", None, factory)

    def build(self, task: Task, labels: Sequence[str] | None) -> nn.Module:
        """A new dense module in float32 on the CPU, which answers as the line asks (see compressor.plain).

        Args:
            task: what it is asked to do.
            labels: the classes in the order of its logits; None where there are none.

        Raises:
            ModelError: the code cannot be imported, is no function, raises, or returns something other than a plain
                module with finite weights.
        """
        with _importing(self.code):
            function = self.function or self._imported()
            module = self._called(function, labels)
        if not isinstance(module, nn.Module):
            raise ModelError(f"{self.name} returned {type(module).__name__}; a factory returns a torch.nn.Module.")
        self._require_values(module)
        structure.require_plain(module)
        return answering_(module.to("cpu").float().eval(), task)  # complex buffers stay complex

    def record(self, module: nn.Module, labels: Sequence[str] | None) -> dict[str, Any]:
        """What is kept beside the weights; no path of this machine is in it."""
        source = self.source()
        return {
            "factory": self.name,
            "class": type(module).__name__,
            "source": source.name,
            "digest": file_digest(source),
            "labels": None if labels is None else list(labels),
        }

    def source(self) -> Path:
        """The file of the factory's module, found without importing it.

        Raises:
            ModelError: there is no such module, or it has no file.
        """
        with _importing(self.code):
            spec = _found(self.module)
        if spec is None or spec.origin is None or not Path(spec.origin).is_file():
            where = f"in {self.code} or " if self.code else ""
            raise ModelError(
                f"The factory {self.name} is not there: no module {self.module} {where}where Python looks (PYTHONPATH, "
                "installed packages). Be in its folder, or put that on PYTHONPATH; a recipe names it with model.code."
            )
        return Path(spec.origin).resolve()

    def require_same(self, file: Path) -> None:
        """Compare with what lies beside a model's weights, before anything is imported.

        Raises:
            ArtifactError: those were made by another factory, or its source has been changed since.
        """
        known = read_json(file)
        if self.function is not None:
            return  # the caller has run it already
        if known["factory"] != self.name:
            raise ArtifactError(f"{file.parent} was made by the factory {known['factory']}, not by {self.name}.")
        source = self.source()
        if known["digest"] != file_digest(source):
            raise ArtifactError(
                f"{source} is not the {known['source']} that {file.parent} was made with, so it is not run: its digest "
                "differs. Bring the old source back, or make a new run."
            )

    @property
    def module(self) -> str:
        """The module's name."""
        return self.name.partition(":")[0]

    def _imported(self) -> Function:
        source = self.source()
        try:
            module = importlib.import_module(self.module)
        except Exception as error:  # whatever that code does
            raise ModelError(f"{self.module} ({source}) cannot be imported: {_said(error)}") from error
        loaded = Path(module.__file__ or "").resolve()
        if loaded != source:
            raise ModelError(
                f"{self.name} means {source}, but a module {self.module} is loaded already, from {loaded}: rename one."
            )
        word = self.name.partition(":")[2]
        function = getattr(module, word, None)
        if not callable(function):
            what = "is no function" if hasattr(module, word) else "is not there"
            raise ModelError(f"{self.name}: {word} {what} in {source}. It must be a function that returns a module.")
        return function

    def _called(self, function: Function, labels: Sequence[str] | None) -> Any:
        try:
            return function(**_arguments(function, labels))
        except Exception as error:
            if out_of_memory(error):
                raise
            told = labels is None and None in _arguments(function, labels).values()
            hint = " It was called with None for labels: a default lets it do without them." if told else ""
            raise ModelError(f"{self.name} raised {_said(error)}{hint}") from error

    def _require_values(self, module: nn.Module) -> None:
        tensors = dict(module.named_parameters()) | dict(module.named_buffers())
        empty = [name for name, one in tensors.items() if isinstance(one, UninitializedParameter) or one.is_meta]
        broken = [
            name
            for name, one in module.named_parameters()
            if name not in empty and one.is_floating_point() and not torch.isfinite(one).all()
        ]
        for names, what in ((empty, "has no values yet for"), (broken, "has NaN or infinite values in")):
            if names:
                raise ModelError(f"What {self.name} returned {what} {len(names)} weights ({some(names)}).")


def allowed(section: ModelSection) -> Allowed:
    """What a recipe allows by naming a factory, or by trusting what a checkpoint ships."""
    return {"factory": Factory.of(section), "trust_remote_code": section.trust_remote_code}


def rebuild(folder: Path, task: Task, factory: Factory | None) -> nn.Module:
    """The dense structure of the weights in a folder whose record names a factory.

    Raises:
        ArtifactError: no factory is given, or it is another or a changed one.
        ModelError: it fails; see `Factory.build`.
    """
    known = read_json(folder / RECORD)
    if factory is None:
        raise _unasked(known["factory"], folder)
    factory.require_same(folder / RECORD)
    return factory.build(task, known["labels"])


def require_given(path: str, folder: Path, factory: Factory | None) -> None:
    """Hold what the model of a folder was made of, as is recorded there, against the caller's factory.

    Raises:
        ArtifactError: that is a factory and none is given, so that its code must not be run; or the reverse.
    """
    if is_factory(path) and factory is None:
        raise _unasked(path, folder)
    if factory is not None and not is_factory(path):
        raise ArtifactError(f"{folder} was made of {path}, not by the factory {factory.name}: leave that out.")


def unasked_code(folder: Path) -> ArtifactError:
    """What is said where a checkpoint's own code would have to run, and nobody trusts it."""
    return ArtifactError(
        f"{folder} was made of a checkpoint with code of its own, and loading it runs that code. If you trust it, say "
        "so: --trust-remote-code, in Python trust_remote_code=True."
    )


def _unasked(name: str, folder: Path) -> ArtifactError:
    return ArtifactError(
        f"{folder} was made by the factory {name}, and loading it runs that code. If it is yours, say so: "
        f"--factory {name}, in Python factory={name!r}."
    )


def _arguments(function: Function, labels: Sequence[str] | None) -> Mapping[str, Any]:
    """`labels`, or what the one parameter without a default is called; nothing where it can do without them."""
    found = inspect.signature(function).parameters.values()
    named = [one.name for one in found if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    needed = [one.name for one in found if one.name in named and one.default is one.empty]
    name = "labels" if "labels" in named else needed[0] if len(needed) == 1 else None
    if name is None or (labels is None and name not in needed):
        return {}
    return {name: None if labels is None else list(labels)}


def _found(name: str) -> ModuleSpec | None:
    """Where a module lies; unlike importlib's own, this imports no parent package."""
    importlib.invalidate_caches()
    parts = name.split(".")
    spec = PathFinder.find_spec(parts[0]) or _elsewhere(parts[0])
    for end in range(2, len(parts) + 1):
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(".".join(parts[:end]), spec.submodule_search_locations)
    return spec


def _elsewhere(name: str) -> ModuleSpec | None:
    """What other finders know, such as those of editable installs."""
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):  # __main__ has none
        return None


@contextmanager
def _importing(code: str | None) -> Iterator[None]:
    """A folder at the front of sys.path, as `python -m` has the current one there."""
    if code:
        sys.path.insert(0, code)
    try:
        yield
    finally:
        if code in sys.path:
            sys.path.remove(code)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error).rstrip('.')}."
