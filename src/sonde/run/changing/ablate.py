"""``sonde.ablate``: remove one direction from everything that writes to a model's states."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from sonde.core.errors import InputError, StateError
from sonde.core.inputs import Model
from sonde.core.renaming import renamed
from sonde.data import contrast
from sonde.edit import AblationChoice, DirectionalAblation, choose_ablation
from sonde.run.changing.acting import (
    Change,
    Deed,
    carry_out,
    fit_on,
    open_subject,
    side,
)
from sonde.run.changing.acts import edit_act, edit_controls
from sonde.run.changing.edit_table import EditTable
from sonde.run.reading.notes import data_name
from sonde.weights import fold_writers, residual_writers


@renamed(max_kl="kl_limit")
def ablate(
    model: Any,
    positive: Any,
    negative: Any,
    output: str | Path,
    *,
    site: str = "auto",
    strength: float = 1.0,
    max_kl: float = 0.1,
    reducer: str = "last",
    limit: int | None = None,
    neutral: Any = None,
    force: bool = False,
    show_inputs: bool = False,
    device: str = "auto",
    progress: bool = True,
    **reading: Any,
) -> Change:
    """Write a copy of the model without the direction of the behaviour that ``positive`` evokes.

    Candidates are fitted at every block on the split train. The candidate that removes the
    behaviour most on the split test, can also induce it, and leaves the answers to ``negative``
    alone is projected out of all layers that write to the states. The same as
    ``sonde edit ablate``.

    Parameters
    ----------
    model : str, path, Model or module
        Where the weights of the changed model come from, as in ``sonde.load``.
    positive : data
        Inputs that show the behaviour, as ``sonde.read`` takes them.
    negative : data
        Inputs without the behaviour, as ``sonde.read`` takes them.
    output : path
        Folder for the new model; ``sonde.undo`` takes the change back.
    site : str, default="auto"
        Sites of the candidates; ``auto`` is all blocks.
    strength : float, default=1.0
        1 removes, 0.5 halves.
    max_kl : float, default=0.1
        Largest KL divergence, in nats, between the answers to ``negative`` before and after the
        edit.
    reducer : str, default="last"
        How an input becomes rows.
    limit : int, optional
        Read only the first examples of each side.
    neutral : data, optional
        Data that should be left alone; by default ``negative``.
    force : bool, default=False
        Write the model even where the change is too large, or does no more than chance.
    show_inputs : bool, default=False
        Put texts before and after into the document.
    device : str, default="auto"
        Device of the model: ``auto`` takes cuda, mps or cpu, and ``cpu`` or ``cuda:1`` name one.
    progress : bool, default=True
        Whether a progress bar is shown on stderr.
    **reading
        Options of ``sonde.read`` about data, such as ``text_column``.

    Raises
    ------
    InputError
        If the states are no sum of layers that can be changed, no candidate passes, or the change
        is too large.
    """
    calm = negative if neutral is None else neutral
    subject = open_subject(model, output, calm, device=device, limit=limit, reading=reading)
    loaded, options = subject.model, subject.options
    places = _writers(loaded)
    fitted = fit_on(
        loaded,
        DirectionalAblation(),
        contrast(positive, negative, limit=limit),
        "blocks" if site == "auto" else site,
        reducer=reducer,
        progress=progress,
        **reading,
    )
    candidates = {site: fitted.result(method, site) for method, site in fitted.names}
    target = [
        side(loaded, "positive", positive, -1, **options),
        side(loaded, "negative", negative, 1, **options),
    ]
    showing, usual = (one.inputs for one in target)
    choice = choose_ablation(loaded, candidates, showing, usual, sites=places, max_kl=max_kl)
    edit = choice.direction.edit(strength)
    how = f"directional_ablation at {choice.site}, strength {strength:g}"
    words = (data_name(positive), data_name(negative))
    deed = Deed(
        word="ablate",
        subject=subject,
        plan=replace(fold_writers(loaded, edit), method=how),
        act=edit_act(loaded, edit, places),
        controls=edit_controls(loaded, edit, places),
        target=target,
        told=f"{words[0]} less likely than {words[1]}",
        sites=[choice.site],
        prompts=showing,
        tables=lambda: (_trials(choice, *words),),
    )
    return carry_out(deed, force=force, show_inputs=show_inputs, progress=progress)


def _writers(model: Model) -> list[str]:
    """Return the sites of all layers that write to the states.

    Raises
    ------
    InputError
        If the states are no sum of such layers.
    """
    try:
        writers = residual_writers(model)
    except StateError as error:
        raise InputError(
            f"sonde edit ablate: {error} To try it: fit directional_ablation with `sonde fit`, "
            f"then `sonde generate {model.name} PROMPTS --steer FILE.sonde`."
        ) from error
    return [writer if isinstance(writer, str) else writer.name for writer in writers]


def _trials(choice: AblationChoice, positive: str, negative: str) -> EditTable:
    """Return a table of each candidate direction's effects."""
    rows = tuple(
        (t.site, t.bypass, t.induce, t.kl, t.refused or ("taken" * (t.site == choice.site)))
        for t in choice.trials
    )
    columns = ("site", "taken out", "added", "KL", "")
    before, usual = choice.plain
    title = (
        f"Log-odds of the behaviour; before the edit they are {before:.3g} on {positive} and "
        f"{usual:.3g} on {negative}. Shown for each candidate direction: log-odds after it is "
        f"removed from the states of {positive}, log-odds after it is added to the states of "
        f"{negative}, and the divergence of the answers on {negative} when it is removed there"
    )
    return EditTable(title, columns, rows)
