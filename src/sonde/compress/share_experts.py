"""Store equal experts once, so that a model with merged experts needs less memory."""

import copy
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sonde.compress.expert_use import STACKED, mixtures
from sonde.core.inputs import Model
from sonde.weights import module_of, with_tensors


class SharedExperts(nn.Module):
    """Stacked experts in which several positions share one stored expert.

    Parameters
    ----------
    experts : nn.Module
        Stacked experts of transformers.
    slot : Int[Tensor, "expert"]
        Number of the distinct expert in each place.
    first : Int[Tensor, "slot"]
        A place of each distinct expert.
    """

    slot: Tensor

    def __init__(self, experts: Any, slot: Int[Tensor, "expert"], first: Int[Tensor, "slot"]):
        super().__init__()
        self.experts = copy.copy(experts)
        self.experts._parameters = dict(experts._parameters)
        for name in STACKED:
            old = experts.get_parameter(name)
            new = nn.Parameter(old.detach()[first].clone(), old.requires_grad)
            self.experts._parameters[name] = new
        self.experts.num_experts = len(first)
        self.register_buffer("slot", slot)

    def forward(
        self,
        hidden: Float[Tensor, "token dim"],
        index: Int[Tensor, "token k"],
        weights: Float[Tensor, "token k"],
    ) -> Float[Tensor, "token dim"]:
        """Return the weighted sum of the chosen experts' outputs, as the original experts do."""
        return self.experts(hidden, self.slot[index], weights)


@torch.no_grad()
def share_experts(model: Model | nn.Module) -> nn.Module:
    """Return a copy of a model that stores equal experts once, with unchanged answers.

    All other tensors are shared with ``model``. ``torch.save`` writes the smaller model;
    ``save_pretrained`` does not know its form.

    Parameters
    ----------
    model : Model or nn.Module
        Model with experts; it is not changed.

    Raises
    ------
    InputError
        If the model has no stacked experts.
    """
    new = with_tensors(module_of(model), {})
    for one in mixtures("share_experts", new):
        flat = torch.cat([getattr(one.experts, name).flatten(1) for name in STACKED], 1)
        equal = torch.stack([(flat == row).all(1) for row in flat])
        first, slot = equal.to(torch.int8).argmax(1).unique(return_inverse=True)
        if len(first) < one.size:
            above, _, own = one.name.rpartition(".")
            setattr(new.get_submodule(above), own, SharedExperts(one.experts, slot, first))
    return new
