"""One streaming pass over a sample: uncentered second moments of every target's input and output gradient."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn

from compressor import structure
from compressor.devices import beside
from compressor.errors import DataError, ModelError, some
from compressor.forms import Form
from compressor.methods.base import Moment, Moments
from compressor.metrics import SecondMoment
from compressor.recording import Recorder, accumulate, evaluating, mirrored
from compressor.tasks.base import examples, inputs_of, labeled
from compressor.tensors import read_noted, save_tensors

Batch = Mapping[str, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]
Terms = Callable[[Batch], Tensor]
KIND = "statistics"  # of the note in their files


def model_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The loss that a transformers model computes from `labels`, averaged over its terms, ()."""
    loss: Tensor = model(**batch).loss
    return loss


def own_label_loss(model: nn.Module, batch: Batch, temperature: float = 2.0, terms: Terms = labeled) -> Tensor:
    """Cross entropy towards labels drawn from the model's own predictions at a temperature, ().

    An adapted model has fitted its training labels, so their gradients have all but vanished. Those of its own labels
    have the Fisher matrix as second moment (Kunstner et al., arXiv 1905.12558, eq. 2), which is the Hessian of the
    divergence from the model at that temperature, so of what distillation from it minimizes. Draws from torch's
    random numbers. `terms` says which logits are loss terms; a label is drawn, and the loss averaged, for each of them.
    """
    logits = model(**inputs_of(batch)).logits[terms(batch)] / temperature  # (terms, C)
    drawn = torch.multinomial(logits.detach().softmax(-1), 1)[:, 0]  # (terms,)
    return nn.functional.cross_entropy(logits, drawn)


class Statistics(Mapping[str, Moments]):
    """The moments of every target, by name; targets that read the same input share that moment.

    `samples` are the examples seen.
    """

    def __init__(
        self, inputs: dict[str, Tensor], shares: dict[str, str], gradients: dict[str, Tensor], samples: int
    ) -> None:
        self._inputs, self._shares, self._gradients, self.samples = inputs, shares, gradients, samples
        moments = {name: SecondMoment(matrix) for name, matrix in inputs.items()}
        self._moments = {
            name: Moments(moments.get(leader), SecondMoment(gradients[name]) if name in gradients else None)
            for name, leader in shares.items()
        }

    def __getitem__(self, name: str) -> Moments:
        return self._moments[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._moments)

    def __len__(self) -> int:
        return len(self._moments)

    def save(self, path: Path | str) -> None:
        """Write as safetensors; each shared input moment once."""
        tensors = {f"{name}.{Moment.INPUT}": matrix for name, matrix in self._inputs.items()}
        tensors |= {f"{name}.{Moment.GRADIENT}": matrix for name, matrix in self._gradients.items()}
        save_tensors(tensors, Path(path), (KIND, json.dumps({"shares": self._shares, "samples": self.samples})))

    @classmethod
    def load(cls, path: Path | str) -> Statistics:
        """Read what `save` wrote, or a folder of such files, each of other targets; pages come when they are used.

        Raises:
            ArtifactError: a file is missing or damaged.
        """
        tensors: dict[str, Tensor] = {}
        shares: dict[str, str] = {}
        samples = 0
        place = Path(path)
        for file in sorted(place.iterdir()) if place.is_dir() else [place]:
            found, note = read_noted(file, KIND, "Calibrate again.")
            tensors |= found
            shares |= note["shares"]
            samples = note["samples"]

        def of(moment: Moment) -> dict[str, Tensor]:
            return {
                key.removesuffix(f".{moment}"): value for key, value in tensors.items() if key.endswith(f".{moment}")
            }

        return cls(of(Moment.INPUT), shares, of(Moment.GRADIENT), samples)


def calibrate(
    model: nn.Module,
    batches: Iterable[Batch],
    needs: Iterable[Moment],
    *,
    targets: str | Sequence[str] = "auto",
    exclude: str | Sequence[str] = (),
    loss: Loss = model_loss,
    terms: Terms = labeled,
) -> Statistics:
    """Gather the moments that a method needs, in one pass in evaluation mode where the model is; float32, on the CPU.

    Gradients are those of each loss term (the mean loss times its number of terms). Inputs are averaged over the rows
    that a target sees, gradients are summed over a term's rows and averaged over the terms, so that half of
    tr(E[gg^T] D E[xx^T] D^T) estimates a weight error D's change of the mean loss (K-FAC), comparable between layers
    that see many rows and few. Padding is dropped where the batch has an `attention_mask (B, T)` and the target sees
    `(B, T, ...)`. A convolution's rows are its patches, one for each place of its output (KFC, arXiv 1602.01407, which
    takes places to be uncorrelated, as K-FAC does tokens). A method that needs nothing gets empty statistics, and no
    batch is read.

    Args:
        model: the dense model, with a head that has been probed (a random head gives meaningless gradients).
        batches: dictionaries of tensors.
        needs: which moments, from `method.needs()`.
        targets: as for `find_targets`: "auto", or names of layers or globs over them.
        exclude: the same of layers that stay dense.
        loss: (model, batch) -> the mean loss, ().
        terms: batch -> bool, true for every term that the mean is over; default: every label that is not ignored. A
            causal language model shifts its labels, so that the first of each row is no term: `task.terms` knows.

    Raises:
        DataError: no batch.
        ModelError: see `find_targets`; or a target was never reached, the activations or gradients are not finite, or
            all gradients are zero.
    """
    from compressor.targets import find_targets

    wanted = frozenset(needs)
    if not wanted:
        return Statistics({}, {}, {}, 0)
    names = [target.name for target in find_targets(model, targets, exclude)]
    structure.require_loaded(model, names)
    gather = _Gather({name: model.get_submodule(name) for name in names}, wanted, terms)
    with ExitStack() as hooks, evaluating(model):
        for name in names:
            handle = model.get_submodule(name).register_forward_hook(gather.recorders[name], with_kwargs=True)
            hooks.callback(handle.remove)
            weight = model.get_parameter(f"{name}.weight")
            hooks.callback(weight.requires_grad_, weight.requires_grad)
            weight.requires_grad_(True)  # a frozen model's outputs have no gradient
        for batch in batches:
            gather.add(model, beside(model, batch), loss)
    return gather.statistics()


class _Gather:
    """Running sums over batches."""

    def __init__(self, layers: Mapping[str, nn.Module], needs: frozenset[Moment], terms: Terms) -> None:
        self.needs, self.terms = needs, terms
        self.recorders = {name: Recorder(layer) for name, layer in layers.items()}
        self.shares: dict[str, str] = {}
        self.inputs: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        self.rows: dict[str, int] = dict.fromkeys(layers, 0)
        self.samples = self.loss_terms = 0

    def add(self, model: nn.Module, batch: Batch, loss: Loss) -> None:
        """One batch: forward, backward to the targets' outputs only, accumulate."""
        value = self._run(model, batch, loss)
        self._share()
        mask = batch.get("attention_mask")
        for name, recorder in self.recorders.items():
            for rows in recorder.input_rows(mask):
                self.rows[name] += len(rows)
                if Moment.INPUT in self.needs and self.shares[name] == name:
                    accumulate(self.inputs, name, rows)
        if Moment.GRADIENT in self.needs:
            terms = int(self.terms(batch).sum())
            self.loss_terms += terms
            self._differentiate(value * terms, mask)
        self.samples += examples(batch)
        for recorder in self.recorders.values():
            recorder.calls.clear()

    def _run(self, model: nn.Module, batch: Batch, loss: Loss) -> Tensor:
        """The loss; the model runs again, on copies, where it has overwritten what is differentiated by."""
        differentiated = Moment.GRADIENT in self.needs
        with torch.set_grad_enabled(differentiated):
            value = loss(model, batch)
            if sum(recorder.overwritten(outputs=differentiated) for recorder in self.recorders.values()):
                for recorder in self.recorders.values():
                    recorder.calls.clear()
                value = loss(model, batch)
        return value

    def _differentiate(self, total: Tensor, mask: Tensor | None) -> None:
        owners = [(name, call.output) for name, recorder in self.recorders.items() for call in recorder.calls]
        self._require_differentiable({name for name, output in owners if not output.requires_grad})
        gradients = torch.autograd.grad(total, [output for _, output in owners], allow_unused=True)
        for (name, output), gradient in zip(owners, gradients, strict=True):
            found = torch.zeros_like(output) if gradient is None else gradient
            accumulate(self.gradients, name, self.recorders[name].gradient_rows(found, mask))

    def _require_differentiable(self, blind: Collection[str]) -> None:
        from compressor.targets import globs_of

        if blind:
            raise ModelError(
                f"The model runs {len(blind)} targets without gradients ({some(sorted(blind))}): under torch.no_grad, "
                "or by reentrant checkpointing. What the loss asks of them cannot be known: let gradients through, or "
                "leave them out with model.exclude: "
                f"{globs_of(sorted(blind), self.recorders)} (in Python: exclude=)."
            )

    def _require_reached(self) -> None:
        from compressor.targets import globs_of

        missed = [name for name, rows in self.rows.items() if not rows]
        if missed:
            raise ModelError(
                f"{len(missed)} targets were never reached in calibration: {some(missed)}. The model does not call "
                "them, or not on this data; leave them out with model.exclude: "
                f"{globs_of(missed, self.recorders)} (in Python: exclude=)."
            )

    def _share(self) -> None:
        """Targets that take the same rows of the very same tensor share its moment; checked anew on every batch."""
        leaders: dict[tuple[int, int, Form], str] = {}
        shares = {}
        reached = [pair for pair in self.recorders.items() if pair[1].calls]  # no expert need be, in every batch
        for name, recorder in reached:
            alone = len(recorder.calls) != 1
            shares[name] = name if alone else leaders.setdefault((*recorder.calls[0].source, recorder.form), name)
        if any(self.shares.get(name, leader) != leader for name, leader in shares.items()):
            raise ModelError(
                "The model feeds layers that share an input differently from batch to batch, so what each of them "
                "reads cannot be told. Leave them out with model.exclude (in Python: exclude=)."
            )
        self.shares |= shares

    def statistics(self) -> Statistics:
        """Averages over rows; raises where there is nothing or something not finite."""
        if not self.samples:
            raise DataError("The calibration data is empty: give it at least one example.")
        self._require_reached()
        inputs = self._means(self.inputs, self.rows)
        gradients = self._means(self.gradients, dict.fromkeys(self.gradients, self.loss_terms or 1))
        broken = [
            name for table in (inputs, gradients) for name, matrix in table.items() if not matrix.isfinite().all()
        ]
        if broken:
            raise ModelError(f"Activations or gradients of {some(broken)} are not finite on the calibration data.")
        if gradients and not any(matrix.any() for matrix in gradients.values()):
            raise ModelError(
                "The loss does not change with any target's output on the calibration data, so there is nothing to go "
                "by: train the head before (one of zeros passes no gradient on), and see what the loss is of."
            )
        return Statistics(inputs, self.shares, gradients, self.samples)

    def _means(self, sums: dict[str, Tensor], counts: Mapping[str, int]) -> dict[str, Tensor]:
        """Sums are taken out one by one, so that all of a large model's are not there twice."""
        return {name: mirrored(sums.pop(name)).div_(counts[name]).cpu() for name in list(sums)}
