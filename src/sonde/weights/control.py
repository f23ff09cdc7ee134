"""Control for weight changes: a random change of equal size."""

import torch
from torch import nn

from sonde.core.inputs import Model
from sonde.weights.change import Exchange
from sonde.weights.rewrite import RewritePlan, module_of


def random_plan(model: Model | nn.Module, plan: RewritePlan, seed: int) -> RewritePlan:
    """Return a plan that adds noise to each tensor, with the norm of its change in ``plan``.

    Parameters
    ----------
    model : Model or nn.Module
        The model that ``plan`` was made for.
    plan : RewritePlan
    seed : int
        Of the noise, which is normal and independent in every entry.
    """
    generator = torch.Generator().manual_seed(seed)
    named = dict(module_of(model).state_dict())
    changes: dict[str, Exchange] = {}
    for name, change in plan.changes.items():
        if name not in named:
            continue  # what the plan adds has no twin of its size
        old = named[name].detach().cpu()
        size = (change.of(old).double() - old.double()).norm()
        noise = torch.randn(old.shape, generator=generator, dtype=torch.float64)
        length = noise.norm()
        changes[name] = Exchange(old.double() + noise * (size / length if length > 0 else 0.0))
    return RewritePlan.of(model, changes, f"random, the size of {plan.method or 'the plan'}")
