"""SND010: parts of a model that never run."""

from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings.evidence.modules.module_facts import ModelEvidence, read_modules
from sonde.findings.evidence.modules.unused_modules import Unused
from sonde.findings.evidence.record import Evidence
from sonde.findings.rule import Breaks, Check, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import places, scan_command, sentence
from sonde.findings.words.text import percent, plural


@final
@dataclass(frozen=True)
class SND010(Rule):
    """Modules whose parameters took no part in any forward pass.

    Parameters
    ----------
    warning : float, default=0.01
        Share of the model's parameters.
    tokens_per_expert : int, default=1000
        An expert without a token counts only if this many tokens for each expert were run.
    """

    warning: float = 0.01
    tokens_per_expert: int = 1000
    title: ClassVar[str] = "Parts that never run"
    theme: ClassVar[Theme] = "run"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("useless block", "untrained")
    breaks: ClassVar[Breaks] = "some answers"
    why: ClassVar[str] = (
        "Weights that no answer depends on cost memory, or a branch is wired wrongly."
    )
    fix: ClassVar[str] = "Call these modules in forward, or delete them."
    how: ClassVar[str] = (
        "In one forward pass on a few rows, the operands of every operation are compared with "
        "the memory of the parameters, so weights that a function uses and tied weights count "
        "as used. Any other weight counts as used if its module is called in this forward pass, "
        "in another one of the self-check, or while the data are read (calls are not observed "
        "with --workers). Unused linear layers at the end of a module that holds most of the "
        "weights are taken for the head of an earlier task: a note."
    )
    false_positives: ClassVar[str] = (
        "Branches for other kinds of input. Heads and poolers near the top that this task does "
        "not use are left out."
    )
    plant: ClassVar[str] = "A branch that forward does not call."
    twin: ClassVar[str] = (
        "An output layer tied to the embedding; the output projection of an attention layer."
    )

    watches_modules: ClassVar[bool] = True

    def check(self, evidence: Evidence) -> Check:
        """Add up the parameters of unused modules."""
        model = evidence.get(read_modules)
        if not isinstance(model, ModelEvidence):
            return self.not_applicable("no model was run")
        if not model.n_parameters or model.silent is None:
            return self.not_applicable("the model has no parameters, or no row could be run")
        idle = model.never_ran + self._starved(model)
        count = sum(u.n_parameters for u in idle)
        share = count / model.n_parameters
        figure = Figure(
            "unused_parameters", share, unit="share",
            threshold=self.warning if share >= self.warning else 0.0,
            n_rows=model.self_check.n_rows,
        )  # fmt: skip
        if not idle:
            return self.clear(figure)
        lost = sum(u.n_parameters for u in model.never_ran if not u.is_old_head)
        level = "warning" if lost >= self.warning * model.n_parameters and lost else "note"
        names = [u.path for u in idle]
        verb = "takes" if len(names) == 1 else "take"
        text = (
            f"{places(names)} {verb} no part in a forward pass: {count:,} of "
            f"{plural(model.n_parameters, 'parameter')} ({percent(share)} of the model)."
        )
        return self.raised_with(
            level=level,
            sentence=sentence(
                text,
                _of_heads(idle),
                f"{plural(model.silent.n_forwards, 'forward pass', 'forward passes')} observed.",
            ),
            figure=figure,
            sites=tuple(names),
            effect=min(1.0, share),
            next=scan_command(deep=True),
        )

    def _starved(self, model: ModelEvidence) -> list[Unused]:
        n_tokens = model.self_check.n_tokens
        return model.experts if n_tokens >= self.tokens_per_expert * max(1, model.n_experts) else []


def _of_heads(idle: list[Unused]) -> str:
    """Return a sentence if the unused part is the head of an earlier task."""
    names = [u.path for u in idle if u.is_old_head]
    return f"{places(names, 1)} is the head of an earlier task." if names else ""
