"""``sonde.judge_edit``: eight figures of a changed language model, however it was changed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from sonde.core.errors import InputError
from sonde.core.inputs import Inputs, Model
from sonde.edit import Fact
from sonde.run.changing.acting import Change, side, some_inputs
from sonde.run.changing.acts import module_act
from sonde.run.changing.edit_document import edit_document
from sonde.run.changing.fact_prompts import FactPrompts
from sonde.run.changing.judge import Act, JudgedSide, judge, measure_damage
from sonde.run.changing.language_figures import Efficacy, measure_language, writes_texts
from sonde.run.reading.load import load
from sonde.run.reading.notes import data_name


def judge_edit(
    model: Any,
    changed: str | Path | Model | nn.Module | Callable[[], AbstractContextManager[Any]],
    *,
    data: Any = None,
    facts: Fact | Sequence[Fact] = (),
    positive: Any = None,
    negative: Any = None,
    limit: int | None = None,
    device: str = "auto",
    progress: bool = True,
    **reading: Any,
) -> Change:
    """Judge a change of a language model by eight figures; the verdict is that of the worst.

    It does not matter what made the change: a rewritten fact, a merge, an adapter, forgetting,
    another library, or an edit of activations. The same as ``sonde edit judge``.

    Parameters
    ----------
    model : str, path, Model or module
        The unchanged language model, as in ``sonde.load``.
    changed : str, path, Model, module or callable
        The changed model; or a function that opens a change of ``model``, such as
        ``lambda: sonde.editing(model, ClampUnit(3, 5.0), "model.layers.2")``.
    data : data, optional
        Plain text that the model should handle as before, as in ``sonde.read``.
    facts : Fact or sequence of Fact, default=()
        New answers that the change should give.
    positive, negative : data, optional
        Texts that the change should make likelier, and less likely.
    limit : int, optional
        Read only the first examples of each data set.
    device : str, default="auto"
        Device of the model: ``auto`` takes cuda, mps or cpu, and ``cpu`` or ``cuda:1`` name one.
    progress : bool, default=True
        Whether a progress bar is shown on stderr.
    **reading
        Options of ``sonde.read`` about data, such as ``text_column``.

    Returns
    -------
    Change
        Its document has the table of figures; ``document["language"]`` has the scores and the
        verdict.

    Raises
    ------
    InputError
        If the model does not write texts.
    """
    original = load(model, device=device)
    if not writes_texts(original):
        raise InputError(
            f"judge_edit: expected a language model with its tokenizer, got {original!r}. Use "
            "sonde.evaluate or sonde.compare for other models."
        )
    act, asked = _act(original, changed, device), [facts] if isinstance(facts, Fact) else [*facts]
    options = {**reading, "limit": limit}
    neutral = None if data is None else some_inputs(original, data, **options)
    words = {"positive": (positive, 1), "negative": (negative, -1)}
    sides = [side(original, n, w, s, **options) for n, (w, s) in words.items() if w is not None]
    figures = measure_language(
        original,
        act,
        facts=FactPrompts.of(original, asked) if asked else None,
        neutral=neutral,
        **_moved(original, act, sides, neutral, progress=progress),
    )
    document = edit_document(
        "judge",
        None,
        model=original.name,
        method=changed if isinstance(changed, str) else getattr(changed, "name", "a given change"),
        places=[],
        target="what was asked for",
        neutral="" if data is None else data_name(data, neutral),
        language=figures,
    )
    return Change(document, notes=())


def _act(model: Model, changed: Any, device: str) -> Act:
    """Return what opens the change."""
    if callable(changed) and not isinstance(changed, nn.Module):
        opened: Callable[[], Any] = changed

        @contextmanager
        def act() -> Iterator[nn.Module]:
            with opened():
                yield model.module

        return act
    return module_act(load(changed, device=device).module)


def _moved(
    model: Model, act: Act, sides: Sequence[JudgedSide], neutral: Inputs | None, *, progress: bool
) -> dict[str, Any]:
    """Return the figures on given data, by the argument of ``measure_language`` they are."""
    calm = neutral
    if calm is None and sides:
        calm = sides[-1].inputs
    if calm is None:
        return {}
    if not sides:
        damage = measure_damage(model, act, calm)
        return {"kept": damage.kept, "rise_nats": damage.means(calm)[0].value}
    judgement = judge(model, act, sides, calm, progress=progress)
    return {
        "efficacy": Efficacy(judgement.separation),
        "kept": judgement.kept,
        "rise_nats": judgement.loss.value,
    }
