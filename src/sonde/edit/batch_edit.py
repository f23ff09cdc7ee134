"""Write many facts at once into the weights of a few layers.

For a single fact at a single layer see ``RankOneEdit``. The answer can be changed at many layers:
an edit that works at a layer does not show that the layer held the fact.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.edit._facts import PREFIXES, Fact, Search
from sonde.edit._writing import How, Writing, block_around, linear_paths
from sonde.edit.null_space import NullSpace
from sonde.edit.second_moment import SecondMoment
from sonde.weights import AtSites, Rewrite, RewritePlan


@final
@dataclass(frozen=True, eq=False)
class BatchEdit(Rewrite):
    """Least change of some layers' weights that makes a model give new answers.

    For each fact a search finds a shift of the state at the subject's last token that makes the
    answer likely. The layer's inputs ``K`` at this token (means over ``prefixes``) then get new
    outputs, ``W' K = W K + R``:

    - ``least_squares`` minimises ``|D K - R|^2 + w tr(D C D^T)`` over ``D = W' - W``, with ``C``
      the second moment of the layer's inputs on plain text (MEMIT);
    - ``equal`` minimises ``tr(D C D^T)`` under ``D K = R``;
    - ``null_space`` minimises ``|D K - R|^2 + |D|^2`` among the ``D`` that leave the protected
      inputs' outputs alone (AlphaEdit).

    If there are several layers, each takes an equal share of the change that is still missing.

    Cost         ``steps`` forwards and backwards of the prompts; O(dim^3) for each layer, for
                 ``null_space`` O(dim free facts).
    Assumes      a causal language model; layers that add to a residual stream, the MLP's last
                 linear layer (``layers.3.mlp.down_proj``); no two facts on one subject and prompt.
    Differs      from the papers: ``weight`` counts in widths of the layer's input, so that it means
                 the same for small models (15,000 at width 16,384 is 0.92); prefixes are given, not
                 sampled from the model.

    Parameters
    ----------
    facts : sequence of Fact
        Facts to write.
    layers : sequence of str
        Linear layers to change, in order of execution.
    how : {"least_squares", "equal", "null_space"}, default="least_squares"
        Which change of the weights is taken: the least squares of MEMIT, the least change with
        exact answers (``equal``), or the change that leaves protected inputs alone
        (``null_space``).
    kept : sequence of Fact, default=()
        Facts written before: what the layer gives for them must stay.
    weight : float, default=0.92
        Weight ``w`` of all other text, divided by the width of the layer's input.
    prefixes : sequence of str
        Texts that are put before the prompts.
    steps : int, default=25
        Steps of the search.
    rate : float, default=0.5
        Step size of the search.
    divergence : float, default=0.0625
        Weight of the change in what else the model says of the subject, as a KL divergence.
    decay : float, default=0.01
        Weight of the squared length of the shift.
    largest : float, default=0.75
        Longest shift, in lengths of the state of the block.
    shifts : Float[Tensor, "fact dim"] or None, default=None
        Shifts that were found before, instead of a search.

    References
    ----------
    meng2023memit, gupta2024emmet, fang2025alphaedit
    """

    facts: Sequence[Fact]
    layers: Sequence[str]
    how: How = "least_squares"
    kept: Sequence[Fact] = ()
    weight: float = 0.92
    prefixes: Sequence[str] = PREFIXES
    steps: int = 25
    rate: float = 0.5
    divergence: float = 0.0625
    decay: float = 0.01
    largest: float = 0.75
    shifts: Float[Tensor, "fact dim"] | None = None

    def __post_init__(self) -> None:
        if not self.facts or not self.layers or not self.prefixes:
            raise InputError(
                f"BatchEdit: expected facts, layers and prefixes, got {len(self.facts)}, "
                f"{len(self.layers)} and {len(self.prefixes)}."
            )
        asked = [(fact.prompt, fact.subject) for fact in [*self.facts, *self.kept]]
        if len(set(asked)) < len(asked):
            twice = next(prompt for prompt, _ in asked if sum(p == prompt for p, _ in asked) > 1)
            raise InputError(
                f"BatchEdit: expected each prompt once, got {twice!r} twice. Give this prompt a "
                "single answer, and leave it out of kept."
            )

    def reads(self) -> dict[str, SecondMoment | NullSpace]:
        """Read the second moment, or the null space, of each layer's input."""
        return {"moments": NullSpace() if self.how == "null_space" else SecondMoment()}

    def planned(self, model: Model, moments: AtSites) -> RewritePlan:
        """Return the changes of the layers' weights.

        Raises
        ------
        InputError
            If a layer is not linear, or nothing was fitted at its input.
        StateError
            If the second moment is singular, or no direction is free.
        """
        resolved, paths = linear_paths("BatchEdit", model, self.layers)
        place = block_around(resolved.module, paths[-1])
        search = Search(self.steps, self.rate, self.divergence, self.decay, self.largest)
        word = f"BatchEdit({len(self.facts)} facts, how={self.how!r}, weight={self.weight})"
        writing = Writing(
            resolved, self.facts, self.kept, paths, place, self.how, self.weight, self.prefixes
        )
        return writing.plan(word, moments, search, self.shifts)
