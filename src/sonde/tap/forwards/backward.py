"""Gradients at sites of a forward pass that the user's own code runs, leaving it unchanged."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from sonde.core.errors import InputError, SiteError
from sonde.core.inputs import InputBatch
from sonde.tap.hooks.cache import cache_in, cache_of, detach_cache
from sonde.tap.hooks.outputs import find, find_input, leaves, replaced, with_input
from sonde.tap.model.objectives import check_objective, value
from sonde.tap.rows.frame import Frame
from sonde.tap.rows.kind import Kind


class Backward:
    """Enables gradients for one forward pass, stores those at the sites, and restores the mode.

    Parameters of the model get no gradient. If the caller trains the model, the graph is kept.

    Parameters
    ----------
    root : nn.Module
    objective : str
        ``kl_uniform`` or ``max_logit``.
    """

    def __init__(self, root: nn.Module, objective: str) -> None:
        check_objective(objective)
        if objective not in ("kl_uniform", "max_logit"):
            raise InputError(
                f"Guard: expected the objective kl_uniform or max_logit, got {objective!r}, "
                "which needs labels that a running model does not have. Fit with one of the two."
            )
        self.root, self.objective = root, objective
        self._before: bool | None = None
        self._edges: dict[str, list[GradientEdge]] = {}

    def begin(self, named: dict[str, Any]) -> None:
        """Enable gradients."""
        require_gradients()
        self._before = torch.is_grad_enabled()
        self._keeps = self._before and any(_trainable(self.root, named))
        self._named, self._edges = named, {}
        torch.set_grad_enabled(True)

    def watch(self, kinds: Sequence[Kind], output: Any) -> Any:
        """Return a site's output with equal values and a gradient."""
        for kind in kinds:
            leaf = find(output, kind.site.key)
            assert leaf is not None  # it was taken before
            if not leaf.requires_grad:
                watched = leaf.detach().requires_grad_(True).clone()
                output, leaf = replaced(output, leaf, watched), watched
            self._edges.setdefault(kind.key, []).append(get_gradient_edge(leaf))
        return output

    def watch_input(
        self, kind: Kind, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return a site's arguments, one of them replaced by a copy that requires a gradient."""
        leaf = find_input(module, args, kwargs, kind.site.key)[1]
        source = leaf if leaf.requires_grad else leaf.detach().requires_grad_(True)
        watched = source.clone()
        self._edges.setdefault(kind.key, []).append(get_gradient_edge(watched))
        return with_input(args, kwargs, leaf, watched)

    def gradients(
        self,
        kinds: Sequence[Kind],
        output: Any,
        logits: Tensor | None,
        batch: InputBatch,
        frame: Frame,
    ) -> dict[str, Tensor]:
        """Return the gradient of the objective at each site, reduced like the site's rows."""
        scalar = value(self.objective, output, logits, batch)
        edges = [(kind, edge) for kind in kinds for edge in self._edges.get(kind.key, ())]
        slopes = torch.autograd.grad(
            scalar, [edge for _, edge in edges], retain_graph=self._keeps, allow_unused=True
        )
        parts: dict[str, list[Tensor]] = {}
        with torch.no_grad():
            for (kind, _), gradient in zip(edges, slopes, strict=True):
                if gradient is None:
                    raise SiteError(
                        f"Guard: no gradient reached {str(kind.site)!r}: the objective does not "
                        "depend on it. Leave the site out of the probe."
                    )
                if kind.site.call == "last":
                    parts.pop(kind.key, None)
                parts.setdefault(kind.key, []).append(kind.reduction(gradient, frame)[0])
        return {key: torch.cat(several) for key, several in parts.items()}

    def released(self, output: Any) -> Any:
        """Return the model's output, with its graph and the caches' cut except in training."""
        if self._keeps:
            return output
        for cache in (cache_in(self._named), cache_of(output)):
            detach_cache(cache)
        for leaf in leaves(output).values():
            if leaf.requires_grad:
                output = replaced(output, leaf, leaf.detach())
        return output

    def end(self) -> None:
        """Restore the gradient mode, also after a forward pass that raised."""
        if self._before is not None:
            torch.set_grad_enabled(self._before)
        self._before, self._edges, self._named = None, {}, {}


def require_gradients() -> None:
    """Raise if no gradient can be computed in a call."""
    if torch.is_inference_mode_enabled():
        raise InputError(
            "Guard: a detector needs the gradient of the model, which inference_mode forbids. "
            "Call the model under torch.no_grad(), or guard it without that detector."
        )


def _trainable(root: nn.Module, named: dict[str, Any]) -> Iterator[bool]:
    yield from (p.requires_grad for p in root.parameters())
    yield from (x.requires_grad for x in named.values() if isinstance(x, Tensor))
