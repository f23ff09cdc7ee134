"""SND068: a small change to one part of the model that restores its answers."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings.codes._effects import OF_PARTS
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.texts.lens import measure_lens
from sonde.findings.evidence.trials.part_trials import FINE, PartTrials, part_trials
from sonde.findings.rule import Breaks, Check, Explains, Figure, Location, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import read_command, sentence
from sonde.findings.words.text import number, percent, plural


@final
@dataclass(frozen=True)
class SND068(Rule):
    """Reduction of the loss if one part of the model is changed in a trial.

    Parameters
    ----------
    share, tokens : float
        Least fall, as a share of the loss with the best temperature: in general, and for a language
        model.
    right : float, default=0.02
        Least gain of a classifier's accuracy.
    level : float, default=0.001
        Of the signed rank test of the loss on rows that did not choose the change; half of it of
        the sign test of their answers.
    steep, steep_level : float
        Where the loss of a regression falls by this share, the level: chance rarely does as much.
    family : float, default=0.05
        Level over all changes tried, for a change that is tried first because of the weights or of
        the model's kind.
    slight : float, default=0.1
        Gain of a regression's R^2 below which the finding is a note.
    chance : float, default=0.05
        p-value of the sign test of a classifier's answers from which the finding is a note.
    """

    share: float = 0.1
    tokens: float = 0.05
    right: float = 0.02
    level: float = 0.001
    steep: float = 0.5
    steep_level: float = 0.01
    family: float = 0.05
    slight: float = 0.1
    chance: float = 0.05

    title: ClassVar[str] = "A small change to one part of the model restores its answers"
    theme: ClassVar[Theme] = "run"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("near chance", "untrained")
    breaks: ClassVar[Breaks] = "all answers"
    before_constants: ClassVar[bool] = True
    explains: ClassVar[tuple[Explains, ...]] = (Explains(OF_PARTS),)
    why: ClassVar[str] = (
        "A missing factor, an activation or a norm of another model, or two exchanged layers: "
        "shapes and names fit and no error appears, but answers are worse than they could be."
    )
    fix: ClassVar[str] = "Make the change that the finding names, in the code or in the checkpoint."
    how: ClassVar[str] = (
        "Tested if a classifier is less accurate than a probe of its layers or wrong on a tenth "
        "of the rows (with less than 200,000 weights: on 3 %), if a regression has larger "
        "errors than such a probe (with less than 200,000 weights: R^2 below 0.97), and always "
        "for language models, within the budget of trials "
        "(a few times the cost of one forward pass over the data; --deep removes the limit). Up "
        "to 256 rows (768 for a model of less than 200,000 weights), or 32 texts of 32 to 128 "
        "tokens: on half of them parts of blocks are left out, weakened, amplified or inverted, "
        "and activations, the eps of norms, the base and layout of rotated positions, the order of "
        "blocks and layers of one shape are exchanged; in single modules, weights of two modules "
        "of one shape are exchanged, square weights transposed, weights rescaled, gates of "
        "recurrent layers reordered, inputs added to outputs, stored means and standard "
        "deviations replaced by those of the rows, and the flags and options that a module's "
        "code reads get their other values. The best change is judged on the other "
        "half: its loss must be a tenth (of tokens a twentieth) below that of the model at its "
        "best temperature (signed ranks, 0.1 %; for another pooling, and for an order of blocks "
        "that the weights suggest, 5 % over the number of changes tried if that is more; 1 % where "
        "the loss of a regression falls by half; or a "
        "sign test of answers that become correct, 0.05 %), and a classifier's accuracy must "
        "rise by 2 percentage points; a gain of R^2 below 0.1, and one of so few answers that it "
        "may be chance (sign test, 5 %), are notes. A language model with the "
        "change must still not see later tokens, and must beat the tokens' frequencies."
    )
    false_positives: ClassVar[str] = (
        "A small model with too little training can gain from a weaker block."
    )
    plant: ClassVar[str] = "One block's update three times too strong."
    twin: ClassVar[str] = "The trained model without that change."

    def check(self, evidence: Evidence) -> Check:
        """Search for a change that restores the answers."""
        trials = evidence.get(part_trials)
        if isinstance(trials, str) and trials in FINE:
            return self.clear(Figure("loss_fall", 0.0, unit="share"), trials)
        if not isinstance(trials, PartTrials):
            return self.not_applicable(trials or "no model was run")
        before, after, n = (
            float(trials.given.mean()),
            float(trials.changed.mean()),
            len(trials.given),
        )
        least = self.tokens if trials.of_tokens else self.share
        figure = Figure(
            "loss_fall", 1 - after / before if before > 0 else 0.0, unit="share", null=0.0,
            threshold=least, p=trials.p, n_rows=n, n_groups=n,
        )  # fmt: skip
        gained = math.isnan(trials.right) or trials.mended - trials.right >= self.right
        lens = evidence.get(measure_lens)
        if trials.of_tokens and lens is not None:
            gained = after < lens.unigram
        trial = trials.trial
        answers = trial is not None and trial.measure == "accuracy" and trial.p < self.level / 2
        level = self.level
        if trials.change is not None and trials.change.alone:  # one of few that come first
            level = max(level, self.family / max(trials.n_tried, 1))
        if figure.value >= self.steep and math.isnan(trials.right) and not trials.of_tokens:
            level = max(level, self.steep_level)
        is_sure = trials.p < level or answers
        if trials.change is None or figure.value < least or not is_sure or not gained:
            return self.clear(
                figure, f"none of {plural(trials.n_tried, 'change')} restores the answers"
            )
        change = trials.change
        if math.isnan(trials.right):
            words = f"{number(after, 3)} {trials.unit} instead of {number(trials.own, 3)}"
            text = f"With {change.words}, the model's loss is {words}"
        else:
            words = f"correct on {percent(trials.mended)} instead of {percent(trials.right)}"
            text = f"With {change.words}, the model is {words}"
        rows = plural(n, "text" if trials.of_tokens else "row")
        rest = f"({rows} held out from the choice, of {trials.n_tried} changes tried)."
        path = change.paths[0]
        is_slight = trial is not None and (
            (trial.measure == "error" and trial.gain < self.slight)
            or (trial.measure == "accuracy" and trial.p >= self.chance)
        )
        return self.raised_with(
            "note" if is_slight else "warning",
            sentence(f"{text} {rest}"),
            figure,
            sites=(path,) if path != "logits" else (),
            location=Location(modules=change.paths) if path != "logits" else Location(answers=True),
            effect=min(1.0, figure.value),
            next=read_command(path) if path != "logits" else None,
            fix=f"{change.line}: {words}.",
            trial=trials.trial,
        )
