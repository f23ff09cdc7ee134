"""``sonde.train_model``: train with losses or layers at sites, compared with training without."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sonde.core._shown import document_html, document_line
from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.data import open_inputs
from sonde.data.inputs import ItemInputs
from sonde.engine.steps import seeded
from sonde.layers import inserted_layers, layer_files
from sonde.run.compressing.choosing import chosen_parts
from sonde.run.passes.directory import run_directory
from sonde.run.reading.load import load
from sonde.run.reading.notes import data_name
from sonde.run.training.arms import LAST, LAYERS, Arm, Recipe, check_scope, train_arm
from sonde.run.training.document import train_document
from sonde.run.training.layers import asked_layers, check_places, with_asked, without_layers
from sonde.run.training.losses import attached, weights_of
from sonde.tap.training.terms import EMA
from sonde.weights import Saved, save_edited
from sonde.weights.factory_folder import check_change, source_folder
from sonde.weights.folder import check_output
from sonde.weights.tuning import plan_of, require_truth


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model, with a comparison run trained without losses or layers.

    Attributes
    ----------
    document : dict
        The figures as JSON: what ``sonde train`` prints and its page shows.
    output : Path
        Folder of the trained model.
    patch : Path
        What ``sonde.undo`` reads to give the old model back.
    module : Module
        The trained model of the first seed.
    checkpoints : Path
        Folder that the training went on from; ``forget()`` removes it.
    notes : tuple of str
        Number types that differ from the original's, and the word that opens a factory's model.
    """

    document: dict[str, Any]
    output: Path
    patch: Path
    module: Any
    checkpoints: Path
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return document_line(type(self).__name__, self.document)

    def _repr_html_(self) -> str:
        return document_html("Fine-tuning of a model", self.document)

    def forget(self) -> None:
        """Remove the checkpoints of the training run."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)


def train_model(
    model: Any,
    data: Any,
    output: str | Path,
    *,
    terms: str | None = None,
    sites: Sequence[str] = (),
    insert: Sequence[str] = (),
    weight: str | float = "0.1",
    teacher: Any = None,
    scope: str | None = None,
    epochs: int = 3,
    rate: float = 1e-4,
    batch_size: int = 32,
    seed: int = 0,
    seeds: int = 1,
    alone: bool = False,
    limit: int | None = None,
    held: int = 256,
    fresh: bool = False,
    keep_checkpoints: bool = False,
    device: str = "auto",
    progress: bool = True,
    **reading: Any,
) -> Trained:
    """Fine-tune a model with losses or new layers at its sites, and measure the gain.

    The model is trained on its task (labels, or next tokens) with the losses, and a second time
    without: same rows, order and steps. If the new layers alone are trained, the second training
    moves the last parameters of the model instead, at least as many. A training that was stopped
    goes on where it was. The same as ``sonde train``.

    Parameters
    ----------
    model : str, path, Model or module
        Where the weights come from, as in ``sonde.load``.
    data : data
        Inputs with labels, or texts, as ``sonde.read`` takes them.
    output : path
        Folder for the trained model; ``sonde.undo`` takes the change back.
    terms : str, optional
        Losses at sites, as ``rate_reduction`` or ``align(distance='mse')``.
    sites : sequence of str
        Where each loss reads, or one site for all; ``SITE+SITE`` for two.
    insert : sequence of str
        New layers behind modules, as ``adapter(width=8)@blocks.3``.
    weight : str or float, default="0.1"
        Weight of the losses beside the task, or one for each: ``0.1,0.5``.
    teacher : str or Model, optional
        A model whose states are learned from; ``ema`` is an average of the model itself.
    scope : str, optional
        Parameters that move: ``all``, ``norms``, ``top:N``, ``last:N`` or ``low-rank:N``; with
        ``insert`` by default the new layers alone.
    epochs, rate, batch_size : number
        Passes over the examples, rate of Adam, examples of a step.
    seed, seeds : int
        The first seed of the order of the examples, and the number of training runs of each arm.
    alone : bool, default=False
        Leave out the training beside it.
    limit : int, optional
        Examples to train on at most.
    held : int, default=256
        Other examples for the figures.
    fresh : bool, default=False
        Drop the checkpoints of another training beside ``output``.
    keep_checkpoints : bool, default=False
        Leave the checkpoints when the training is done.
    device : str, default="auto"
        Device of the model: ``auto`` takes cuda, mps or cpu, and ``cpu`` or ``cuda:1`` name one.
    progress : bool, default=True
        Whether a progress bar is shown on stderr.
    **reading
        Options of ``sonde.read`` about data, such as ``label_column``.

    Raises
    ------
    InputError
        If a loss or layer does not fit the model, or there is nothing to train on.
    """
    check_words(terms, sites, insert, epochs=epochs, rate=rate, batch_size=batch_size,
                seeds=seeds, held=held, limit=limit)  # fmt: skip
    output, asked = Path(output), asked_layers(tuple(insert))
    check_output(output)
    loaded = load(model, device=device)
    check_change(without_layers(loaded), output)
    check_places(loaded, asked)
    check_scope(without_layers(loaded).module, scope or "all")
    ours, others = _examples(loaded, data, limit, held, {**reading, "batch_size": batch_size})
    require_truth("sonde train", loaded, examples=ours.first(64), held=others.first(64))
    if teacher not in (None, EMA):
        teacher = load(teacher, device=device)
    job = _Job(loaded, ours, asked, terms, tuple(sites), teacher, seed)
    recipe, kept = job.recipe(epochs, rate, str(weight), scope), run_directory(output)
    if fresh:
        shutil.rmtree(kept, ignore_errors=True)
    pairs = job.pairs(recipe, kept, scope, seeds, alone=alone, progress=progress)
    names = {
        "model": loaded.name,
        "data": data_name(data, others),
        "terms_typed": terms or "",
        "sites_typed": list(sites),
        "inserted": list(insert),
        "scope_without": None if alone else job.scope_without(scope),
        "output": str(output),
    }
    document = train_document(loaded, others, pairs, recipe, names=names, n_trained=len(ours))
    new = pairs[0][0].module
    saved = _save(loaded, new, output, document["gain"]["loss"]["value"])
    trained = Trained(document, output, saved.patch, new, kept, saved.notes)
    if not keep_checkpoints:
        trained.forget()
    return trained


def check_words(
    terms: str | None, sites: Sequence[str], insert: Sequence[str], **positive: float | None
) -> None:
    """Raise for losses without sites, sites without losses, and non-positive numbers.

    Raises
    ------
    InputError
        With the word that is missing or wrong.
    """
    if bool(terms) != bool(sites) or not (terms or insert):
        raise InputError(
            "sonde train: expected --terms and --sites, as --terms rate_reduction --sites "
            "blocks.3, or --insert unit_gate@blocks.3. `sonde train --list` lists the losses "
            "and layers."
        )
    for name, value in positive.items():
        if value is not None and not value > 0:
            raise InputError(f"--{name.replace('_', '-')}: expected more than 0, got {value}.")


def _examples(
    model: Model, data: Any, limit: int | None, held: int, options: dict[str, Any]
) -> tuple[ItemInputs, ItemInputs]:
    """Return the examples for training and those for evaluation."""
    n = None if limit is None else 8 * (limit + held)
    inputs = open_inputs(model, data, split="train", limit=n, **options)
    ours = max(1, len(inputs) - held) if limit is None else limit
    return chosen_parts(inputs, ours, held)


@dataclass(frozen=True, eq=False)
class _Job:
    """A model, its new layers and its losses."""

    model: Model
    ours: ItemInputs
    asked: Any
    terms: str | None
    sites: tuple[str, ...]
    teacher: Any
    seed: int

    def recipe(self, epochs: int, rate: float, weight: str, scope: str | None) -> Recipe:
        """Return the recipe of the arm with losses and layers; new layers are always trained."""
        moved = scope or (LAYERS if self.asked else "all")
        if self.asked and moved != LAYERS:
            moved += f"+{LAYERS}"
        n_losses = len(self.losses()) if self.terms else 1
        return Recipe(epochs, rate, weights_of(weight, n_losses), moved, self.seed)

    def with_layers(self, seed: int) -> Model:
        """Return the model with the new layers inside."""
        return with_asked(self.model, self.asked, self.ours, seed) if self.asked else self.model

    def scope_without(self, scope: str | None) -> str:
        """Return the scope of the arm without layers: as many last parameters as layers hold."""
        if scope not in (None, LAYERS) or not self.asked:
            return scope or "all"
        new, old = (sum(p.numel() for p in m.module.parameters())
                    for m in (self.with_layers(self.seed), self.model))  # fmt: skip
        earlier = f"+{LAYERS}" if inserted_layers(self.model.module) else ""
        return f"{LAST}:{max(1, new - old)}{earlier}"

    def losses(self) -> dict[Any, Any]:
        """Return the losses by their sites."""
        if not self.terms:
            return {}
        with seeded(self.seed):  # of projectors and other parts that begin with random weights
            return attached(self.terms, self.sites, has_teacher=self.teacher is not None)

    def pairs(
        self,
        recipe: Recipe,
        kept: Path,
        scope: str | None,
        seeds: int,
        *,
        alone: bool,
        progress: bool,
    ) -> list[tuple[Arm, Arm | None]]:
        """Return for each seed the arms with and without losses and layers."""
        losses = self.losses()
        what = " and ".join(["layers"] * bool(self.asked) + ["losses"] * bool(self.terms))
        beside = self.scope_without(scope)

        def trained(name: str, seed: int) -> Arm:
            is_with = name == "with"
            return train_arm(
                self.with_layers(seed) if is_with else self.model,
                self.ours,
                losses if is_with else {},
                replace(recipe, seed=seed, scope=recipe.scope if is_with else beside),
                teacher=self.teacher,
                checkpoint=kept / f"{name}-{seed}.pt",
                label=f"train {name} {what}" + (f", seed {seed}" if seeds > 1 else ""),
                progress=progress,
            )

        return [
            (trained("with", n), None if alone else trained("without", n))
            for n in range(self.seed, self.seed + seeds)
        ]


def _save(model: Model, new: Any, output: Path, loss: float) -> Saved:
    """Write the trained model with its layers inside, and its patch."""
    base = without_layers(model)
    plan = plan_of(base, without_layers(new), "train", loss=loss)
    layers = layer_files(new) if inserted_layers(new) else None
    with source_folder(base) as source:
        return save_edited(source, plan, output, name=model.name, layers=layers)
