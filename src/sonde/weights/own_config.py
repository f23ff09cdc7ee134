"""New shapes as options of a model's own configuration, instead of forms.

Which options say a shape is found by trying. An option is a candidate if it has an old size as its
number and the class reads it as a size: built with this option alone changed, the class has other
tensors or raises. Of the candidates the fewest are taken with which the class has the tensors of
the new model, in their shapes, and gives the answers of the new model.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain, combinations
from typing import Any

import torch
from torch import nn

from sonde.core.inputs import Model
from sonde.data._checkpoint_model import with_options
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
    """Return the plan with configuration options for its new shapes, if such options exist.

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
    wanted = _shapes(new)
    for options in _options(config, module, plan, counts or {}):
        configured = replace(plan, config={**plan.config, **options})
        if _shapes(_built(module, configured, "meta")) != wanted:
            continue
        built = _built(module, configured, "cpu")
        assert built is not None  # it was built on no device before
        if _answers_alike(built, new, inputs):
            return configured
    return plan


def _options(
    config: Any, module: nn.Module, plan: RewritePlan, counts: Mapping[int, int]
) -> Iterator[dict[str, Any]]:
    """Yield sets of options to try, the smallest first, with lists of all blocks in each set."""
    sizes: dict[int, set[int]] = defaultdict(set)
    named = module.state_dict()
    for name in plan.reshaped - plan.packed:
        pairs = zip(named[name].shape, plan.changes[name].of(named[name]).shape, strict=True)
        for old, new in pairs:
            if old != new:
                sizes[old].add(new)
    for old, new in counts.items():
        sizes[old].add(new)
    lists: dict[str, Any] = {}
    for name, kept in plan.blocks.items():
        n_blocks = len(module.get_submodule(name))  # pyright: ignore[reportArgumentType]
        sizes[n_blocks].add(len(kept))
        lists |= {key: [value[i] for i in kept] for key, value in vars(config).items()
                  if isinstance(value, list) and len(value) == n_blocks}  # fmt: skip
    numbers = {key: new for key, value in vars(config).items() if type(value) is int
               for new in sizes.get(value, ()) if len(sizes[value]) == 1}  # fmt: skip
    plain = _shapes(_built(module, replace(plan, config={}, blocks={}, forms={}), "meta"))
    fixed, able = ([(key, new) for key, new in some.items() if _is_size(module, key, new, plain)]
                   for some in (lists, numbers))  # fmt: skip
    able = able[:MOST_OPTIONS]
    several = (combinations(able, n) for n in range(min(1, len(able)), len(able) + 1))
    for chosen in chain.from_iterable(several):
        yield {**dict(fixed), **dict(chosen)}


def _is_size(module: nn.Module, key: str, value: Any, plain: Any) -> bool:
    """Return whether a model's class reads an option as a size, or as a list of blocks."""
    alone = RewritePlan({}, {}, config={key: value})
    return _shapes(_built(module, alone, "meta")) != plain


def _shapes(module: nn.Module | None) -> dict[str, torch.Size] | None:
    return None if module is None else {name: x.shape for name, x in module.state_dict().items()}


def _answers_alike(built: nn.Module, new: nn.Module, inputs: Any) -> bool:
    """Return whether a weightless model, given another's weights, gives equal answers."""
    built.load_state_dict(new.state_dict())
    like = {**dict(new.named_parameters()), **dict(new.named_buffers())}
    for name, x in chain(built.named_parameters(), built.named_buffers()):
        x.data = x.data.to(like.get(name, x))  # rotary frequencies stay float32 in a half model
    try:
        return torch.allclose(run(built, inputs), run(new, inputs), rtol=1e-4, atol=1e-5)
    except Exception:  # whatever a forward raises for options or blocks that do not fit
        return False


def _built(module: nn.Module, plan: RewritePlan, device: str) -> nn.Module | None:
    """Return a new model of the class with a plan's options; None if the class rejects them."""
    old = config_of(module)
    kind: Any = type(module)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        try:
            config = with_options(old, plan.config)
            built = kind(config)
        except Exception:  # whatever a class raises for numbers that do not fit one another
            return None
    for name, form in plan.told_on_disk().items():
        if "kept" not in form:  # such a layer is an ordinary one again when it has its weight
            put_form(built, name, form)
    return built.eval()
