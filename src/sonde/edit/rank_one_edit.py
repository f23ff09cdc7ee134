"""Write a single fact exactly into the weights of one layer.

For several facts at once see ``BatchEdit``: edits of rank one drift after hundreds of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from jaxtyping import Float
from torch import Tensor

from sonde.core.inputs import Model
from sonde.edit._facts import PREFIXES, Fact, Search
from sonde.edit._writing import Writing, linear_paths
from sonde.edit.second_moment import SecondMoment
from sonde.weights import AtSites, Rewrite, RewritePlan


@final
@dataclass(frozen=True, eq=False)
class RankOneEdit(Rewrite):
    """Least change of a layer's weights that makes a model give a new answer (ROME).

    A search finds a shift ``d`` of the layer's output at the subject's last token that makes the
    answer likely. With ``k`` the layer's input there (mean over ``prefixes``) and ``C`` the second
    moment of its inputs on plain text, ``W' = W + d (C^-1 k)^T / (k^T C^-1 k)``: of all weights
    with ``W' k = W k + d`` these move the outputs on plain text least. Inputs that are orthogonal
    to ``k`` in the metric of ``C^-1`` keep their outputs.

    Cost         ``steps`` forwards and backwards of the prompts; O(dim^3).
    Assumes      a causal language model; the MLP's last linear layer (``layers.3.mlp.down_proj``).
    Differs      from the paper: prefixes are given, not sampled from the model; one ``k`` is used
                 throughout.

    Parameters
    ----------
    fact : Fact
        Fact to write.
    layer : str
        Linear layer to change.
    kept : sequence of Fact, default=()
        Facts written before: what the layer gives for them stays.
    prefixes : sequence of str
        Texts that are put before the prompt.
    steps : int, float, float, float
        Number of steps of the search for the new value.
    rate : int, float, float, float
        Learning rate of the search for the new value.
    divergence : int, float, float, float
        Weight, in the search, of the divergence from the old answers to other prompts.
    decay : int, float, float, float
        Weight, in the search, of the squared length of the shift.
    largest : float, default=4.0
        Longest shift, in lengths of the layer's output.
    shift : Float[Tensor, "dim"] or None, default=None
        A shift that was found before, instead of a search.

    References
    ----------
    meng2022rome
    """

    fact: Fact
    layer: str
    kept: Sequence[Fact] = ()
    prefixes: Sequence[str] = PREFIXES
    steps: int = 25
    rate: float = 0.5
    divergence: float = 0.0625
    decay: float = 0.01
    largest: float = 4.0
    shift: Float[Tensor, "dim"] | None = None

    def reads(self) -> dict[str, SecondMoment]:
        """Read the second moment of the layer's input."""
        return {"moment": SecondMoment()}

    def planned(self, model: Model, moment: AtSites) -> RewritePlan:
        """Return the change of the layer's weight.

        Raises
        ------
        InputError
            If the layer is not linear, or nothing was fitted at its input.
        StateError
            If the second moment is singular.
        """
        resolved, paths = linear_paths("RankOneEdit", model, [self.layer])
        search = Search(self.steps, self.rate, self.divergence, self.decay, self.largest)
        word = f"RankOneEdit({self.fact.prompt!r} -> {self.fact.target!r})"
        shift = None if self.shift is None else self.shift[None]
        writing = Writing(
            resolved, (self.fact,), self.kept, paths, paths[0], "equal", 0.0, self.prefixes
        )
        return writing.plan(word, moment, search, shift)
