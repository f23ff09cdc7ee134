"""The rewritten form of texts in which a language model does best."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from sonde.findings._once import once
from sonde.findings.evidence import Evidence


@dataclass(frozen=True, eq=False)
class BestText:
    """Nats per token of texts as they are given, and in a rewritten form.

    Parameters
    ----------
    words : str
    given, loss : Float[Tensor, "text"]
    n_tried : int
        How many forms were tried.
    """

    words: str
    given: Float[Tensor, "text"]
    loss: Float[Tensor, "text"]
    n_tried: int

    @property
    def ratio(self) -> float:
        """Mean loss in this form, divided by the mean loss of the texts as given."""
        return float(self.loss.mean() / self.given.mean())


@once
def best_text(evidence: Evidence) -> BestText | None:
    """Return the form with the smallest loss ratio, or None if no form was tried."""
    known = [x for x in (evidence.texts, evidence.forms) if x is not None]
    tried = [(words, x.given, loss) for x in known for words, loss in x.losses.items()]
    forms = [BestText(*one, len(tried)) for one in tried]
    return min(forms, key=lambda form: form.ratio, default=None)
