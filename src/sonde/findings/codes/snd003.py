"""SND003: layers that still look randomly initialised."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

from sonde.findings.evidence.answers.answers import compared_answers
from sonde.findings.evidence.modules.fresh_weights import FreshLayers, find_fresh_layers
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.trials.answer_trials import new_head
from sonde.findings.rule import Breaks, Check, Explains, Figure, Level, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.trial import Trial
from sonde.findings.words.places import places, read_command, sentence
from sonde.findings.words.text import percent, plural

LAG = 0.1


@final
@dataclass(frozen=True)
class SND003(Rule):
    """Fraction of layers whose weights, spectrum, bias and gain look randomly initialised.

    Parameters
    ----------
    whole : float, default=0.5
        Least share of such layers at which the whole model looks untrained; that is a note.
    """

    whole: float = 0.5

    title: ClassVar[str] = "Layers that look untrained"
    theme: ClassVar[Theme] = "run"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("near chance", "untrained")
    breaks: ClassVar[Breaks] = "perhaps all answers"
    explains: ClassVar[tuple[Explains, ...]] = (Explains(("SND012", "SND037", "SND039")),)
    why: ClassVar[str] = (
        "Weights that a checkpoint lacks stay at their random initialisation, at best with a "
        "line in a log: a head that was not loaded, a block that was renamed."
    )
    fix: ClassVar[str] = (
        "Load the weights again with model.load_state_dict(state, strict=True), which lists "
        "the keys that the checkpoint lacks."
    )
    how: ClassVar[str] = (
        "Each linear layer and convolution of at least 512 weights that ran is tested. A layer "
        "is reported if all of these hold. (1) Its weights fit a common initialiser with a free "
        "scale (Kolmogorov-Smirnov, p above 0.1 %), none of its singular values exceeds those "
        "of random weights (Tracy-Widom), and its rows and columns have equal norms "
        "(chi-squared). (2) These four p-values, with two more for how the layer transmits "
        "signals between its neighbouring layers, are above 5 % when combined (Fisher). (3) Its "
        "bias is exactly zero, or distributed as torch initialises it. (4) It amplifies its "
        "inputs as much as random weights do, within 4 standard errors. Recurrent layers and "
        "fused attention projections are judged by their weights alone, and so are embeddings "
        "with a standard deviation below 0.2 (training hardly changes larger ones). Embeddings "
        "of zeros are listed first. A note if half of the layers look untrained, or if the "
        "model's own answers are as good as a probe of its last layer. Norms with weight "
        "exactly 1 and bias 0 are reported if more than half of the norms have changed in "
        "training."
    )
    false_positives: ClassVar[str] = (
        "Layers that are random on purpose, such as random features; very wide layers that "
        "training hardly moved."
    )
    plant: ClassVar[str] = "A trained net with one layer, or the head, reinitialised."
    twin: ClassVar[str] = "The trained net."

    def check(self, evidence: Evidence) -> Check:
        """List the layers that look untrained by every test."""
        layers = evidence.get(find_fresh_layers)
        if not isinstance(layers, FreshLayers) or not (layers.n or layers.norms or layers.zeros):
            return self.not_applicable("no linear layer of 512 weights or more ran")
        fresh = (*layers.tables, *layers.fresh, *layers.inner)
        share = len(fresh) / max(layers.n, 1)
        figure = Figure("untrained_layers", share, unit="share", null=0.0, threshold=self.whole)
        if layers.zeros:
            return self._of_zeros(layers)
        if not fresh and not layers.norms:
            return self.clear(figure)
        if not fresh:
            return self._of_norms(evidence, layers)
        is_whole = layers.share >= self.whole
        first = fresh[0]
        named = f"{places([f.path for f in fresh], 2)} {'looks' if len(fresh) == 1 else 'look'}"
        who = "The whole model looks" if is_whole and not _is_right(evidence) else named
        text = (
            f"{who} untrained: the weights of {first.path} are distributed like those of an "
            f"initialiser ({first.law}), and no singular value exceeds those of random weights "
            f"(the largest is {percent(first.edge)} of their upper edge)"
        )
        bias = {"zero": ", its bias is 0", "drawn": ", its bias is random too", "": ""}[first.bias]
        level: Level = "note" if is_whole or _is_right(evidence) else "warning"
        return self.raised_with(
            level,
            sentence(f"{text}{bias}.", f"{plural(layers.n, 'layer')} tested."),
            figure,
            sites=tuple(dict.fromkeys(f.module or f.path for f in fresh)),
            effect=min(1.0, share),
            next=read_command(first.module or first.path),
            trial=_new_head(evidence) if _is_head(layers) else None,
        )

    def _of_zeros(self, found: FreshLayers) -> Check:
        verb = "is" if len(found.zeros) == 1 else "are"
        text = (
            f"{places(found.zeros, 2)} {verb} zero everywhere: a lookup in such a table adds "
            "nothing to the model's states, whatever the input."
        )
        return self.raised_with(
            "warning",
            sentence(text),
            Figure("zero_tables", float(len(found.zeros)), null=0.0, threshold=0.0),
            sites=found.zeros,
            effect=0.1,
            next=read_command(found.zeros[0]),
        )

    def _of_norms(self, evidence: Evidence, found: FreshLayers) -> Check:
        share = len(found.norms) / found.n_norms
        verb = "is" if len(found.norms) == 1 else "are"
        text = (
            f"{places(found.norms, 2)} {verb} still at the initial values of a norm (weight 1, "
            f"bias 0), while the other {plural(found.n_norms - len(found.norms), 'norm')} have "
            "changed in training."
        )
        return self.raised_with(
            "note" if _is_right(evidence) else "warning",
            sentence(text),
            Figure("untrained_norms", share, unit="share", null=0.0, threshold=0.0),
            sites=found.norms,
            effect=min(1.0, share),
            next=read_command(found.norms[0]),
        )


def _new_head(evidence: Evidence) -> Trial | None:
    """Return the trial of a retrained head in place of a head with random weights."""
    trial = new_head(evidence)
    return None if trial is None else replace(trial, scope="part")


def _is_head(found: FreshLayers) -> bool:
    """Return whether only the last layer looks untrained, so that a new head can be tried."""
    paths = [f.path for f in (*found.tables, *found.fresh)]
    return paths == list(found.sizes)[-1:]


def _is_right(evidence: Evidence) -> bool:
    """Return whether the model's answers are as accurate as a probe of its last layer."""
    answers = compared_answers(evidence)
    if isinstance(answers, str) or answers.labels is None:
        return False
    return answers.accuracy > max(answers.labels.sites[-1].accuracy - LAG, answers.majority)
