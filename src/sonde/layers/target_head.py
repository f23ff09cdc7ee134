"""A classifier with given class vectors: of texts, attributes, prototypes or definitions."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from sonde.core.errors import InputError, ShapeError
from sonde.layers.layer import Layer

FLOOR = 1e-12


@final
class TargetHead(Layer):
    """Score states by their cosine to given vectors of the classes, over a temperature.

    ``cos(P h, w_c) / tau``; ``w_c`` are frozen, and another set can be given with each call, so
    that classes need not be known in training. A class with several vectors takes their maximum or
    their log-mean-exp. With ``local`` each token is scored; for each class the mean of the
    ``top_tokens`` best scores is averaged with the score of the mean token. With ``known`` classes
    a second projection is trained on them; the result is ``log p_trained^(1-a) p_given^a``,
    renormalised; ``blend`` holds ``a`` for known and for other classes.

    Cost         dim width products for each state and token, and width for each class.
    Assumes      vectors in the space of ``P h``.
    Differs      from OpenSD: the trained head is a projection to the same vectors, so that it
                 scores new classes too.

    Parameters
    ----------
    dim : int
        Width of the states.
    n_classes : int, default=2
        Random unit vectors stand in until ``of`` or a call gives others.
    width : int, optional
        Width of the given vectors; by default ``dim``.
    temperature : float, default=0.07
        Divisor of the cosines, above 0.
    project : bool, default=True
        False takes the states as they are; ``width`` is ``dim``.
    reduce : {"max", "lse"}, default="max"
        How several vectors of one class count: their maximum, or the logarithm of their mean
        exponential.
    local : bool, default=False
        Take (row, token, dim) rather than (row, dim).
    top_tokens : int, default=1
        Number of best tokens whose mean score counts with ``local``.
    known : int, default=0
        The first classes, on which a second projection is trained.
    blend : (float, float), default=(0.4, 0.8)
        Exponent of the given scores, in [0, 1], for known classes and for other classes.
    seed : int, default=0
        Seed of the initial projections.

    References
    ----------
    li2023opensd
    """

    paper: ClassVar[str] = "li2023opensd"
    variants: ClassVar[Mapping[str, str]] = {"known=2": "li2023opensd", "local=True": "mads2024"}
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"dim": 4, "n_classes": 3, "width": 5},
        {"dim": 4, "n_classes": 3, "project": False, "known": 2, "temperature": 0.5},
        {"dim": 4, "n_classes": 3, "local": True, "top_tokens": 2, "reduce": "lse"},
    )
    layout: ClassVar[tuple[str, ...]] = ("row dim",)
    insertable = False
    targets: Tensor

    def __init__(
        self,
        dim: int,
        n_classes: int = 2,
        width: int | None = None,
        temperature: float = 0.07,
        project: bool = True,
        reduce: Literal["max", "lse"] = "max",
        local: bool = False,
        top_tokens: int = 1,
        known: int = 0,
        blend: tuple[float, float] = (0.4, 0.8),
        seed: int = 0,
    ) -> None:
        super().__init__()
        wide = width or dim
        if temperature <= 0 or (not project and wide != dim) or not 0 <= known <= n_classes:
            raise InputError(
                f"TargetHead: expected a temperature above 0, known classes among {n_classes}, and "
                f"vectors as wide as the states without a projection, got {temperature}, {known} "
                f"and {wide} of {dim}."
            )
        self.dim, self.width, self.temperature = dim, wide, temperature
        self.reduce, self.local, self.top_tokens = reduce, local, top_tokens
        self.known, self.blend = known, (float(blend[0]), float(blend[1]))
        if local:
            object.__setattr__(self, "layout", ("row token dim",))
            self.symmetry = "permutation"
        drawn = torch.randn(n_classes, 1, wide, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("targets", normalize(drawn, dim=-1))
        self.project = nn.Linear(dim, wide, bias=False) if project else nn.Identity()
        self.trained = nn.Linear(dim, wide, bias=False) if known else None

    @classmethod
    def of(cls, targets: Float[Tensor, "class *vector width"], dim: int, **parameters: Any) -> Any:
        """Return a head with given vectors, one or several for each class.

        Parameters
        ----------
        targets : Float[Tensor, "class *vector width"]
        dim : int
            Width of the states.
        **parameters
            Those of the class.
        """
        new = cls(dim, len(targets), targets.shape[-1], **parameters).to(targets)
        new.targets = targets.detach().reshape(len(targets), -1, targets.shape[-1]).clone()
        return new

    def forward(
        self,
        x: Float[Tensor, "row *token dim"],
        targets: Float[Tensor, "class *vector width"] | None = None,
        mask: Bool[Tensor, "row token"] | None = None,
    ) -> Float[Tensor, "row class"]:
        """Return the logits; with ``known`` classes, log-probabilities.

        Parameters
        ----------
        x : Float[Tensor, "row *token dim"]
        targets : Float[Tensor, "class *vector width"], optional
            In place of the head's own.
        mask : Bool[Tensor, "row token"], optional
            True for real tokens.
        """
        given = self._logits(self.project(x), targets, mask)
        if self.trained is None:
            return given
        own = self._logits(self.trained(x), targets, mask)
        first, other = self.blend
        places = torch.arange(given.shape[-1], device=x.device)
        a = torch.where(places < self.known, first, other).to(x.dtype)
        return blended(own.softmax(-1), given.softmax(-1), a).clamp(min=FLOOR).log()

    def maps(
        self, x: Float[Tensor, "row token dim"], targets: Tensor | None = None
    ) -> Float[Tensor, "row token class"]:
        """Return the score of every token for every class: a class activation map."""
        return self._cosines(self.project(x), targets) / self.temperature

    def _cosines(self, h: Tensor, targets: Tensor | None) -> Tensor:
        w = (
            self.targets
            if targets is None
            else targets.reshape(len(targets), -1, targets.shape[-1])
        )
        if w.shape[-1] != self.width:
            raise ShapeError(
                f"TargetHead.forward: expected targets (class width={self.width}), got "
                f"{tuple(w.shape)}. Embed the classes with the model that embedded the "
                "training classes."
            )
        cosines = torch.einsum("...d,cvd->...cv", normalize(h, dim=-1), normalize(w, dim=-1))
        if self.reduce == "max":
            return cosines.amax(-1)
        wide = (cosines / self.temperature).logsumexp(-1) - math.log(w.shape[1])
        return wide * self.temperature

    def _logits(self, h: Tensor, targets: Tensor | None, mask: Tensor | None) -> Tensor:
        if not self.local:
            return self._cosines(h, targets) / self.temperature
        real = torch.ones(h.shape[:2], device=h.device) if mask is None else mask
        share = real.to(h).unsqueeze(-1) / real.to(h).sum(1).reshape(-1, 1, 1)
        whole = self._cosines((share * h).sum(1), targets)
        least = int((share > 0).sum(1).min()) if len(h) else self.top_tokens
        if least < self.top_tokens:
            raise InputError(
                f"TargetHead.forward: expected {self.top_tokens} real tokens in a row, got {least}."
            )
        each = self._cosines(h, targets).masked_fill(share == 0, -torch.inf)
        best = each.topk(self.top_tokens, dim=1).values
        return (whole + best.mean(1)) / (2.0 * self.temperature)


def blended(
    first: Float[Tensor, "*axes class"], second: Float[Tensor, "*axes class"], a: Tensor | float
) -> Float[Tensor, "*axes class"]:
    """Return the geometric mixture ``first^(1-a) second^a`` of probabilities, renormalised.

    Examples
    --------
    >>> mixed = blended(torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.2, 0.2, 0.6]), 0.4)
    >>> mixed.double().round(decimals=4).tolist()
    [0.4568, 0.3013, 0.2419]
    """
    mixed = first.clamp(min=FLOOR) ** (1.0 - a) * second.clamp(min=FLOOR) ** a
    return mixed / mixed.sum(-1, keepdim=True)
