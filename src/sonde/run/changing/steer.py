"""``sonde.steer``: move states along the direction between two data sets."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from sonde.core.edit import Add
from sonde.core.errors import InputError, StateError
from sonde.core.inputs import Model
from sonde.data import contrast
from sonde.edit import SteeringVector
from sonde.edit.steering_vector import SteeringDirection
from sonde.files.gguf import write_control_vector
from sonde.run.changing.acting import (
    Change,
    Deed,
    Subject,
    carry_out,
    fit_on,
    open_subject,
    require_foldable,
    side,
    some_inputs,
)
from sonde.run.changing.acts import edit_act, edit_controls
from sonde.run.changing.edit_table import EditTable
from sonde.run.changing.judge import JudgedSide, judge, largest_strength
from sonde.run.changing.language_figures import writes_texts
from sonde.run.changing.written_texts import PlainTexts, measure_writing, prompts_of
from sonde.run.fitting.fitted import Fitted
from sonde.run.reading.notes import data_name
from sonde.tap.model.sites import resolve
from sonde.weights import fold_edit

Way = Literal["mean_difference", "pca_difference", "probe"]
DEPTH = 0.5
"""Depth of the block that is steered by default, as a share of all blocks."""
FEW, REQUESTED, SHORT = 8, 4, 24
"""Examples of a side, requests and tokens by which several strengths are compared."""
VECTOR_STRENGTH = 2.0
"""Default strength of a control vector, which is not judged."""


def steer(
    model: Any,
    positive: Any,
    negative: Any,
    output: str | Path,
    *,
    site: str = "auto",
    strength: float | None = None,
    method: Way = "mean_difference",
    reducer: str = "positions",
    limit: int | None = None,
    neutral: Any = None,
    force: bool = False,
    show_inputs: bool = False,
    device: str = "auto",
    progress: bool = True,
    **reading: Any,
) -> Change:
    """Write a model whose states are moved along the direction from ``negative`` to ``positive``.

    The direction is fitted on the split train and added as a bias behind one site; what it does is
    judged on the split test. The same as ``sonde edit steer``.

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
        Where the direction is added; ``auto`` is the block half way.
    strength : float, optional
        In spreads of the states; below 0 makes less of ``positive``. By default the largest
        strength that neither moves states nor costs too much.
    method : {"mean_difference", "pca_difference", "probe"}
        How the direction is found.
    reducer : str, default="positions"
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

    Returns
    -------
    Change
        With the folder, the judgement, and the document of the page.

    Raises
    ------
    InputError
        If the site's weights cannot hold the direction, or the change is too large.
    """
    calm = negative if neutral is None else neutral
    subject = open_subject(model, output, calm, device=device, limit=limit, reading=reading)
    loaded = subject.model
    _require_foldable(loaded, site)
    fitted = steering_directions(
        loaded, positive, negative, site=site, method=method, reducer=reducer, limit=limit,
        progress=progress, **reading,
    )  # fmt: skip
    steering, place = _chosen(fitted, site, method)
    if strength is None:
        strength = largest_strength(
            loaded,
            lambda strength: edit_act(loaded, steering.edit(strength), [place]),
            some_inputs(loaded, calm, **subject.options),
            [place],
        )
    deed = _deed(subject, steering, place, strength, (positive, negative), method)
    return carry_out(deed, force=force, show_inputs=show_inputs, progress=progress)


def steering_directions(
    model: Model,
    positive: Any,
    negative: Any,
    *,
    site: str = "auto",
    method: Way = "mean_difference",
    reducer: str = "positions",
    limit: int | None = None,
    progress: bool = True,
    **reading: Any,
) -> Fitted:
    """Return the directions from ``negative`` to ``positive`` at a site, by default at all blocks.

    Saved with ``.save("FILE.sonde")``, ``sonde generate --steer`` reads them. Parameters are those
    of ``steer``.
    """
    sites = "blocks" if site == "auto" else site
    data = contrast(positive, negative, limit=limit)
    instrument = SteeringVector(how=method)
    return fit_on(
        model, instrument, data, sites, reducer=reducer, progress=progress, **reading
    )  # fmt: skip


def save_control_vector(
    model: Model, fitted: Fitted, output: Path, strength: float | None = None
) -> int:
    """Write the directions of all blocks as a control vector for llama.cpp; return how many.

    Parameters
    ----------
    model : Model
    fitted : Fitted
        Of ``steering_directions`` at all blocks.
    output : Path
        Ends in ``.gguf``.
    strength : float, optional
        In spreads of the states; by default 2.
    """
    results = [fitted.result(method, site) for method, site in fitted.names]
    scale = VECTOR_STRENGTH if strength is None else strength
    vectors = {n: scale * r.spread * r.vector for n, r in enumerate(results)}
    kind = getattr(model.config, "model_type", "") or type(model.module).__name__
    write_control_vector(output, kind, vectors)
    return len(vectors) - 1


def _chosen(fitted: Fitted, site: str, method: Way) -> tuple[SteeringDirection, str]:
    """Return the direction at the named site, or at the block at half the depth, and its site."""
    names = [name for _, name in fitted.names]
    place = names[round(DEPTH * (len(names) - 1))] if site == "auto" else names[0]
    return fitted.result(SteeringVector(how=method), place), place


def _deed(
    subject: Subject,
    steering: SteeringDirection,
    site: str,
    strength: float,
    sides: tuple[Any, Any],
    method: Way,
) -> Deed:
    (positive, negative), model, options = sides, subject.model, subject.options
    edit = steering.edit(strength)
    how = f"steering_vector(how={method!r}), strength {strength:g}"
    try:
        plan = replace(fold_edit(model, edit, site), method=how)
    except StateError as error:
        raise _unfoldable(error, model.name) from error
    more = 1 if strength >= 0 else -1
    target = [
        side(model, "positive", positive, more, **options),
        side(model, "negative", negative, -more, **options),
    ]
    likelier = [data_name(positive), data_name(negative)][::more]
    return Deed(
        word="steer",
        subject=subject,
        plan=plan,
        act=edit_act(model, edit, [site]),
        controls=edit_controls(model, edit, [site]),
        target=target,
        told=f"{likelier[0]} likelier than {likelier[1]}",
        sites=[site],
        places=[site],
        prompts=target[1].inputs,
        tables=lambda: _by_strength(
            subject, steering, site, strength, [*zip(target, sides, strict=True)]
        ),
        notes=(f"{strength:g} standard deviations are added after {site}.",),
    )


def _by_strength(
    subject: Subject,
    steering: SteeringDirection,
    site: str,
    strength: float,
    target: Sequence[tuple[JudgedSide, Any]],
) -> Sequence[EditTable]:
    """Return what a language model gains and loses at half, the same and twice the strength."""
    model = subject.model
    if not writes_texts(model):
        return ()
    options = {**subject.options, "limit": FEW}
    sides = [side(model, one.name, data, one.sign, **options) for one, data in target]
    rows: list[tuple[float, ...]] = []
    plain = PlainTexts.write(model, prompts_of(model)[:REQUESTED], n_tokens=SHORT)
    for scale in (0.5, 1.0, 2.0):
        act = edit_act(model, steering.edit(scale * strength), [site])
        judged = judge(model, act, sides, sides[-1].inputs, progress=False)
        wrote = measure_writing(plain, act)
        fluency = wrote.entropy[1] / wrote.entropy[0] if wrote.entropy[0] > 0 else float("nan")
        rows.append(
            (scale * strength, judged.effect.value, judged.separation, wrote.kept, fluency,
             wrote.loss[1] - wrote.loss[0])
        )  # fmt: skip
    columns = ("strength", "effect, nats", "separation", "tokens kept", "fluency", "rise of loss")
    title = (
        "What grows with the strength: the effect on the two sides; the model's own next tokens "
        "that stay; entropy of what it writes, over that before; and the old model's loss on it"
    )
    return (EditTable(title, columns, tuple(rows)),)


def _require_foldable(model: Model, site: str) -> None:
    """Refuse a site whose weights cannot hold a bias, before anything is fitted."""
    sites = resolve(model.module, "blocks" if site == "auto" else site)
    place = sites[round(DEPTH * (len(sites) - 1))] if site == "auto" else sites[0]
    try:
        require_foldable(model, str(place), lambda n: Add(torch.ones(n)))
    except StateError as error:
        raise _unfoldable(error, model.name) from error


def _unfoldable(error: StateError, name: str) -> InputError:
    return InputError(
        f"sonde edit steer: {error} To try it: -o FILE.sonde here, then `sonde generate "
        f"{name} PROMPTS --steer FILE.sonde`."
    )
