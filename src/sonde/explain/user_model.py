"""A model of what a user already understands, for explanations that go on in turns.

The turns are yours: show a user the fault lines of an example (``FaultLines``), ask what the model
will answer, and tell this model what was heard and what was shown.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sonde.core.errors import InputError, ShapeError
from sonde.core.ranges import check_ranges


@final
@dataclass(frozen=True)
class UserModel:
    """Probability that a user understands each concept, by Bayes from what the user answers.

    A user who understands all concepts of an explanation foresees the model's answer, but for
    slips; any other user guesses. A concept that is shown is learned with some probability.
    ``choose`` names the example whose explanation raises the expected number of foreseen answers
    the most: the machine's side of a dialogue with a theory of mind.

    Range        probabilities in [0, 1].
    Cost         O(rows^2 concepts) for a choice.
    Assumes      concepts that are understood independently of each other; nothing is forgotten.
    Differs      from the paper: beliefs on concepts in place of a graph of parts; the choice is
                 one turn ahead, and not learned.

    Parameters
    ----------
    known : Float[Tensor, "concept"]
        Probability that the user understands each concept.
    learn : float, default=0.5
        Probability that a concept is learned when it is shown.
    slip : float, default=0.1
        Probability of a wrong answer by a user who understands.
    guess : float, default=0.2
        Probability of a right answer by a user who does not.

    Examples
    --------
    >>> user = UserModel(torch.tensor([0.5, 0.5]))
    >>> both = torch.tensor([True, True])
    >>> user.heard(both, correct=True).known.tolist()
    [0.7333333492279053, 0.7333333492279053]
    >>> user.shown(both).known.tolist()
    [0.75, 0.75]

    References
    ----------
    akula2022cxtom
    """

    known: Float[Tensor, "concept"]
    learn: float = 0.5
    slip: float = 0.1
    guess: float = 0.2
    paper: ClassVar[str] = "akula2022cxtom"

    def __post_init__(self) -> None:
        check_ranges(self, learn="[0, 1]", slip="[0, 1]", guess="[0, 1]")
        if not bool(((self.known >= 0) & (self.known <= 1)).all()):
            raise InputError(
                "UserModel: expected probabilities in [0, 1] for each concept, got "
                f"{float(self.known.min()):.3g} to {float(self.known.max()):.3g}."
            )

    def foresees(self, needed: Any) -> Float[Tensor, "row"]:
        """Return the probability that the user understands all concepts that each row needs.

        Parameters
        ----------
        needed : Tensor (row, concept)
            Which concepts explain the row: not zero, as ``FaultLinesResult.change``.
        """
        asked = self._checked(needed)
        return torch.where(asked, self.known, 1.0).prod(-1)

    def heard(self, needed: Any, correct: bool) -> "UserModel":
        """Return the model after an answer to an example that needs some concepts.

        Parameters
        ----------
        needed : Tensor (concept,)
        correct : bool
            Whether the user foresaw the answer.
        """
        asked = self._checked(needed)
        likely = 1 - self.slip if correct else self.slip
        unlikely = self.guess if correct else 1 - self.guess
        probability = torch.where(asked, self.known, 1.0)
        n = len(probability)
        own = torch.eye(n, dtype=torch.bool, device=probability.device)
        others = probability.expand(n, n).masked_fill(own, 1.0).prod(1)
        both = self.known * (likely * others + unlikely * (1 - others))
        whole = both + (1 - self.known) * unlikely
        posterior = torch.where(whole > 0, both / whole.clamp(min=1e-12), self.known)
        return replace(self, known=torch.where(asked, posterior, self.known).clamp(0, 1))

    def shown(self, needed: Any) -> "UserModel":
        """Return the model after some concepts were explained.

        Parameters
        ----------
        needed : Tensor (concept,)
        """
        asked = self._checked(needed)
        learned = self.known + self.learn * (1 - self.known)
        return replace(self, known=torch.where(asked, learned, self.known))

    def choose(self, needed: Any, allowed: Bool[Tensor, "row"] | None = None) -> int:
        """Return the row whose explanation raises the expected number of foreseen rows the most.

        Parameters
        ----------
        needed : Tensor (row, concept)
        allowed : Bool[Tensor, "row"], optional
            Rows that may be shown; by default all.

        Raises
        ------
        InputError
            If no row may be shown.
        """
        asked = self._checked(needed)
        rows = range(len(asked)) if allowed is None else allowed.nonzero().flatten().tolist()
        if not rows:
            raise InputError("UserModel.choose: expected a row that may be shown, got none.")
        gains = [float(self.shown(asked[row]).foresees(asked).sum()) for row in rows]
        return int(rows[max(range(len(gains)), key=gains.__getitem__)])

    def _checked(self, needed: Any) -> Bool[Tensor, "..."]:
        asked = torch.as_tensor(needed) != 0
        if asked.shape[-1] != len(self.known):
            raise ShapeError(
                f"UserModel: expected {len(self.known)} concepts, got {asked.shape[-1]}."
            )
        return asked
