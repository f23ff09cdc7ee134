"""New shapes as options of a model's own configuration, in place of forms.

Which option says a shape is found by trying: options whose number is an old size get the new size,
and the class of the model is built with them. It must have the tensors of the new model, in their
shapes, and give the answers of the new model.
"""

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain, combinations
from typing import Any

import torch
from torch import nn

from sonde.core.inputs import Model
from sonde.data._model_kind import config_of
from sonde.weights.forms import put_form
from sonde.weights.live import module_of
from sonde.weights.residual import inputs_or_none, run
from sonde.weights.rewrite import RewritePlan

MOST_OPTIONS = 5
"""Options of a configuration that are tried together."""


def with_own_config(
    model: Model | nn.Module, plan: RewritePlan, counts: Mapping[int, int] | None = None
) -> RewritePlan:
    """Return the plan with the options that say its new shapes, or as it is if none do.

    Parameters
    ----------
    model : Model or nn.Module
    plan : RewritePlan
    counts : mapping of int to int, optional
        Changed numbers that are not tensor sizes, such as numbers of heads: from old to new.
    """
    module = module_of(model)
    config, inputs = config_of(module), inputs_or_none(module)
    if config is None or inputs is None or not (plan.blocks or plan.reshaped - plan.packed):
        return plan
    new = plan.fold(module)
    wanted = {name: x.shape for name, x in new.state_dict().items()}
    for options in _options(config, module, plan, counts or {}):
        found = replace(plan, config={**plan.config, **options})
        built = _built(module, found, "meta")
        if built is None or {n: x.shape for n, x in built.state_dict().items()} != wanted:
            continue
        built = _built(module, found, "cpu")
        assert built is not None  # it was built on no device before
        built.load_state_dict(new.state_dict())
        own = run(new, inputs)
        if torch.allclose(run(built.to(own), inputs), own, rtol=1e-4, atol=1e-5):
            return found
    return plan


def _options(
    config: Any, module: nn.Module, plan: RewritePlan, counts: Mapping[int, int]
) -> Iterator[dict[str, Any]]:
    """Yield sets of options to try, the largest first."""
    sizes: dict[int, set[int]] = defaultdict(set)
    named = module.state_dict()
    for name in plan.reshaped - plan.packed:
        pairs = zip(named[name].shape, plan.changes[name].of(named[name]).shape, strict=True)
        for old, new in pairs:
            if old != new:
                sizes[old].add(new)
    for old, new in counts.items():
        sizes[old].add(new)
    fixed: dict[str, Any] = {}
    for name, kept in plan.blocks.items():
        n_blocks = len(module.get_submodule(name))  # pyright: ignore[reportArgumentType]
        sizes[n_blocks].add(len(kept))
        fixed |= {key: [value[i] for i in kept] for key, value in vars(config).items()
                  if isinstance(value, list) and len(value) == n_blocks}  # fmt: skip
    able = [(key, new) for key, value in vars(config).items() if type(value) is int
            for new in sizes.get(value, ()) if len(sizes[value]) == 1][:MOST_OPTIONS]  # fmt: skip
    several = (combinations(able, n) for n in range(len(able), 0, -1))
    for chosen in chain.from_iterable(several):
        yield {**fixed, **dict(chosen)}


def _built(module: nn.Module, plan: RewritePlan, device: str) -> nn.Module | None:
    """Return a new model of the class with a plan's options; None if the class rejects them."""
    config = copy.deepcopy(config_of(module))
    for name, value in plan.config.items():
        setattr(config, name, value)
    kind: Any = type(module)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        try:
            built = kind(config)
        except Exception:  # whatever a class raises for numbers that do not fit one another
            return None
    for name, told in plan.told_on_disk().items():
        if "kept" not in told:  # such a layer is an ordinary one again when it has its weight
            put_form(built, name, told)
    return built.eval()
