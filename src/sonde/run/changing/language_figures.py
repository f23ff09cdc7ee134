"""The judge of changed language models: eight figures, and the verdict of the worst.

Every change of a causal language model is judged by the same eight lines: does it do what was asked
for, to other wordings too, and to nothing else; and does the model still write texts. Damage on
neutral text alone does not see a model that gives one answer to every question.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sonde.core.inputs import Inputs, Model
from sonde.run.changing.fact_prompts import FactFigures, FactPrompts, measure_facts
from sonde.run.changing.judge import Act
from sonde.run.changing.written_texts import (
    PlainTexts,
    WrittenTexts,
    measure_writing,
    prompts_of,
)

GOOD = 0.5
"""The least that the worst figure should be."""
PROMPTS, START = 8, 12
"""Most facts, and most neutral texts, that the model continues, and the tokens of a start."""


@dataclass(frozen=True)
class Line:
    """One figure of a changed language model.

    Parameters
    ----------
    name : str
    score : float
        In [0, 1], 1 is best; NaN if it was not measured.
    before, after : float
        The quantity behind the score; NaN if there is none.
    meaning : str
        What the score is, in words.
    """

    name: str
    score: float
    before: float
    after: float
    meaning: str


@dataclass(frozen=True)
class Efficacy:
    """How far a change did what was asked for, by the measure of its kind.

    Parameters
    ----------
    value : float
        In [-1, 1], 1 is best and 0 is none; NaN if it was not measured.
    meaning : str
        What the value is, in words.
    """

    value: float = math.nan
    meaning: str = "examples that move the requested way, against the others: 2 P - 1"


@dataclass(frozen=True)
class LanguageFigures:
    """Eight figures of a changed language model.

    Parameters
    ----------
    lines : tuple of Line
    """

    lines: tuple[Line, ...]

    @property
    def scores(self) -> dict[str, float]:
        """The measured scores by name."""
        return {line.name: line.score for line in self.lines if not math.isnan(line.score)}

    @property
    def worst(self) -> tuple[str, float]:
        """Name and score of the worst figure."""
        return min(self.scores.items(), key=lambda item: item[1])

    @property
    def is_poor(self) -> bool:
        """True if the worst figure is below 0.5."""
        return self.worst[1] < GOOD

    @property
    def verdict(self) -> str:
        """The verdict in a sentence: that of the worst figure."""
        name, value = self.worst
        quality = "poor" if self.is_poor else "good"
        missing = [line.name for line in self.lines if math.isnan(line.score)]
        unknown = f" Not measured: {', '.join(missing)}." if missing else ""
        return f"The edit is {quality}: its worst figure is {name}, {value:.2f}.{unknown}"

    def json(self) -> dict[str, Any]:
        """Return the figures as JSON values for reports."""
        return {
            "lines": [[*vars(line).values()] for line in self.lines],
            "scores": self.scores,
            "worst": self.worst[0],
            "is_poor": self.is_poor,
            "verdict": self.verdict,
        }


def writes_texts(model: Model) -> bool:
    """Return whether a model is a language model with a tokenizer that can generate."""
    is_whole = model.task == "causal" and model.processor is not None
    return is_whole and callable(getattr(model.module, "generate", None))


def measure_language(
    model: Model,
    act: Act,
    *,
    facts: FactPrompts | None = None,
    efficacy: Efficacy = Efficacy(),
    kept: float = math.nan,
    rise_nats: float = math.nan,
    plain: Mapping[str, PlainTexts] | None = None,
    neutral: Inputs | None = None,
) -> LanguageFigures:
    """Return the eight figures of a change.

    Parameters
    ----------
    model : Model
        Unchanged, with its tokenizer.
    act : callable
        Opens the changed model; see ``sonde.run.changing.acts``.
    facts : FactPrompts, optional
        New answers that the change should give.
    efficacy : Efficacy, optional
        How far a change that is not about facts did what was asked for.
    kept, rise_nats : float, default=NaN
        Figures of a ``Judgement`` on its neutral data.
    plain : mapping of str to PlainTexts, optional
        What ``plain_texts`` returns for ``neutral``; written anew by default.
    neutral : Inputs, optional
        Texts that the model continues, besides some requests.
    """
    asked = None if facts is None else measure_facts(model, act, facts)
    before = {**(plain_texts(model, neutral) if plain is None else plain)}
    if facts is not None:
        starts = [fact.prompt + fact.target for fact in facts.facts[:PROMPTS]]
        before["facts"] = PlainTexts.write(model, starts)
    wrote = {kind: measure_writing(texts, act) for kind, texts in before.items()}
    return LanguageFigures((*_target_lines(asked, efficacy, kept), *_text_lines(wrote, rise_nats)))


def plain_texts(model: Model, neutral: Inputs | None = None) -> dict[str, PlainTexts]:
    """Return what an unchanged model writes, so that several changes are judged by it.

    Parameters
    ----------
    model : Model
        Unchanged, with its tokenizer.
    neutral : Inputs, optional
        Texts that the model continues, besides some requests.
    """
    starts = {"requests": prompts_of(model), "neutral texts": _starts(model, neutral)}
    return {kind: PlainTexts.write(model, some) for kind, some in starts.items() if some}


def _target_lines(asked: FactFigures | None, efficacy: Efficacy, kept: float) -> Sequence[Line]:
    """Return the lines on what was asked for."""
    nan = math.nan
    stay = Line("specificity", kept, nan, nan, "confident next tokens of neutral texts that stay")
    if asked is None:
        did = efficacy.value if math.isnan(efficacy.value) else max(0.0, efficacy.value)
        other = Line("generality", nan, nan, nan, "other wordings of facts")
        return Line("efficacy", did, nan, nan, efficacy.meaning), other, stay
    words = f"{asked.n_wordings} other wordings do"
    if asked.n_unlike:
        words += f" ({asked.n_unlike} left out: the old model answers them unlike the prompt)"
    generality = Line("generality", asked.generality[1], *asked.generality, words)
    if not asked.n_wordings:
        generality = Line("generality", nan, nan, nan, "not asked: no other wording of a fact")
    return (
        Line("efficacy", asked.efficacy[1], *asked.efficacy, "prompts give the new answer"),
        generality,
        _specificity(asked, kept),
    )


def _specificity(asked: FactFigures, kept: float) -> Line:
    """Return the line on other subjects and neutral texts; without a subject it has no score."""
    name, nan = "specificity", math.nan
    if not asked.n_neighbours:
        texts = "" if math.isnan(kept) else f" ({kept:.3g} of confident next tokens elsewhere stay)"
        return Line(name, nan, nan, nan, f"not asked: no other subject{texts}")
    near = f"{asked.n_neighbours} other subjects keep their answer"
    if math.isnan(kept):
        return Line(name, asked.specificity, nan, nan, near)
    both = f"the smaller of: {near}, neutral texts keep theirs"
    return Line(name, min(asked.specificity, kept), nan, nan, both)


def _text_lines(wrote: Mapping[str, WrittenTexts], rise_nats: float) -> Sequence[Line]:
    """Return the lines on texts that are read and written, each of the worst kind of start."""
    nan = math.nan

    def worst(score: Callable[[WrittenTexts], float]) -> tuple[str, WrittenTexts, float]:
        scores = {kind: score(one) for kind, one in wrote.items()}
        kind = min(scores, key=lambda name: (math.isnan(scores[name]), scores[name]))
        return kind, wrote[kind], scores[kind]

    fluent, dull, fluency = worst(_fluency)
    odd, unlikely, plausibility = worst(lambda one: _ratio(one.loss[1] - one.loss[0]))
    moved, other, kept = worst(lambda one: one.kept)
    sorry, refused, refusals = worst(lambda one: 1.0 - abs(one.refusals[1] - one.refusals[0]))
    return (
        Line("other topics", kept, nan, nan, f"{_texts(other, moved)}: next tokens that stay"),
        Line("text loss", _ratio(rise_nats), nan, rise_nats, "neutral texts: perplexity ratio"),
        Line(
            "fluency",
            fluency,
            *dull.entropy,
            f"entropy of token pairs and triples, nats: {_texts(dull, fluent)}",
        ),
        Line(
            "plausibility",
            plausibility,
            *unlikely.loss,
            f"the old model's loss, nats: {_texts(unlikely, odd)}",
        ),
        Line("refusals", refusals, *refused.refusals, f"that refuse: {_texts(refused, sorry)}"),
    )


def _texts(wrote: WrittenTexts, kind: str) -> str:
    """Return which texts a figure is of, in words."""
    return f"{wrote.n} that it writes after {kind}"


def _fluency(wrote: WrittenTexts) -> float:
    """Return the entropy of what is written, over that before; at most 1."""
    before, after = wrote.entropy
    return min(1.0, after / before) if before > 0 else math.nan


def _ratio(rise_nats: float) -> float:
    """Return the old perplexity over the new one, at most 1."""
    return math.exp(-max(0.0, rise_nats)) if not math.isnan(rise_nats) else math.nan


def _starts(model: Model, neutral: Inputs | None) -> list[str]:
    """Return the first tokens of some neutral texts."""
    if neutral is None:
        return []
    starts: list[str] = []
    for batch in neutral.batches(0, min(PROMPTS, len(neutral))):
        ids, mask = batch.kwargs["input_ids"], batch.mask
        for row in range(len(ids)):
            own = ids[row] if mask is None else ids[row][mask[row].to(ids.device)]
            text = model.processor.decode(own[:START].tolist(), skip_special_tokens=True)
            starts.append(str(text))
    return [text for text in starts if text][:PROMPTS]
