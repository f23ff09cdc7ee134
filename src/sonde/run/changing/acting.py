"""Steps that all changes of a model share: judge the change, refuse it if too large, write it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sonde.core._shown import document_html, document_line
from sonde.core.edit import Edit
from sonde.core.errors import InputError
from sonde.core.inputs import Inputs, Model
from sonde.core.repacking import count_weights
from sonde.data import open_inputs
from sonde.run.changing.edit_document import edit_document
from sonde.run.changing.edit_table import EditTable
from sonde.run.changing.fact_prompts import FactPrompts
from sonde.run.changing.judge import Act, JudgedSide, Judgement, judge
from sonde.run.changing.language_figures import (
    Efficacy,
    LanguageFigures,
    measure_language,
    writes_texts,
)
from sonde.run.fitting.fit import fit
from sonde.run.fitting.fitted import Fitted
from sonde.run.reading.load import load
from sonde.run.reading.notes import data_name
from sonde.run.reading.read import read
from sonde.tap.hooks.holding import in_eval
from sonde.tap.hooks.outputs import find
from sonde.tap.model.sites import resolve
from sonde.weights import RewritePlan, fold_edit, save_edited
from sonde.weights.factory_folder import check_change
from sonde.weights.folder import check_output
from sonde.weights.residual import inputs_or_none, run

JUDGED, LEAST_JUDGED = 64, 8
"""Most and fewest examples of a data set that an act is judged by."""
OPERATIONS = 8e11
"""How many operations the judging of one act may take: below 30 s on two cores."""
PASSES = 24
"""Runs of each example: on two sides, unchanged, changed, and under ten controls."""
N_SAMPLES, PROMPT, NEW = 3, 32, 80
"""Samples of text, tokens of their prompts, and tokens that are made."""


@dataclass(frozen=True, eq=False)
class Change:
    """Effects of a change of a model, and the path of the changed model.

    Attributes
    ----------
    document : dict
        The figures as JSON, ``sonde-edit/1``: what ``sonde edit`` prints and its page shows.
        ``sonde.report.save_document(document, "page.html")`` writes the page.
    output : Path or None
        Folder of the changed model; None if none was written.
    judgement : Judgement or None
        Effect, damage, size and controls; None if nothing was changed.
    notes : tuple of str
        What else should be known, in sentences.
    """

    document: dict[str, Any]
    output: Path | None = None
    judgement: Judgement | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return document_line(type(self).__name__, self.document)

    def _repr_html_(self) -> str:
        return document_html("Change of a model", self.document)


@dataclass(frozen=True, eq=False)
class Subject:
    """A model to be changed, and the data that the change should leave alone.

    Parameters
    ----------
    model : Model
    output : Path
        Folder for the changed model.
    neutral : data
        Data that the change should leave alone.
    options : mapping
        How data are read.
    """

    model: Model
    output: Path
    neutral: Any
    options: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Deed:
    """A change of a model that is about to be judged, written and reported.

    Parameters
    ----------
    word : str
        The word of ``sonde edit``.
    subject : Subject
    plan : RewritePlan
    act : callable
        Opens the changed model; see ``sonde.run.changing.acts``.
    controls : sequence of callable
        Random changes of the same size.
    target : sequence of JudgedSide
        What it should change.
    told : str
        The target in words.
    sites : sequence of str
        Where the size of the change is measured.
    places : sequence of str
        What is changed beside the tensors of the plan.
    prompts : Inputs, optional
        Prompts that the samples continue.
    tables : callable, optional
        Returns further tables; called only after the change was accepted.
    notes : sequence of str, optional
    facts : FactPrompts, optional
        New answers that a language model is asked for.
    efficacy : callable, optional
        Returns how far the change did what was asked for; by default, how surely the examples of
        the target move the requested way.
    n_rows, n_units : int, default=0
        Rows that the change was fitted on and their dimensions, for changes that invert a
        covariance.
    """

    word: str
    subject: Subject
    plan: RewritePlan
    act: Act
    controls: Sequence[Act]
    target: Sequence[JudgedSide]
    told: str
    sites: Sequence[str]
    places: Sequence[str] = ()
    prompts: Inputs | None = None
    tables: Callable[[], Sequence[EditTable]] = tuple
    notes: Sequence[str] = ()
    facts: FactPrompts | None = None
    efficacy: Callable[[], Efficacy] | None = None
    n_rows: int = 0
    n_units: int = 0

    @property
    def has_few_rows(self) -> bool:
        """True if there were no more rows than dimensions."""
        return 0 < self.n_rows <= self.n_units


def open_subject(
    model: Any,
    output: str | Path,
    neutral: Any,
    *,
    device: str = "auto",
    limit: int | None = None,
    reading: Mapping[str, Any],
) -> Subject:
    """Open the model that is going to be changed, after checking the arguments that need no model.

    Raises
    ------
    InputError
        If something is at ``output``, the model cannot be written, or has no such neutral data.
    """
    folder, options = Path(output), {**reading, "limit": limit}
    opened = open_for_change(model, folder, device)
    open_inputs(opened, neutral, **{**options, "limit": 1})
    return Subject(opened, folder, neutral, options)


def open_for_change(model: Any, output: Path, device: str = "auto") -> Model:
    """Load a model whose changed copy will be written to a folder, after checking that folder.

    Raises
    ------
    InputError
        If something is at ``output``, or the model cannot be written.
    """
    check_output(output)
    opened = load(model, device=device)
    check_change(opened, output)
    return opened


def fit_on(
    model: Model, instrument: Any, data: Any, sites: Any, *, progress: bool, **options: Any
) -> Fitted:
    """Return an instrument fitted on data; ``options`` are those of ``sonde.read``."""
    stream = read(model, data, sites=sites, **options)
    return fit(instrument, stream, calibrate=0, progress=progress)


def carry_out(deed: Deed, *, force: bool, show_inputs: bool, progress: bool) -> Change:
    """Judge a change and write the new model.

    Parameters
    ----------
    deed : Deed
    force : bool
        Write it even where it is too large, or does no more than chance.
    show_inputs : bool
        Put texts before and after into the document.
    progress : bool

    Raises
    ------
    InputError
        If the change is too large and not forced.
    """
    subject = deed.subject
    model, output = subject.model, subject.output
    neutral = some_inputs(model, subject.neutral, **subject.options)
    judgement = judge(
        model,
        deed.act,
        deed.target,
        neutral,
        controls=deed.controls,
        sites=deed.sites,
        progress=progress,
    )
    if judgement.too_large and not force:
        raise InputError(f"this edit is too large: {judgement.too_large}. {_remedy(deed)}")
    notes = idle_note(judgement, force=force)
    is_written = force or not notes
    tables = deed.tables() if is_written else ()
    language = language_of(model, deed.act, judgement, neutral, deed) if is_written else None
    saved = save_edited(model, deed.plan, output, name=model.name) if is_written else None
    tensors = saved.tensors if saved else [n for n in deed.plan.changes if n not in deed.plan.blank]
    document = edit_document(
        deed.word,
        judgement,
        model=model.name,
        method=deed.plan.method,
        places=[*deed.places, *tensors],
        target=deed.told,
        neutral=data_name(subject.neutral, neutral),
        output=str(output) if saved else None,
        tables=tables,
        samples=_shown(deed) if saved and show_inputs else (),
        notes=deed.notes,
        language=language,
    )
    if saved:
        notes = (*notes, *saved.notes)
    return Change(document, output if saved else None, judgement, notes)


def language_of(
    model: Model, act: Act, judgement: Judgement, neutral: Inputs, deed: Deed | None = None
) -> LanguageFigures | None:
    """Return the eight figures of a changed language model; None for another model."""
    if not writes_texts(model):
        return None
    own = None if deed is None else deed.efficacy
    return measure_language(
        model,
        act,
        facts=None if deed is None else deed.facts,
        efficacy=Efficacy(judgement.separation) if own is None else own(),
        kept=judgement.kept,
        rise_nats=judgement.loss.value,
        neutral=neutral,
    )


def _remedy(deed: Deed) -> str:
    """Return what to do about a change that is too large."""
    if not deed.has_few_rows:
        return "Pass a smaller --strength, or --force."
    return (
        f"It was fitted on {deed.n_rows} rows in {deed.n_units} dimensions (few_rows), so new rows "
        f"move more than those of the fit. Give more than {deed.n_units} rows (a larger --limit, "
        "or --reducer positions), or --force."
    )


def idle_note(judgement: Judgement, *, force: bool) -> tuple[str, ...]:
    """Return a note if the change has no significant effect, else an empty tuple."""
    if not judgement.no_effect:
        return ()
    written = "It is written anyway" if force else "Nothing was written; --force writes it"
    return (f"this edit does not have the requested effect: {judgement.no_effect}. {written}.",)


def require_foldable(model: Model, site: str, edit: Callable[[int], Edit]) -> None:
    """Raise if the weights of a site cannot hold an edit, before the edit is fitted.

    Parameters
    ----------
    model : Model
    site : str
    edit : callable
        Makes an edit of the kind for a number of features.

    Raises
    ------
    StateError
        With the reason.
    """
    inputs, place = inputs_or_none(model.module), resolve(model.module, site)[0]
    if inputs is None:
        return  # the model does not say what it is called with
    seen: list[Any] = []
    part, port = model.module.get_submodule(place.path), place.port

    def hook(_: Any, args: Any, kwargs: Any, output: Any) -> None:
        seen.append(find((args, kwargs) if port == "in" else output, None))

    handle = part.register_forward_hook(hook, with_kwargs=True)
    try:
        run(model.module, inputs)
    finally:
        handle.remove()
    if seen and seen[0] is not None:
        axis = 1 if seen[0].ndim > 3 else -1
        fold_edit(model, edit(seen[0].shape[axis]), place)


def side(model: Model, name: str, data: Any, sign: Any, **options: Any) -> JudgedSide:
    """Return a sample of the held-out data of one side of a target."""
    return JudgedSide(name, some_inputs(model, data, **options), sign)


def some_inputs(model: Model, data: Any, **options: Any) -> Inputs:
    """Return a sample of the data's split ``test``, of the size by which an edit is judged.

    The size of the sample follows only from the model's size and the length of texts, so it is the
    same everywhere; the report states the error of the sample.
    """
    limit = min(options.pop("limit", None) or JUDGED, JUDGED)
    inputs = open_inputs(model, data, limit=limit, **options)
    first = next(inputs.batches(0, len(inputs)), None)
    n_tokens = 1.0 if first is None or first.length is None else float(first.length.double().mean())
    cost = 2.0 * count_weights(model.module) * n_tokens * PASSES
    return inputs.first(max(LEAST_JUDGED, int(OPERATIONS / max(cost, 1.0))))


def _shown(deed: Deed) -> Sequence[dict[str, str]]:
    return () if deed.prompts is None else samples(deed.subject.model, deed.act, deed.prompts)


def samples(model: Model, act: Act, inputs: Inputs) -> Sequence[dict[str, str]]:
    """Return a language model's continuations of some prompts, before and after an edit.

    Empty for other models.
    """
    if model.task != "causal" or model.processor is None:
        return []
    pairs: list[dict[str, str]] = []
    for batch in inputs.batches(0, min(N_SAMPLES, len(inputs))):
        ids, mask = batch.kwargs["input_ids"], batch.mask
        for row in range(len(ids)):
            own = ids[row] if mask is None else ids[row][mask[row]]
            prompt = own[:PROMPT][None].to(next(model.module.parameters()).device)
            texts = {"prompt": _decoded(model, prompt[0])}
            for word, opened in (("before", None), ("after", act)):
                with torch.no_grad():
                    texts[word] = _continued(model, prompt, opened)
            pairs.append(texts)
    return pairs[:N_SAMPLES]


def _continued(model: Model, prompt: Any, act: Act | None) -> str:
    with nullcontext(model.module) if act is None else act() as module:
        generator: Any = module
        with in_eval(generator):
            out = generator.generate(prompt, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    return _decoded(model, out[0, prompt.shape[1] :])


def _decoded(model: Model, ids: Any) -> str:
    return str(model.processor.decode(ids.tolist(), skip_special_tokens=True))
