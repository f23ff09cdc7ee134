"""Predict several next tokens from one state, as an auxiliary task.

For models of sequences: states that have to say what comes later look further ahead, and what they
say is a draft that the model itself can check in one pass.
"""

from typing import ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, silu

from sonde.core.autocast import in_float32
from sonde.core.errors import InputError, ShapeError
from sonde.core.ranges import check_ranges
from sonde.engine.steps import seeded


@final
class NextTokens(nn.Module):
    """Cross entropy of later tokens, each predicted by its own map of the state.

    Formula: ``CE(head(h_t + A_k silu(h_t)), token_{t+k})`` for ``k = first, .., first + n - 1``,
    mean over the positions of a row that have such a token, over the rows that have one, then over
    ``k``. The maps ``A_k`` start at zero: at first each reads what the head reads of the state.

    Range        [0, inf), nats; lower = later tokens said better.
    Cost         n products of dim^2 and n of the head for each position.
    Assumes      a causal model: a state that sees later tokens copies them. At the site that the
                 model's head reads, ``head`` says its next token, and ``first=1, n=1`` is the
                 model's own loss.
    Differs      from the paper: a head is a map of one hidden layer, not a block of a transformer.
    Batching     mean, given rows with as many tokens.

    Parameters
    ----------
    dim : int
        Width of the site.
    n : int, default=3
        How many tokens ahead are said.
    first : int, default=2
        Distance of the first; 1 is the token that the model says itself.
    classes : int, optional
        Size of the vocabulary, for a linear head that is learned here.
    head : nn.Module, optional
        In its place the model's own head, from (row, pos, dim) to (row, pos, classes). Its weights
        are trained with the model, not here.
    seed : int, default=0
        Seed of the initial weights of a head that is learned here.

    References
    ----------
    gloeckle2024multitoken
    """

    paper: ClassVar[str] = "gloeckle2024multitoken"
    batching: ClassVar[str] = "mean"
    reducer: ClassVar[None] = None  # states with their positions
    examples: ClassVar[tuple[dict, ...]] = (
        {"dim": 4, "classes": 3, "n": 2},
        {"dim": 4, "classes": 3, "n": 1, "first": 1},
    )

    def __init__(
        self,
        dim: int,
        n: int = 3,
        first: int = 2,
        classes: int | None = None,
        head: nn.Module | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.dim, self.n, self.first, self.classes = dim, n, first, classes
        self.seed = seed
        check_ranges(self, dim=">= 1", n=">= 1", first=">= 1", classes=">= 1")
        if (head is None) == (classes is None):
            raise InputError(
                "NextTokens: expected either classes (the size of the vocabulary) or head (the "
                "head of the model), got both or neither. Pass one of them."
            )
        self.maps = nn.Parameter(torch.zeros(n, dim, dim))
        self.own: nn.Linear | None = None
        if classes is not None:
            with seeded(seed):
                self.own = nn.Linear(dim, classes, bias=False)
        self._head = (head,)  # not registered: its weights are the model's

    @in_float32
    def forward(
        self,
        x: Float[Tensor, "*axes dim"],
        token: Int[Tensor, "*axes"],
        real: Bool[Tensor, "row pos"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the mean cross entropy of later tokens; 0 if no row has later tokens.

        Parameters
        ----------
        x : Float[Tensor, "row pos dim"]
        token : Int[Tensor, "row pos"]
            The tokens that the model read. One below 0, as labels have it, is not asked for.
        real : Bool[Tensor, "row pos"], optional
            False where padding.
        """
        if x.ndim != 3 or x.shape[2] != self.dim or token.shape != x.shape[:2]:
            raise ShapeError(
                f"NextTokens: expected states (row, pos, {self.dim}) and a token for each, got "
                f"{tuple(x.shape)} and {tuple(token.shape)}. Read the site with reducer=None."
            )
        asked = token >= 0 if real is None else (token >= 0) & real.to(token.device)
        source = torch.ones_like(asked) if real is None else real.to(token.device)
        values = [self._one(k, x, token, source, asked) for k in range(self.n)]
        return torch.stack(values).mean()

    def ahead(self, x: Float[Tensor, "row pos dim"]) -> Float[Tensor, "row pos n classes"]:
        """Return the logits of the tokens at distances ``first``, ``first + 1``, ... of each state.

        The largest of them are a draft of what the model says after its own next token.
        """
        return torch.stack([self._said(k, x) for k in range(self.n)], 2)

    def _said(self, k: int, x: Tensor) -> Tensor:
        state = x + silu(x) @ self.maps[k].T
        (head,) = self._head
        if head is None:
            assert self.own is not None
            return self.own(state)
        like = next(head.parameters(), state)
        return head(state.to(like.dtype)).to(state.dtype)

    def _one(self, k: int, x: Tensor, token: Tensor, source: Tensor, asked: Tensor) -> Tensor:
        """Return the cross entropy of the tokens at one distance."""
        apart = min(self.first + k, x.shape[1])
        pairs = source[:, : x.shape[1] - apart] & asked[:, apart:]
        row, place = pairs.nonzero(as_tuple=True)
        logits = self._said(k, x[row, place])
        if not len(row):
            return 0.0 * (logits.sum() + self.maps[k].sum())
        each = cross_entropy(logits, token[row, place + apart], reduction="none")
        count = pairs.sum(1)
        return (each / count[row]).sum() / (count > 0).sum()
