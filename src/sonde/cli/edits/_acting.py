"""Shared steps of ``sonde edit``: judge an edit, refuse it if it is too large, report it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sonde.cli._presenting import check_page, present
from sonde.cli.console import note
from sonde.cli.options import Printing, named
from sonde.core.errors import InputError

if TYPE_CHECKING:
    from sonde.core.edit import Edit
    from sonde.core.inputs import Inputs, Model
    from sonde.run.judging.acts import Act
    from sonde.run.judging.edit_document import EditTable
    from sonde.run.judging.judge import JudgedSide, Judgement
    from sonde.weights import RewritePlan

JUDGED, LEAST_JUDGED = 64, 8
"""Most and fewest examples of a data set that an act is judged by."""
OPERATIONS = 8e11
"""How many operations the judging of one act may take: below 30 s on two cores."""
PASSES = 24
"""How often each example is run: two sides, as they are, changed, and by ten controls."""
N_SAMPLES, PROMPT, NEW = 3, 32, 80
"""Samples of text, tokens of their prompts, and tokens that are made."""


@dataclass(frozen=True, eq=False)
class Deed:
    """A change of a model that is about to be judged, written and reported.

    Parameters
    ----------
    word : str
        The word of ``sonde edit``.
    model : Model
    name : str
        As the user named it.
    plan : RewritePlan
    output : Path
    act : callable
        Opens the changed model; see ``sonde.run.judging.acts``.
    controls : sequence of callable
        Random changes of the same size.
    target : sequence of Side
        What it should change.
    told : str
        The target in words.
    neutral : str
        Data that it should leave alone.
    options : mapping
        How that data is read.
    sites : sequence of str
        Where the size of the change is measured.
    places : sequence of str
        What is changed beside the tensors of the plan.
    prompts : Inputs, optional
        Prompts that the samples continue.
    tables : callable, optional
        Returns further tables; called only after the change was accepted.
    notes : sequence of str, optional
    """

    word: str
    model: "Model"
    name: str
    plan: "RewritePlan"
    output: Path
    act: "Act"
    controls: "Sequence[Act]"
    target: "Sequence[JudgedSide]"
    told: str
    neutral: str
    options: Mapping[str, Any]
    sites: Sequence[str]
    places: Sequence[str] = ()
    prompts: "Inputs | None" = None
    tables: "Callable[[], Sequence[EditTable]]" = tuple
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Acting:
    """How an act is judged and reported."""

    neutral: Annotated[
        str | None, named("DATA", "data that the edit should leave alone; by default --negative")
    ] = None
    report: Annotated[
        Path | None, named("FILE", "page to write, .html or .json (default: OUTPUT.html)")
    ] = None
    force: Annotated[
        bool, tyro.conf.arg(help="write it even where it is too large, or does no more than chance")
    ] = False
    show_inputs: Annotated[
        bool, tyro.conf.arg(help="show texts before and after in the report")
    ] = False

    def page(self, output: Path) -> Path:
        """Return the path of the report.

        Raises
        ------
        InputError
            If the name does not end in .html, .htm or .json, or something is at ``output``.
        StoreError
            If nothing can be written there.
        """
        return checked_page(self.report, output)

    def require_neutral(self, model: "Model", data: str, **options: Any) -> None:
        """Open one example of the data that the edit should leave alone, before anything is fitted.

        Raises
        ------
        InputError
            If there are no such data for this model.
        """
        from sonde.data import open_inputs

        open_inputs(model, data, **{**options, "limit": 1})

    def check(self, judgement: "Judgement") -> None:
        """Refuse an act that does more than it should.

        Raises
        ------
        InputError
            With both numbers.
        """
        if judgement.too_large and not self.force:
            raise InputError(
                f"this edit is too large: {judgement.too_large}. Pass a smaller --strength, or "
                "--force."
            )

    def carry_out(self, deed: Deed, page: Path, printing: Printing) -> int:
        """Judge a change, write the new model and the report; return the exit code.

        A change that is too large is refused; a change that does no more than random changes is not
        written.
        """
        from sonde.data.loading import is_factory
        from sonde.run.judging.edit_document import edit_document
        from sonde.run.judging.judge import judge
        from sonde.weights import save_edited

        judgement = judge(
            deed.model,
            deed.act,
            deed.target,
            some_inputs(deed.model, deed.neutral, **deed.options),
            controls=deed.controls,
            sites=deed.sites,
            progress=not printing.quiet,
        )
        self.check(judgement)
        if is_idle(judgement, self.force):
            return 1
        tables = deed.tables()
        saved = save_edited(deed.model, deed.plan, deed.output, name=deed.name)
        shown: Sequence[dict[str, str]] = ()
        if self.show_inputs and deed.prompts is not None:
            shown = samples(deed.model, deed.act, deed.prompts)
        document = edit_document(
            deed.word,
            judgement,
            model=deed.name,
            method=deed.plan.method,
            places=[*deed.places, *saved.tensors],
            target=deed.told,
            neutral=deed.neutral,
            output=str(deed.output),
            tables=tables,
            samples=shown,
            notes=deed.notes,
        )
        if is_factory(deed.model.name):
            factory = deed.model.name.partition("@")[0]
            note(f"note: open the new model as {factory}@{deed.output}.")
        present(document, printing, page)
        return 0


def is_idle(judgement: "Judgement", force: bool) -> bool:
    """Say if an act does no more than chance; return whether it must not be written."""
    if not judgement.no_effect:
        return False
    written = "It is written all the same" if force else "Nothing was written; --force writes it"
    note(f"this edit does nothing that was asked for: {judgement.no_effect}. {written}.")
    return not force


def checked_page(report: Path | None, output: Path) -> Path:
    """Return the path of the report of a new model, after a check that both can be written."""
    from sonde.weights.folder import check_output

    page = report or output.absolute().with_name(output.name + ".html")
    check_page(page, flag="--report")
    check_output(output)
    return page


def require_foldable(model: "Model", site: str, edit: "Callable[[int], Edit]") -> None:
    """Refuse a site whose weights cannot hold an edit, before the edit is fitted.

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
    from sonde.tap.hooks.outputs import find
    from sonde.tap.model.sites import resolve
    from sonde.weights import fold_edit
    from sonde.weights.residual import inputs_or_none, run

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


def side(model: "Model", name: str, data: str, sign: Any, **options: Any) -> "JudgedSide":
    """Return some of the held-out data of one side of a target."""
    from sonde.run.judging.judge import JudgedSide

    return JudgedSide(name, some_inputs(model, data, **options), sign)


def some_inputs(model: "Model", data: str, **options: Any) -> "Inputs":
    """Return as much of the split ``test`` of data as an act is judged by: a sample.

    The size of the sample follows only from the model's size and the length of texts, so it is the
    same everywhere; the report states the error of the sample.
    """
    from sonde.core.repacking import count_weights
    from sonde.data import open_inputs

    limit = min(options.pop("limit", None) or JUDGED, JUDGED)
    found = open_inputs(model, data, limit=limit, **options)
    first = next(found.batches(0, len(found)), None)
    n_tokens = 1.0 if first is None or first.length is None else float(first.length.double().mean())
    cost = 2.0 * count_weights(model.module) * n_tokens * PASSES
    return found.first(max(LEAST_JUDGED, int(OPERATIONS / max(cost, 1.0))))


def samples(model: "Model", act: "Act", inputs: "Inputs") -> Sequence[dict[str, str]]:
    """Return how a language model continues some prompts, before and under an act.

    Empty for other models.
    """
    import torch

    if model.task != "causal" or model.processor is None:
        return []
    found: list[dict[str, str]] = []
    for batch in inputs.batches(0, min(N_SAMPLES, len(inputs))):
        ids, mask = batch.kwargs["input_ids"], batch.mask
        for row in range(len(ids)):
            own = ids[row] if mask is None else ids[row][mask[row]]
            prompt = own[:PROMPT][None].to(next(model.module.parameters()).device)
            told = {"prompt": _decoded(model, prompt[0])}
            for word, opened in (("before", None), ("after", act)):
                with torch.no_grad():
                    told[word] = _continued(model, prompt, opened)
            found.append(told)
    return found[:N_SAMPLES]


def _continued(model: "Model", prompt: Any, act: "Act | None") -> str:
    from contextlib import nullcontext

    with nullcontext(model.module) if act is None else act() as module:
        made: Any = module
        out = made.generate(prompt, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    return _decoded(model, out[0, prompt.shape[1] :])


def _decoded(model: "Model", ids: Any) -> str:
    return str(model.processor.decode(ids.tolist(), skip_special_tokens=True))
