"""Mixtures of small networks: routed by score, by label or by confidence, or averaged."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.layers.layer import Layer
from sonde.stats.soft_top_k import soft_top_k


@final
class Experts(Layer):
    """Add to each state the outputs of a few of many experts: ``x + sum_e g_e f_e(x)``.

    ``top_k``: ``g`` is a softmax over the ``k`` highest router scores. ``label``: the expert of the
    row's label. ``mean``: the mean of all. ``over="units"``: one network whose hidden width is cut
    in ``n_experts`` parts; the first ``shared`` parts and the ``k`` best-scored other parts are on,
    scaled so that the activation keeps its size. ``fusion`` maps the parts that are on to the units
    of all parts before the nonlinearity; the map starts as the identity. ``over="dims"``: the state
    itself is cut in ``n_experts`` parts; the network reads the parts that are on, scaled, and adds
    to them alone, as much scaled; ``fusion`` maps what it adds to all parts of the state. The last
    map of every expert starts at zero. ``shared`` experts are always added.

    Cost         k + shared experts for each state, and dim n_experts products of the router;
                 ``groups`` adds ``width + n_experts`` products for each unit of the parts that are
                 on, and the last map then reads all units. Parts that are off are multiplied as
                 zeros: no time is saved here.
    Assumes      a loss that holds ``balance`` near 1, if all experts should be used.
    Differs      from MoHD: the scale ``scores`` and the place of the fusion are as a
                 reimplementation gives them; we did not see the paper's equations. ``share`` and
                 ``rms`` are ours, and one router serves what a layer reads and what it adds.

    Parameters
    ----------
    dim : int
        Width of the states; with ``over="dims"`` a multiple of ``n_experts``.
    n_experts : int, default=4
        Number of experts, or of parts of the one network or of the state.
    width : int, optional
        Hidden width of an expert, with ``over="units"`` of a part, with ``over="dims"`` of the one
        network; by default ``dim``.
    router : {"top_k", "label", "mean"}, default="top_k"
        How experts are chosen: by the highest scores, by the row's label, or all of them.
    over : {"experts", "units", "dims"}, default="experts"
        Whether an expert is a network of its own, a part of the hidden units of one network, or a
        part of the state's own dimensions, which one network reads and changes.
    k : int, default=2
        Number of experts that a router of scores chooses for each token.
    shared : int, default=0
        Number of experts that every token uses.
    scale : {"share", "rms", "scores", "none"}, default="share"
        Scale of the parts that are on, of units or dims: ``n / active``, or its root, which
        keeps the sum of squares of independent units. ``scores`` weighs each part that is on by ``n
        g sum(g)``, where ``g`` is its probability in a softmax over the scores of all ``n`` parts
        and the sum is over the parts that are on: on average ``n / active`` if these hold all of
        the probability.
    fusion : {"none", "groups", "dense"}, default="none"
        Linear map from the parts that are on to all units, or to all dims of the state. ``groups``
        mixes within each part, then the units of one place in all parts (a Monarch matrix);
        ``dense`` is a full one.
    net : nn.Module, optional
        Network that reads and changes the parts of the state, for ``over="dims"``, such as an
        attention layer that returns what it adds; by default one hidden layer.

    References
    ----------
    chen2024mohd
    """

    paper: ClassVar[str] = "chen2024mohd"
    variants: ClassVar[Mapping[str, str]] = {
        "over='units', shared=1": "chen2024mohd",
        "over='dims', shared=1": "chen2024mohd",
    }
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"dim": 4},
        {"dim": 4, "n_experts": 3, "k": 1, "shared": 1},
        {"dim": 4, "router": "label"},
        {"dim": 4, "router": "mean", "width": 3},
        {"dim": 4, "over": "units", "k": 1, "shared": 1, "scale": "rms"},
        {"dim": 4, "over": "units", "k": 1, "shared": 1, "scale": "scores", "fusion": "groups"},
        {"dim": 4, "over": "dims", "k": 1, "shared": 1},
        {"dim": 4, "over": "dims", "n_experts": 2, "k": 1, "fusion": "groups", "width": 3},
    )
    layout: ClassVar[tuple[str, ...]] = ("row *axes dim",)

    def __init__(
        self,
        dim: int,
        n_experts: int = 4,
        width: int | None = None,
        router: Literal["top_k", "label", "mean"] = "top_k",
        over: Literal["experts", "units", "dims"] = "experts",
        k: int = 2,
        shared: int = 0,
        scale: Literal["share", "rms", "scores", "none"] = "share",
        fusion: Literal["none", "groups", "dense"] = "none",
        net: nn.Module | None = None,
    ) -> None:
        super().__init__()
        parts = over != "experts"
        free = n_experts - (shared if parts else 0)
        if not parts and (scale, fusion) != ("share", "none"):
            raise InputError(
                f"Experts: scale={scale!r} and fusion={fusion!r} are of units or dims, got "
                "over='experts'. Say over='units' or over='dims'."
            )
        if not 1 <= k <= free or (parts and router != "top_k"):
            raise InputError(
                f"Experts: expected k from 1 to {free} routed experts, and parts routed by top_k, "
                f"got k={k}, router={router!r} over {over}."
            )
        if (over == "dims" and dim % n_experts) or (net is not None and over != "dims"):
            raise InputError(
                f"Experts: expected a dim that {n_experts} parts of a state divide, and a net of "
                f"one's own for over='dims' alone, got dim={dim} over {over}."
            )
        self.dim, self.n_experts, self.router, self.over = dim, n_experts, router, over
        self.k, self.shared, self.scale, self.fusion = k, shared, scale, fusion
        self.exact_gradient, self.free = not parts, free
        wide = width or dim
        sizes = {"experts": [wide] * n_experts, "units": [wide * n_experts], "dims": [wide]}[over]
        self.experts = nn.ModuleList(
            [_network(dim, size) for size in sizes] if net is None else [net]
        )
        always = 0 if parts else shared
        self.always = nn.ModuleList([_network(dim, wide) for _ in range(always)])
        scored = n_experts if scale == "scores" else free
        self.line = nn.Linear(dim, scored, bias=False) if router == "top_k" else None
        part = dim // n_experts if over == "dims" else wide
        if fusion == "groups":
            self.within = nn.Parameter(torch.eye(part).repeat(n_experts, 1, 1))
            self.across = nn.Parameter(torch.eye(n_experts).repeat(part, 1, 1))
        if fusion == "dense":
            self.mixed = nn.Parameter(torch.eye(part * n_experts))

    def forward(
        self, x: Float[Tensor, "row *axes dim"], label: Int[Tensor, "row"] | None = None
    ) -> Float[Tensor, "row *axes dim"]:
        """Return the states plus the outputs of their experts.

        Parameters
        ----------
        x : Float[Tensor, "row *axes dim"]
        label : Int[Tensor, "row"], optional
            Expert of each row for ``router="label"``; without it the mean of all experts is added.
        """
        if self.over == "units":
            return x + self._of_units(x)
        if self.over == "dims":
            weight = self.weights(x).unsqueeze(-1)
            read = (self._parts(x) * weight).flatten(-2)
            return x + self._fused(self._parts(self.experts[0](read)) * weight)
        rows = x.reshape(-1, self.dim)
        share = self._shares(x, label).reshape(-1, self.n_experts)
        added = torch.zeros_like(rows)
        for e, expert in enumerate(self.experts):
            routed = share[:, e].nonzero().squeeze(1)  # no expert runs on states of others
            if len(routed):
                added = added.index_add(0, routed, share[routed, e : e + 1] * expert(rows[routed]))
        for expert in self.always:
            added = added + expert(rows)
        return x + added.reshape(x.shape)

    def shares(self, x: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes expert"]:
        """Return the weight of each routed expert, most of them zero; they sum to 1."""
        if self.line is None:
            raise InputError(f"Experts.shares: router {self.router!r} has no scores.")
        best = self.line(x)[..., -self.free :].topk(self.k, dim=-1)
        fractions = torch.zeros(*x.shape[:-1], self.free, dtype=x.dtype, device=x.device)
        return fractions.scatter(-1, best.indices, best.values.softmax(-1).to(fractions))

    def balance(
        self, x: Float[Tensor, "*axes dim"], mask: Bool[Tensor, "*axes"] | None = None
    ) -> Float[Tensor, ""]:
        """Return ``E sum_e f_e P_e`` from fractions of choices and mean probabilities; 1 if equal.

        Parameters
        ----------
        x : Float[Tensor, "*axes dim"]
        mask : Bool[Tensor, "*axes"], optional
            True for real states.
        """
        rows = x.reshape(-1, self.dim) if mask is None else x[mask]
        if not len(rows):
            raise InputError("Experts.balance: expected a real state, got none.")
        chosen = (self.shares(rows) > 0).to(x.dtype).mean(0) / self.k
        assert self.line is not None
        chance = self.line(rows)[..., -self.free :].softmax(-1)
        return self.free * (chosen * chance.mean(0)).sum()

    def _shares(self, x: Tensor, label: Tensor | None) -> Tensor:
        if self.router == "top_k":
            return self.shares(x)
        if self.router == "mean" or label is None:
            return x.new_full((*x.shape[:-1], self.n_experts), 1.0 / self.n_experts)
        if label.shape != x.shape[:1] or bool(((label < 0) | (label >= self.n_experts)).any()):
            raise InputError(
                f"Experts.forward: expected one label (row) from 0 to {self.n_experts - 1} for "
                f"states {tuple(x.shape)}, got {tuple(label.shape)}."
            )
        own = nn.functional.one_hot(label, self.n_experts).to(x.dtype)
        return own.reshape(len(x), *[1] * (x.ndim - 2), -1).expand(*x.shape[:-1], -1)

    def _of_units(self, x: Tensor) -> Tensor:
        up, act, down = self.experts[0].children()
        weight = self.weights(x).unsqueeze(-1)
        hidden: Tensor = up(x)
        if self.fusion == "none":
            return down((self._parts(act(hidden)) * weight).flatten(-2))
        return down(act(self._fused(self._parts(hidden) * weight)))

    def _fused(self, parts: Tensor) -> Tensor:
        """Return all units or dims from the weighted parts that are on."""
        if self.fusion == "none":
            return parts.flatten(-2)
        if self.fusion == "dense":
            return parts.flatten(-2) @ self.mixed
        fused = torch.einsum("...pi,pij->...pj", parts, self.within)
        return torch.einsum("...pj,jpq->...qj", fused, self.across).flatten(-2)

    def _parts(self, hidden: Tensor) -> Tensor:
        return hidden.unflatten(-1, (self.n_experts, -1))

    def weights(self, x: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes part"]:
        """Return the scale of each part of the units or of the state, 0 for parts that are off."""
        if self.line is None or self.over == "experts":
            raise InputError("Experts.weights: expected over='units' or 'dims', got whole experts.")
        scores = self.line(x)
        routed = soft_top_k(scores[..., -self.free :], self.k, hard=True)
        on = torch.cat((x.new_ones(*x.shape[:-1], self.shared), routed), -1)
        if self.scale == "scores":
            chance = scores.softmax(-1) * on.detach()
            return self.n_experts * chance * chance.sum(-1, keepdim=True)
        more = self.n_experts / (self.shared + self.k)
        return on * {"share": more, "rms": more**0.5, "none": 1.0}[self.scale]


def _network(dim: int, width: int) -> nn.Sequential:
    """Return a network of one hidden layer whose last map is zero."""
    last = nn.Linear(width, dim)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(dim, width), nn.GELU(), last)
