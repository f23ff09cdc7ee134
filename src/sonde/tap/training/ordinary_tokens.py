"""Tokens that means exclude in training as in reading: tokens beside patches, special ids."""

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from sonde.core.errors import SiteError
from sonde.core.inputs import InputBatch, Model
from sonde.core.site import ATTENTION_PORTS, Site
from sonde.tap.model.axes import Axes, find_axes
from sonde.tap.model.influence import Influence
from sonde.tap.model.probe import probe
from sonde.tap.model.sites import last_call
from sonde.tap.model.special_tokens import SpecialTokens, patch_grid
from sonde.tap.model.vary import token_ids
from sonde.tap.rows.frame import unnamed

_log = logging.getLogger("sonde")


@dataclass(frozen=True, eq=False)
class GivenInputs:
    """The arguments of a forward pass as a batch of examples without columns.

    Parameters
    ----------
    batch : InputBatch
    special : Bool[Tensor, "example pos"] or None
        Which tokens have a special id.
    """

    batch: InputBatch
    special: Bool[Tensor, "example pos"] | None

    @staticmethod
    def of(
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        masks: Mapping[str, Tensor | None],
        special_ids: Collection[int],
    ) -> "GivenInputs":
        """Return the inputs of a call; ``masks`` mark real tokens, by their axis."""
        tensors = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.ndim)
        batch = replace(
            unnamed(len(next(tensors, ()))),
            args=args,
            kwargs=dict(kwargs),
            mask=masks["pos"],
            decoder_mask=masks["pos2"],
        )
        ids = token_ids(batch) if special_ids else None
        if ids is None:
            return GivenInputs(batch, None)
        return GivenInputs(batch, torch.isin(ids, torch.tensor(sorted(special_ids)).to(ids)))

    def special_of(self, states: Tensor) -> Bool[Tensor, "example pos"] | None:
        """Return the special tokens of states that have one token per id."""
        if self.special is None or states.is_nested or states.shape[:2] != self.special.shape:
            return None
        return self.special

    def patch_axes(self, module: nn.Module, sites: Iterable[Site]) -> dict[Site, Axes]:
        """Return the axes of the sites with patches, by a few passes on two or three rows.

        A model that does not run on these rows, or whose patches are not known, brings no axes.
        """
        given, wanted = (*self.batch.args, *self.batch.kwargs.values()), list(sites)
        if not any(isinstance(x, Tensor) and x.is_floating_point() for x in given):
            return {}
        model = Model(module, config=getattr(module, "config", None))
        try:
            ports = {site.port for site in wanted} & set(ATTENTION_PORTS)
            probed = probe(model, self.batch, ports)
            special = SpecialTokens(
                model, probed, self.batch, patch_grid(model, probed, self.batch)
            )
            influence, axes = Influence(model, self.batch), dict[Site, Axes]()
            for site in wanted:
                if not probed.calls(site.path):
                    continue
                ran = site.path, last_call(site, probed.calls(site.path)), site.port, site.key
                try:
                    words = find_axes(probed, *ran, None, influence)
                    axes[site] = special.marked(words, probed.leaf(*ran)[0], str(site))
                except SiteError as error:
                    _log.debug("training: the patches of %s are not known: %s", site, error)
        except Exception as error:  # whatever a model raises on two rows, or another size
            _log.debug("training: the patches are not known: %s", error)
            return {}
        return {site: one for site, one in axes.items() if "patch" in one.words}
