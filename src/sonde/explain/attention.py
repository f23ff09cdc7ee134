"""Maps over tokens from attention probabilities: of one layer, of all layers, or times gradients.

``RawAttention`` and ``AttentionRollout`` ignore how the model uses a token that it looks at, and
cannot say that a token speaks against the answer; ``AttentionTimesGradient`` can. The model runs on
the probabilities that are read: its attention kernel must not hide them.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import interpolate

from sonde.core.errors import InputError, SiteError
from sonde.explain.attribution import Attributor, Parts
from sonde.explain.objective import FixedObjective
from sonde.tap.attention.opening import watch_attention
from sonde.tap.attention.places import attentions_at
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.hooks.port_view import PortView
from sonde.tap.streams.site_function import SiteFunction

Looks = Float[Tensor, "row query key"]


class AttentionGradient(NamedTuple):
    """Probabilities of one attention layer, and the gradient of the objective at these."""

    probs: Float[Tensor, "row head query key"]
    slope: Float[Tensor, "row head query key"]


class AttentionLayers(NamedTuple):
    """All attention layers in execution order, and the positions from which the answer is read.

    ``read`` holds for each example equal weights at the positions whose last attention reaches the
    objective: the last token, the class token, or all. ``real`` says which tokens are no padding.
    """

    each: list[AttentionGradient]
    read: Float[Tensor, "row query"]
    real: Bool[Tensor, "row key"]


@dataclass(frozen=True)
class AttentionMap(Attributor):
    """A map over tokens from attention layers; for an image, upsampled to its pixels.

    The tokens after the special tokens are laid over a picture as a grid of its proportions.
    """

    @property
    def signed(self) -> bool:
        """False: attention is the same for evidence for and against the answer."""
        return False

    def _parts(self, function: SiteFunction, objective: FixedObjective) -> Parts:
        layers, is_reached = _read(function, objective)
        return Parts(_over_places(self._map(layers), function), is_reached=is_reached)

    @abstractmethod
    def _map(self, layers: AttentionLayers) -> Float[Tensor, "row token"]:
        """Return one number for each token."""


@final
@dataclass(frozen=True)
class RawAttention(AttentionMap):
    """Attention from the answering position to each token in one layer, averaged over heads.

    Range        [0, 1], a share; unsigned. Adds up to 1 over tokens.
    Cost         one forward and backward, to find the position that answers.
    Assumes      self-attention over one sequence; says nothing of values and later layers.

    Parameters
    ----------
    layer : int, default=-1
        Counted in the order in which attentions run.

    References
    ----------
    bahdanau2015attention
    """

    layer: int = -1
    paper: ClassVar[str] = "bahdanau2015attention"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"layer": 0})

    def _map(self, layers: AttentionLayers) -> Float[Tensor, "row token"]:
        probs = _layer(layers, self.layer).probs.mean(1)
        return torch.einsum("nq,nqk->nk", layers.read, probs)


@final
@dataclass(frozen=True)
class AttentionRollout(AttentionMap):
    """Attention traced back from the answering position through all layers.

    ``A = (1 - residual) heads(probs) + residual I``, rows scaled to 1; the product from the first
    to the last layer.

    Range        [0, 1], a share; unsigned. Adds up to 1 over tokens.
    Cost         one forward and backward, to find the position that answers.
    Assumes      self-attention over one sequence; mass that moves unchanged between layers.

    Parameters
    ----------
    residual : float, default=0.5
        Share of what a position keeps of itself.
    heads : {"mean", "max", "min"}, default="mean"
        How the heads of a layer become one.
    discard : float, default=0.0
        Share of the smallest entries of each layer that are set to 0.

    References
    ----------
    abnar2020rollout
    """

    residual: float = 0.5
    heads: Literal["mean", "max", "min"] = "mean"
    discard: float = 0.0
    paper: ClassVar[str] = "abnar2020rollout"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"heads": "max", "discard": 0.5})

    def __post_init__(self) -> None:
        is_share = 0.0 <= self.residual <= 1.0 and 0.0 <= self.discard < 1.0
        if not is_share or self.heads not in ("mean", "max", "min"):
            raise InputError(
                "AttentionRollout: expected residual in [0, 1], discard in [0, 1) and heads mean, "
                f"max or min, got {self.residual}, {self.discard} and {self.heads!r}."
            )

    def _map(self, layers: AttentionLayers) -> Float[Tensor, "row token"]:
        mass = layers.read.unsqueeze(1)
        for layer in reversed(layers.each):
            mass = mass @ self._mixed(layer.probs, layers.real)
        return mass.squeeze(1)

    def _mixed(self, probs: Tensor, real: Bool[Tensor, "row key"]) -> Looks:
        by_head = {"mean": probs.mean(1), "max": probs.amax(1), "min": probs.amin(1)}
        looks = by_head[self.heads] * real.unsqueeze(1)
        if self.discard:
            inside = (real.unsqueeze(1) & real.unsqueeze(2)).flatten(1)  # padding counts for none
            least = (self.discard * inside.sum(1, keepdim=True).double()).long()
            flat = looks.flatten(1)
            place = torch.where(inside, flat, torch.inf).argsort(1).argsort(1)
            looks = torch.where(place < least, 0.0, flat).view_as(looks)
        own = torch.eye(looks.shape[-1]).to(looks)
        looks = (1.0 - self.residual) * looks + self.residual * own
        total = looks.sum(2, keepdim=True)
        return torch.where(total > 0, looks / total.clamp(min=1e-30), own)


@final
@dataclass(frozen=True)
class AttentionTimesGradient(AttentionMap):
    """Attention probabilities of one layer times the objective's gradient, summed over heads.

    First-order effect of a look on the objective: a look can speak against the answer.

    Range        objective; signed.
    Cost         one forward and backward.
    Assumes      self-attention over one sequence.

    Parameters
    ----------
    layer : int, default=-1
        Counted in the order in which attentions run.

    References
    ----------
    serrano2019attention
    """

    layer: int = -1
    paper: ClassVar[str] = "serrano2019attention"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"layer": 0})

    @property
    def signed(self) -> bool:
        """True: the values have signs."""
        return True

    def _map(self, layers: AttentionLayers) -> Float[Tensor, "row token"]:
        probs, slope = _layer(layers, self.layer)
        return (probs * slope).sum((1, 2))


@final
@dataclass(frozen=True)
class AttentionRelevance(AttentionMap):
    """Attention that raises the objective, propagated through all layers with residual connections.

    ``R = I``; for each layer ``R = R + mean_heads(relu(slope probs)) R``; the row of the position
    that answers.

    Range        [0, inf); unsigned.
    Cost         one forward and backward.
    Assumes      self-attention over one sequence.

    References
    ----------
    chefer2021generic
    """

    paper: ClassVar[str] = "chefer2021generic"

    def _map(self, layers: AttentionLayers) -> Float[Tensor, "row token"]:
        relevance = torch.eye(layers.real.shape[1]).to(layers.read).expand(len(layers.read), -1, -1)
        for probs, slope in layers.each:
            raised = (probs * slope).relu().mean(1) * layers.real.unsqueeze(1)
            relevance = relevance + raised @ relevance
        return (layers.read.unsqueeze(1) @ relevance).squeeze(1)


def _read(function: SiteFunction, objective: FixedObjective) -> tuple[AttentionLayers, bool]:
    """Return the attention layers after a site, and whether the objective depends on them."""
    names = ModuleNames(function.module)
    kept: list[Tensor] = []

    def keep(view: PortView) -> dict[str, Tensor]:
        # What the heads are made of from here on, so the gradient at it is that of the model.
        kept.append(view.x.clone())
        return {"": kept[-1].flatten(2)}

    places = [(names.modules[path], "probs", keep) for path in attentions_at("", names)]
    look = watch_attention(places, edits=True)
    if look is None:
        raise SiteError(
            f"attention: {type(function.module).__name__} contains no attention layer whose "
            "probabilities can be read. Use a gradient method: IntegratedGradients."
        )
    with look():
        number = objective.of(function.run(function.value.detach().requires_grad_(True)))
    shapes = {tuple(x.shape[1::2]) for x in kept}
    if len(shapes) != 1 or any(queries != keys for queries, keys in shapes):
        raise SiteError(
            f"attention: expected self-attention maps of one sequence after {function.site}, "
            f"got (queries, keys) {sorted(shapes) or 'none'}. Name a site before these "
            "attention layers, or use a gradient method: IntegratedGradients."
        )
    is_reached = number.requires_grad
    slopes = (
        torch.autograd.grad(number.sum(), kept, allow_unused=True)
        if is_reached
        else [None] * len(kept)
    )
    each = [_layer_of(x, slope) for x, slope in zip(kept, slopes, strict=True)]
    return _with_places(each, function), is_reached


def _layer_of(probs: Tensor, slope: Tensor | None) -> AttentionGradient:
    """Return probabilities and their gradient in the shape (example, query, head, key)."""
    slope = torch.zeros_like(probs) if slope is None else slope
    return AttentionGradient(*(x.detach().transpose(1, 2).double() for x in (probs, slope)))


def _with_places(each: list[AttentionGradient], function: SiteFunction) -> AttentionLayers:
    n, _, length, _ = each[0].probs.shape
    real = torch.ones(n, length, dtype=torch.bool, device=each[0].probs.device)
    mask = function.call.mask
    if mask is not None and mask.shape == real.shape:
        real = mask.to(real.device).bool()
    read = (each[-1].slope != 0).any(3).any(1) & real
    read = torch.where(read.any(1, keepdim=True), read, real).double()
    return AttentionLayers(each, read / read.sum(1, keepdim=True), real)


def _layer(layers: AttentionLayers, index: int) -> AttentionGradient:
    n = len(layers.each)
    if not -n <= index < n:
        raise InputError(f"attention: expected a layer in 0..{n - 1} or from the end, got {index}.")
    return layers.each[index]


def _over_places(found: Float[Tensor, "row token"], function: SiteFunction) -> Tensor:
    """Return a map over tokens as a map over the positions of a site."""
    value, n = function.value, found.shape[1]
    if value.ndim == 3 and value.shape[1] == n:
        return found.to(value)
    grid = _grid(n, tuple(value.shape[2:])) if value.ndim == 4 else None
    if grid is None:
        raise SiteError(
            f"attention: the {n} tokens of the attention map match neither the positions of "
            f"the states {tuple(value.shape)} at {function.site} nor a grid of the same "
            "proportions. Name a site of tokens, such as the embeddings."
        )
    laid = found[:, n - grid[0] * grid[1] :].unflatten(1, grid).unsqueeze(1).to(value)
    return interpolate(laid, list(value.shape[2:]), mode="bilinear", align_corners=False)[:, 0]


def _grid(n: int, size: Sequence[int]) -> tuple[int, int] | None:
    """Return the largest grid of square image patches that needs at most ``n`` tokens."""
    height, width = size
    for patch in range(1, min(height, width) + 1):
        if not (height % patch or width % patch) and height // patch * (width // patch) <= n:
            return height // patch, width // patch
    return None
