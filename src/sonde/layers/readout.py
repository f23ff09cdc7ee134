"""Gather the states of many sites, tokens or views into a few vectors."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, cast, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import layer_norm, scaled_dot_product_attention

from sonde.core.errors import InputError, ShapeError
from sonde.layers.layer import Layer
from sonde.stats.soft_top_k import soft_top_k


@final
class Readout(Layer):
    """Read a few vectors from the states of many sites, as (row, query, dim).

    ``weights``: the mean over tokens of a softmax mixture of the sites, each normalised and mapped
    to ``dim``. ``concat``: the tokens' means of all sites side by side, then a linear map.
    ``queries``: learned queries attend to the tokens of all sites, with a vector for each site.
    ``recurrent``: the queries attend to one site after another by a shared block and add the result
    times a gate. With ``biases`` the vectors are a coarse prompt, and sites of finer features add a
    bias to each vector: ``v + sum_s Attention(v, K_s, V_s) W_s``, with ``W_s`` of zeros at the
    start, so that training begins from the coarse prompt. ``select`` is the number of gathered
    vectors to keep, by a learned score; their mean is returned, and ``guess`` measures how badly
    the mean predicts the other vectors.

    Cost         4 query token dim for each site, plus the maps of the tokens.
    Assumes      stored or live states; a site may have its own width and number of tokens.
    Differs      from R2-Tuning and CFLD: the site's encoder and the adapter's feed-forward are left
                 out; biases share the keys and values of the prompt.

    Parameters
    ----------
    widths : sequence of int
        Width of each site.
    dim : int
        Width of the vectors.
    combine : {"weights", "concat", "queries", "recurrent"}, default="weights"
        How the sites' states become a few vectors.
    n_queries : int, default=1
        For ``queries`` and ``recurrent``.
    order : {"first_to_last", "last_to_first"}, default="last_to_first"
        Order in which ``recurrent`` goes through the sites.
    biases : sequence of int, optional
        Width of each site of finer features, whose tokens ``forward`` takes as ``fine``. For
        ``queries`` and ``recurrent``.
    select : int, optional
        Number of gathered vectors to keep, by a learned score; None keeps all.

    References
    ----------
    liu2024r2tuning
    """

    paper: ClassVar[str] = "liu2024r2tuning"
    variants: ClassVar[Mapping[str, str]] = {
        "combine='recurrent'": "liu2024r2tuning",
        "combine='queries'": "lu2024cfld",
        "combine='queries', biases=(4,)": "lu2024cfld",
        "combine='queries', select=2": "bengio2017consciousness",
    }
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"widths": (4, 3), "dim": 5},
        {"widths": (4, 3), "dim": 5, "combine": "concat"},
        {"widths": (4, 3), "dim": 5, "combine": "queries", "n_queries": 2},
        {"widths": (4, 3), "dim": 5, "combine": "recurrent", "n_queries": 2},
        {"widths": (4,), "dim": 5, "combine": "queries", "n_queries": 3, "select": 2},
        {"widths": (4,), "dim": 5, "combine": "queries", "n_queries": 2, "biases": (3, 2)},
    )
    insertable = False
    symmetry = "permutation"

    def __init__(
        self,
        widths: Sequence[int],
        dim: int,
        combine: Literal["weights", "concat", "queries", "recurrent"] = "weights",
        n_queries: int = 1,
        order: Literal["first_to_last", "last_to_first"] = "last_to_first",
        select: int | None = None,
        biases: Sequence[int] = (),
    ) -> None:
        super().__init__()
        asks = combine in ("queries", "recurrent")
        if not widths or n_queries < 1 or (not asks and n_queries > 1):
            raise InputError(
                "Readout: expected at least one site, and more than one query only for "
                f"'queries' or 'recurrent', got {len(widths)} sites, {n_queries} queries and "
                f"combine={combine!r}."
            )
        if biases and not asks:
            raise InputError(
                "Readout: expected biases only for 'queries' or 'recurrent', got "
                f"combine={combine!r}."
            )
        if select is not None and not 1 <= select <= n_queries:
            raise InputError(f"Readout: expected select from 1 to {n_queries}, got {select}.")
        self.widths, self.dim, self.combine = tuple(widths), dim, combine
        self.n_queries, self.order, self.select = n_queries, order, select
        self.exact_gradient = select is None
        names = [f"site{i}" for i in range(len(widths))]
        for name, width in zip(names, widths, strict=True):
            setattr(self, name, int(width))
        object.__setattr__(self, "layout", tuple(f"row token {name}" for name in names))
        self.maps = nn.ModuleList([nn.Linear(width, dim) for width in widths])
        self.logits = nn.Parameter(torch.zeros(len(widths))) if combine == "weights" else None
        self.join = nn.Linear(len(widths) * dim, dim) if combine == "concat" else None
        if asks:
            self.queries = nn.Parameter(torch.randn(n_queries, dim) / dim**0.5)
            self.marks = nn.Parameter(torch.zeros(len(widths), dim))
            self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.fine = nn.ModuleList([nn.Linear(width, dim) for width in biases])
        self.outs = nn.ModuleList([nn.Linear(dim, dim, bias=False) for _ in biases])
        for out in self.outs:
            nn.init.zeros_(out.get_parameter("weight"))
        self.gate = nn.Parameter(torch.ones(())) if combine == "recurrent" else None
        if select is not None:
            self.score, self.teller = nn.Linear(dim, 1), nn.Linear(dim, n_queries * dim)

    def forward(
        self,
        *sites: Float[Tensor, "row _ _"],
        mask: Bool[Tensor, "row token"] | Sequence[Tensor] | None = None,
        condition: Float[Tensor, "row query dim"] | None = None,
        fine: Sequence[Float[Tensor, "row _ _"]] = (),
    ) -> Float[Tensor, "row query dim"]:
        """Return the vectors.

        Parameters
        ----------
        *sites : Float[Tensor, "row token width"]
            In the order of ``widths``; tokens may differ from site to site.
        mask : Bool[Tensor, "row token"], or one for each site, optional
            True for real tokens.
        condition : Float[Tensor, "row query dim"], optional
            Added to the learned queries.
        fine : sequence of Float[Tensor, "row token width"]
            Tokens of the sites of ``biases``, in their order. None adds no bias.
        """
        slots = self.gathered(*sites, mask=mask, condition=condition)
        slots = self._biased(slots, fine) if fine else slots
        return slots if self.select is None else self._selected(slots)

    def gathered(
        self, *sites: Tensor, mask: Any = None, condition: Tensor | None = None
    ) -> Float[Tensor, "row query dim"]:
        """Return the vectors before the selection."""
        masks = self._masks(sites, mask)
        parts = [
            cast(Tensor, m(layer_norm(x, x.shape[-1:])))
            for m, x in zip(self.maps, sites, strict=True)
        ]
        if self.combine in ("weights", "concat"):
            real = [m.to(p).unsqueeze(-1) for p, m in zip(parts, masks, strict=True)]
            means = [(p * r).sum(1) / r.sum(1) for p, r in zip(parts, real, strict=True)]
            if self.join is not None:
                return self.join(torch.cat(means, -1)).unsqueeze(1)
            share = cast(Tensor, self.logits).softmax(0)
            return torch.einsum("s,srd->rd", share, torch.stack(means)).unsqueeze(1)
        state = self.queries.expand(len(parts[0]), -1, -1)
        state = state if condition is None else state + condition
        marked = [p + mark for p, mark in zip(parts, self.marks, strict=True)]
        if self.gate is None:
            return self._attended(state, torch.cat(marked, 1), torch.cat(masks, 1))
        steps = list(zip(marked, masks, strict=True))
        for tokens, real in steps if self.order == "first_to_last" else reversed(steps):
            state = state + self.gate * self._attended(state, tokens, real)
        return state

    def _biased(self, slots: Tensor, fine: Sequence[Tensor]) -> Float[Tensor, "row query dim"]:
        """Return vectors plus what each of them attends to at the sites of finer features."""
        if len(fine) != len(self.fine):
            raise ShapeError(
                f"Readout.forward: expected fine tokens of {len(self.fine)} sites, got {len(fine)}."
            )
        added = torch.zeros_like(slots)
        for part, out, x in zip(self.fine, self.outs, fine, strict=True):
            tokens = part(layer_norm(x, x.shape[-1:]))
            real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
            added = added + out(self._attended(slots, tokens, real))
        return slots + added

    def weights(self) -> Float[Tensor, "site"]:
        """Return the fraction of each site for ``combine="weights"``; they sum to 1."""
        if self.logits is None:
            raise InputError(f"Readout.weights: {self.combine!r} has no weights of sites.")
        return self.logits.softmax(0)

    def guess(self, *sites: Tensor, mask: Any = None) -> Float[Tensor, ""]:
        """Return the mean squared error with which the selected vectors predict the others."""
        if self.select is None:
            raise InputError("Readout.guess: expected a readout with select=k, got none.")
        slots = self.gathered(*sites, mask=mask)
        predicted = self.teller(self._selected(slots).squeeze(1)).reshape(slots.shape)
        left = 1.0 - self._chosen(slots).detach()
        error = (predicted - slots.detach()).square().mean(-1)
        return (error * left).sum() / left.sum().clamp(min=1.0)

    def _chosen(self, slots: Tensor) -> Tensor:
        return soft_top_k(self.score(slots).squeeze(-1), cast(int, self.select), hard=True)

    def _selected(self, slots: Tensor) -> Tensor:
        share = self._chosen(slots) / cast(int, self.select)
        return (share.unsqueeze(-1) * slots).sum(1, keepdim=True)

    def _attended(self, state: Tensor, tokens: Tensor, real: Tensor) -> Tensor:
        keys, values = self.key(tokens), self.value(tokens)
        return scaled_dot_product_attention(state, keys, values, attn_mask=real.unsqueeze(1))

    def _masks(self, sites: Sequence[Tensor], mask: Any) -> list[Tensor]:
        if len(sites) != len(self.widths):
            raise ShapeError(
                f"Readout.forward: expected {len(self.widths)} sites of widths {self.widths}, got "
                f"{len(sites)}. Pass one tensor for each site."
            )
        given = [mask] * len(sites) if mask is None or isinstance(mask, Tensor) else list(mask)
        masks = [
            torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if m is None else m
            for x, m in zip(sites, given, strict=True)
        ]
        for i, (x, real) in enumerate(zip(sites, masks, strict=True)):
            if real.shape != x.shape[:2]:
                raise ShapeError(
                    f"Readout.forward: expected a mask (row token) of {tuple(x.shape[:2])} for "
                    f"site {i}, got {tuple(real.shape)}."
                )
            if not bool(real.any(1).all()):
                row = int((~real.any(1)).nonzero()[0, 0])
                raise InputError(
                    f"Readout.forward: expected at least one token of row {row} at site {i}, got a "
                    "mask without any. Drop the row."
                )
        return masks
