"""``sonde.compress_model``: write a smaller model and measure the change of its answers."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from sonde.compress import LayerGrams, fidelity, layer_grams
from sonde.core._shown import document_html, document_line
from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.core.renaming import renamed
from sonde.core.wording import plural
from sonde.data import open_inputs
from sonde.data.inputs import ItemInputs
from sonde.engine.progress import callback_of
from sonde.run.compressing.card import card_figures
from sonde.run.compressing.choosing import (
    chosen_parts,
    enough_examples,
    require_still_weights,
)
from sonde.run.compressing.document import compress_document
from sonde.run.compressing.inside import inside
from sonde.run.compressing.methods import Target, method_asked
from sonde.run.compressing.packable import packed_plan
from sonde.run.compressing.search import (
    ANY,
    SizeTrial,
    TrialFile,
    fitting_trial,
    pairs_to_seek,
    search_key,
    trials,
)
from sonde.run.compressing.settings import Setting, Trial, fitting, require_divergence
from sonde.run.compressing.sizes import sized_settings
from sonde.run.compressing.timing import speeds
from sonde.run.reading.load import load
from sonde.run.reading.notes import data_name
from sonde.weights import Examples, Rewrite, RewritePlan, save_edited
from sonde.weights.factory_folder import check_change, source_folder
from sonde.weights.folder import check_output, removed_on_error, weight_bytes
from sonde.weights.live import require_finite
from sonde.weights.needs import finite_examples

UNITS = {"": 1, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
MOST_LISTED, MOST_FITTED = 1024, 512
"""Items that are listed, and examples that calibrate, if no limit is given."""


@dataclass(frozen=True, eq=False)
class Compressed:
    """A smaller model, and the measured change of its answers.

    Attributes
    ----------
    document : dict
        The figures as JSON: what ``sonde compress`` prints and its page shows.
    output : Path
        Folder of the smaller model.
    patch : Path
        What ``sonde.undo`` reads to give the old model back.
    plan : RewritePlan
        What was changed.
    trials : sequence of Trial or SizeTrial
        What was tried for a budget; empty without one.
    notes : tuple of str
    """

    document: dict[str, Any]
    output: Path
    patch: Path
    plan: RewritePlan
    trials: Sequence[Trial | SizeTrial] = ()
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return document_line(type(self).__name__, self.document)

    def _repr_html_(self) -> str:
        return document_html("Compression of a model", self.document)


@dataclass(frozen=True)
class Wish:
    """Requested size of a compressed model.

    Parameters
    ----------
    to : str, optional
        ``4bit``, ``50%``, ``2:4``, ``rank16`` or ``5blocks``.
    method : str, optional
        As ``gptq`` or ``sparse_gpt(refit=True)``; ``any`` is all, for a budget.
    budget : int, optional
        Most bytes of weight files.
    max_kl : float, optional
        Most divergence of answers, in nats.
    group : int, optional
        Weights that share a scale.
    layers : sequence of str
        Layers by name.
    bias_fix : bool
        Whether biases keep the mean of the outputs of changed layers.
    """

    to: str | None = None
    method: str | None = None
    budget: int | None = None
    max_kl: float | None = None
    group: int | None = None
    layers: tuple[str, ...] = ()
    bias_fix: bool = False

    @property
    def seeks(self) -> bool:
        """True if a budget or a maximal divergence asks for a search."""
        return self.budget is not None or self.max_kl is not None

    def rule(self) -> Any:
        """Return the method with its parameters, or None for ``any``; a search varies its bits."""
        if self.seeks and (self.to is not None or self.group is not None):
            raise InputError(
                "--budget and --max-kl search for the bits and the group size: leave out "
                "--to and --group."
            )
        if self.method == ANY:
            if not self.seeks:
                raise InputError(
                    "--method any: expected a limit to search under. Pass --budget or --max-kl."
                )
            return None
        target = None if self.to is None else Target.of(self.to)
        given = {"group": self.group, "layers": self.layers or None}
        return method_asked(self.method, target, given)


@renamed(progress="tell")
def compress_model(
    model: Any,
    data: Any,
    output: str | Path,
    *,
    to: str | None = None,
    method: str | None = None,
    budget: int | str | None = None,
    max_kl: float | None = None,
    group: int | None = None,
    layers: Sequence[str] = (),
    bias_fix: bool = False,
    limit: int | None = None,
    held: int = 64,
    device: str = "auto",
    timing: bool = True,
    progress: bool | Callable[[str], None] = True,
    **reading: Any,
) -> Compressed:
    """Write a model with smaller weights, and measure the change of its answers.

    Some examples of ``data``, drawn by the hash of their ids, calibrate the method; others measure
    the change. The same as ``sonde compress``.

    Parameters
    ----------
    model : str, path, Model or module
        Where the weights of the smaller model come from, as in ``sonde.load``.
    data : data
        Inputs, as ``sonde.read`` takes them: a path, a data set's name, or an iterable of inputs.
    output : path
        Folder for the smaller model; ``sonde.undo`` takes the change back.
    to : str, optional
        ``4bit`` (1bit to 8bit; the default), ``50%``, ``2:4``, ``rank16`` or ``5blocks``.
    method : str, optional
        Method by its word, ``gptq`` or ``sparse_gpt(refit=True)``; by default the method that suits
        the size. ``any`` tries all methods that can reach a budget.
    budget : int or str, optional
        Most bytes of weight files, as ``100MiB``; the size is searched.
    max_kl : float, optional
        Most divergence of answers, in nats; the smallest such model is searched.
    group : int, optional
        Weights that share a scale; by default the method's, mostly 32.
    layers : sequence of str
        Layers by name; ``*`` with embeddings and convolutions. By default all linear ones.
    bias_fix : bool, default=False
        Whether the bias of each changed layer is corrected, so that the mean of the layer's outputs
        over the calibration examples stays as it was: see ``sonde.compress.correct_biases``.
    limit : int, optional
        Examples to calibrate on; by default 8 rows for each input of a layer.
    held : int, default=64
        Other examples to compare on.
    device : str, default="auto"
        Device of the model: ``auto`` takes cuda, mps or cpu, and ``cpu`` or ``cuda:1`` name one.
    timing : bool, default=True
        Whether the speed of the old and the new model is measured, by up to 21 runs of each.
    progress : bool or callable, default=True
        Whether a bar is shown; a function is called with a line about each trial of a search,
        beside the bar.
    **reading
        Options of ``sonde.read`` about data, such as ``text_column``.

    Raises
    ------
    InputError
        If the size or method is unknown, the model refuses it, or nothing fits the budget.
    """
    wish = Wish(to, method, budget_bytes(budget), max_kl, group, tuple(layers), bias_fix)
    for word, n in {"limit": limit, "held": held}.items():
        if n is not None and n < 1:
            raise InputError(f"--{word}: expected at least 1, got {n}.")
    rule, output = wish.rule(), Path(output)
    check_output(output)
    loaded = load(model, device=device)
    check_change(loaded, output, plain=True)
    if rule is not None:
        rule.check(loaded)
    job = _Job(loaded, *_examples(loaded, data, limit, held, reading), output, wish, progress)
    best, tried, notes = job.best(rule)
    new = best.plan.fold(loaded)
    sites = inside(loaded, new, job.held, best.plan.renamed)
    times = speeds(loaded, new, job.held) if timing else []
    compared = data_name(data, job.held)
    figures = card_figures(loaded, best.plan, best.fidelity, compared, len(job.held))
    with source_folder(loaded) as source:
        saved = save_edited(source, best.plan, output, name=loaded.name, figures=figures)
        n_bytes = [weight_bytes(at) for at in (source, output)]
    with removed_on_error(output):
        document = compress_document(
            loaded,
            new,
            best.plan,
            name=loaded.name,
            data=compared,
            output=output,
            bytes_on_disk=n_bytes,
            fidelity=best.fidelity,
            sites=sites,
            times=times,
            rows={
                "calibrated_on": len(job.ours) if rule is None or bias_fix or _reads(rule) else 0,
                "compared_on": len(job.held),
            },
            tried=[trial.json() for trial in tried],
            nameable=_nameable(rule, layers),
        )
    return Compressed(document, output, saved.patch, best.plan, tried, (*notes, *saved.notes))


def budget_bytes(word: int | str | None) -> int | None:
    """Return a budget in bytes: ``100MiB`` is 104857600.

    Raises
    ------
    InputError
        If the word cannot be read.
    """
    if word is None or isinstance(word, int):
        return word
    match = re.fullmatch(r"([0-9.]+) ?([KMG]I?B)?", word.strip().upper())
    if match is None or match[1].count(".") > 1 or match[1] == ".":
        raise InputError(f"--budget: expected bytes as 100MiB or 2GB, got {word!r}.")
    return math.floor(float(match[1]) * UNITS[match[2] or ""])


def _examples(
    model: Model, data: Any, limit: int | None, held: int, reading: Mapping[str, Any]
) -> tuple[ItemInputs, ItemInputs]:
    """Return the examples to calibrate on and those to compare on."""
    n = MOST_LISTED if limit is None else 8 * (limit + held)
    inputs = open_inputs(model, data, split="train", limit=n, **reading)
    if limit is not None and len(inputs) <= limit:
        raise InputError(
            f"sonde compress: expected more than {limit} examples (--limit to calibrate "
            f"on, then some to compare on), got {len(inputs)}. Lower --limit."
        )
    require_still_weights(model, inputs)
    return chosen_parts(inputs, limit or min(MOST_FITTED, enough_examples(model, inputs)), held)


@dataclass(frozen=True, eq=False)
class _Job:
    """A model, its examples, and the requested size."""

    model: Model
    ours: ItemInputs
    held: ItemInputs
    output: Path
    wish: Wish
    progress: bool | Callable[[str], None]

    def best(self, rule: Any) -> tuple[Trial, Sequence[Trial | SizeTrial], tuple[str, ...]]:
        """Return the requested or the best setting, the trials of a search, and notes."""
        wish = self.wish
        if wish.max_kl is not None:
            require_divergence(self.model, self.held)
        if wish.seeks and not _has_grid(rule):
            return (*self._sought(), ())
        given: Mapping[str, Any] = {}
        notes: tuple[str, ...] = ()
        if _reads(rule):
            calibration, notes = self._calibration(rule)
            given = {"calibration": calibration}
        means = given.get("calibration", self.ours) if wish.bias_fix else None

        def tried(setting: Setting | None) -> Trial:
            one = rule
            if setting is not None:
                one = replace(rule, bits=setting.bits, group=setting.group)
            plan = packed_plan(one, self.model, given, means)
            return Trial(setting, plan, fidelity(self.model, plan.fold(self.model), self.held))

        if not wish.seeks:
            return tried(None), [], notes
        word = (wish.method or "gptq").partition("(")[0]
        settings = sized_settings(self.model, word, wish.layers or None, means)
        chosen = fitting(settings, tried, budget=wish.budget, max_kl=wish.max_kl)
        return (*chosen, notes)

    def _sought(self) -> tuple[Trial, list[SizeTrial]]:
        """Return the best trial that fits the budget or divergence, and every trial."""
        wish = self.wish
        path = self.output.absolute().with_name(self.output.name + ".trials.jsonl")
        key = search_key(self.model, self.ours, self.held) + "".join(wish.layers)
        key += " bias_fix" if wish.bias_fix else ""
        asked, given = pairs_to_seek(str(wish.method)), {"layers": wish.layers or None}
        file, show = TrialFile(path, key), callback_of(self.progress)
        means = self.ours if wish.bias_fix else None
        tried = list(trials(self.model, self.ours, self.held, asked, file, show, given, means))
        best = fitting_trial(tried, wish.budget, wish.max_kl)
        rule = method_asked(best.method, Target.of(best.size), given)
        plan = packed_plan(rule, self.model, dict.fromkeys(rule.reads(), self.ours), means)
        return Trial(None, plan, fidelity(self.model, plan.fold(self.model), self.held)), tried

    def _calibration(self, rule: Any) -> tuple[Any, tuple[str, ...]]:
        """Return the examples, or their moments if the method takes moments, and notes."""
        needs = rule.reads().values()
        if not any(getattr(need, "summed", None) is LayerGrams for need in needs):
            return self.ours, ()
        require_finite(type(rule).__name__, self.model.module)
        ours = finite_examples(f"{type(rule).__name__}.plan", "calibration", self.ours)
        grams = layer_grams(self.model, ours, layers=rule.layers, progress=bool(self.progress))
        return grams, _few_rows(grams, len(ours))


def _has_grid(rule: Any) -> bool:
    """Return whether a method has bits and groups, so that its bytes are known without a trial."""
    if rule is None or not {"bits", "group"} <= {f.name for f in fields(rule)}:
        return False
    return rule.bits not in (None, 1)


def _nameable(rule: Any, layers: Sequence[str]) -> dict[str, str]:
    """Return the options that would also compress convolutions and embeddings, by kind of layer."""
    names = set() if rule is None else {f.name for f in fields(rule)}
    by_grid, all_layers = "bits" in names, "--layers '*'"
    commands = {"convolution": f"--to 50% {all_layers}" if by_grid else all_layers}
    if by_grid and not layers:
        commands["embedding"] = all_layers
    is_named = bool(layers) and not by_grid
    return {} if is_named or "layers" not in names or "rank" in names else commands


def _reads(rule: Rewrite) -> bool:
    """Return whether a method reads the examples, which are there."""
    needs = [need for need in rule.reads().values() if isinstance(need, Examples)]
    return any(not need.optional or need.summed is not None for need in needs)


def _few_rows(grams: LayerGrams, n_examples: int) -> tuple[str, ...]:
    """Return a note on the layer with the fewest rows per input, and how many examples it needs."""
    with_rows = {name: state for name, state in grams.states.items() if state.n}
    lacks = {name: len(state.mean) / state.n for name, state in with_rows.items()}
    if not lacks:
        return ()
    name = max(lacks, key=lambda name: lacks[name])
    if lacks[name] <= 1:
        return ()
    state = grams.states[name]
    return (
        f"note: {re.split('[&#]', name)[0]} is calibrated on {plural(state.n, 'row')}, but "
        f"each row has {plural(len(state.mean), 'feature')}: with fewer rows than features, the "
        "importance of errors is poorly estimated. Give --limit "
        f"{math.ceil(lacks[name] * n_examples)} or more.",
    )
