"""The rewritten form of texts that gives a language model its lowest loss."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from sonde.findings.evidence.once import once
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.texts.text_forms import text_forms
from sonde.findings.evidence.texts.text_variants import text_variant_evidence
from sonde.findings.trial import Trial


@dataclass(frozen=True, eq=False)
class BestText:
    """Nats per token of unchanged texts and of the form that was chosen on other texts.

    Parameters
    ----------
    words : str
    given, loss : Float[Tensor, "text"]
        Of the texts that did not choose the form.
    n_tried : int
        How many forms were tried.
    trial : Trial
    """

    words: str
    given: Float[Tensor, "text"]
    loss: Float[Tensor, "text"]
    n_tried: int
    trial: Trial

    @property
    def ratio(self) -> float:
        """Mean loss in this form, divided by the mean loss of the texts as given."""
        return float(self.loss.mean() / self.given.mean())


@once
def best_text(evidence: Evidence) -> BestText | None:
    """Return the form with the smallest loss ratio, or None if no form was tried."""
    every = (evidence.get(text_variant_evidence), evidence.get(text_forms))
    texts = [x for x in every if x is not None]
    tried = [(words, x, loss) for x in texts for words, loss in x.losses.items()
             if bool(x.chooses.any()) and not bool(x.chooses.all())]  # fmt: skip
    if not tried:
        return None
    words, x, loss = min(tried, key=lambda t: float(t[2][t[1].chooses].mean()
                                                    / t[1].given[t[1].chooses].mean()))  # fmt: skip
    judge = ~x.chooses
    given, after = x.given[judge], loss[judge]
    trial = Trial(f"the texts rewritten {words}", "inputs", "loss", x.rows[judge], -given, -after)
    return BestText(words, given, after, len(tried), trial)
