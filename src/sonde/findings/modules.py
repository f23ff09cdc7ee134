"""What modules tell beside states: flags, parts that never run, what stands at the sites."""

import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sonde.core.site import Site
from sonde.findings._probes import small_batches, token_length
from sonde.findings.self_check import SelfCheck, self_check, untouched
from sonde.tap import LiveStream
from sonde.tap.watch import watch

BATCH_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
DROPOUTS = (nn.modules.dropout._DropoutNd,)
ROUTERS = ("router", "expert", "moe")
UNASKED = ("head", "pooler")


@dataclass(frozen=True)
class SiteFacts:
    """What is known of the module at a site.

    Parameters
    ----------
    n_parameters : int
        Its parameters and those of its children.
    follows : bool
        Whether it works on exactly the numbers that the site before it returned.
    ends : (float, float) or None
        Where its output is cut off, for ReLU6 and its kin.
    is_linear : bool
        Whether its output is a linear map of its input.
    is_first : bool
        Whether no site is read before it.
    """

    n_parameters: int = 0
    follows: bool = False
    ends: tuple[float, float] | None = None
    is_linear: bool = False
    is_first: bool = False


@dataclass(frozen=True)
class Unused:
    """A module of which no parameter took part in a forward."""

    path: str
    n_parameters: int


@dataclass(frozen=True, eq=False)
class ModelEvidence:
    """What is known of a live model beside its states.

    Parameters
    ----------
    self_check : SelfCheck
    sites : mapping of row key to SiteFacts
    n_parameters : int
    was_training : bool
        Whether the whole model was handed over in training mode.
    training : tuple of str
        Modules that behave as in training inside a model in eval mode.
    batch_norm : tuple of str
        Batch norms without running statistics.
    never_ran : tuple of Unused
        Parts with parameters that no forward used; ``experts``, those among them that are experts,
        ``n_tokens`` how many tokens the forwards had.
    routed : bool
        Whether the model has a router.
    pools : bool
        Whether it joins all tokens of an example into one answer.
    task : str
    padding_side : {"left", "right"}
        Where the model's processor pads.
    """

    self_check: SelfCheck
    sites: Mapping[str, SiteFacts] = field(default_factory=dict)
    n_parameters: int = 0
    was_training: bool = False
    training: tuple[str, ...] = ()
    batch_norm: tuple[str, ...] = ()
    never_ran: tuple[Unused, ...] = ()
    experts: tuple[Unused, ...] = ()
    n_experts: int = 0
    n_tokens: int = 0
    routed: bool = False
    pools: bool = False
    task: str = "tensor"
    padding_side: str = "right"


def model_evidence(stream: LiveStream, seed: int = 0) -> ModelEvidence:
    """Return the facts of the model behind a stream; runs a few small forwards."""
    root = stream.model.module
    modules = stream.probe.names.modules
    checked = self_check(stream, seed)
    used, tensors, n_tokens = _one_forward(stream, seed)
    idle = [] if used is None else list(_unused(stream, used))
    experts = [u for u in idle if _is_routed(u.path)]
    return ModelEvidence(
        self_check=checked,
        sites=_site_facts(stream, tensors),
        n_parameters=sum(p.numel() for p in root.parameters()),
        was_training=root.training,
        training=() if root.training else tuple(_left_in_training(modules)),
        batch_norm=tuple(_without_statistics(modules)),
        never_ran=tuple(u for u in idle if u not in experts),
        experts=tuple(experts),
        n_experts=sum(1 for name in modules if _is_expert(name)),
        n_tokens=n_tokens,
        routed=any(_is_routed(name) for name in modules),
        pools=_pools(stream),
        task=stream.model.task,
        padding_side=getattr(stream.model.processor, "padding_side", None) or "right",
    )


def _one_forward(stream: LiveStream, seed: int) -> tuple[set[int] | None, dict[str, Tensor], int]:
    """Return the storages that one forward touched, raw tensors at and before sites, and tokens."""
    small = small_batches(stream, seed).evened()
    if len(small) == 0:
        return None, {}, 0
    batch = small.together()
    sites = [k.site for k in stream.kinds if "|" not in k.key and k.site.port != "grad"]
    entering = [Site(s.path, s.call, "in") for s in sites if s.port == "out"]
    touched = _Touched()
    with untouched(stream.model.module):
        watched = watch(stream.model.module, batch, [*sites, *entering], around=touched)
    return touched.storages, watched.tensors, len(small) * (token_length(batch) or 1)


class _Touched(TorchDispatchMode):
    """Remembers the memory of every tensor that an operation received."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self.storages.add(_storage(leaf))
        return func(*args, **(kwargs or {}))


def _storage(x: Tensor) -> int:
    try:
        return x.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


def _unused(stream: LiveStream, used: set[int]) -> Iterator[Unused]:
    """Yield the outermost modules of which no parameter was touched."""
    names = stream.probe.names
    paths = [(n, m) for n, m in names.primary() if n]
    silent: dict[str, int] = {}
    for name, module in paths:
        own = [p for p in module.parameters() if p.device.type != "meta" and p.numel()]
        if own and not any(_storage(p) in used for p in own):
            silent[name] = sum(p.numel() for p in {id(p): p for p in own}.values())
    for name, count in silent.items():
        parent = name.rpartition(".")[0]
        if parent not in silent and not _is_unasked(name):
            yield Unused(name, count)


def _is_unasked(name: str) -> bool:
    return name.count(".") <= 1 and any(word in name.lower() for word in UNASKED)


def _is_routed(name: str) -> bool:
    return any(word in name.lower() for word in ROUTERS)


def _is_expert(name: str) -> bool:
    parent, _, last = name.rpartition(".")
    return last.isdigit() and parent.rpartition(".")[2].lower().endswith("experts")


def _left_in_training(modules: Mapping[str, nn.Module]) -> Iterator[str]:
    flagged = [name for name, m in modules.items() if m.training and _differs_in_training(m)]
    yield from flagged
    for name, module in modules.items():
        own = type(module)
        inside = f"{name}." if name else ""
        is_own = module.training and not own.__module__.startswith("torch.nn")
        is_told = any(f.startswith(inside) for f in flagged)
        if is_own and not is_told and _asks_for_mode(module):
            yield name


def _differs_in_training(module: nn.Module) -> bool:
    if isinstance(module, DROPOUTS):
        return module.p > 0
    if isinstance(module, BATCH_NORMS):
        return module.track_running_stats or module.running_mean is not None
    if isinstance(module, nn.RNNBase):
        return module.dropout > 0
    if isinstance(module, nn.MultiheadAttention):
        return module.dropout > 0
    return isinstance(module, nn.RReLU)


def _asks_for_mode(module: nn.Module) -> bool:
    """Return whether a module's own forward reads its training flag."""
    try:
        return "self.training" in inspect.getsource(type(module).forward)
    except (OSError, TypeError):
        return False


def _without_statistics(modules: Mapping[str, nn.Module]) -> Iterator[str]:
    for name, module in modules.items():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            yield name


def _pools(stream: LiveStream) -> bool:
    """Return whether the model's answer has one row for an example whose states have several."""
    if stream.model.task == "causal":
        return False
    leaves = stream.probe.output.values()
    shapes = [leaf.shape for leaf in leaves if leaf.dtype.is_floating_point]
    return bool(shapes) and len(shapes[0]) == 2


def _site_facts(stream: LiveStream, tensors: Mapping[str, Tensor]) -> dict[str, SiteFacts]:
    found: dict[str, SiteFacts] = {}
    before: Tensor | None = None
    for kind in stream.kinds:
        site = kind.site
        if "|" in kind.key:
            continue
        module = stream.probe.names.modules[site.path]
        received = tensors.get(str(Site(site.path, site.call, "in")))
        found[kind.key] = SiteFacts(
            n_parameters=sum(p.numel() for p in module.parameters()),
            follows=site.port == "out" and _same_numbers(before, received),
            ends=_ends(module),
            is_linear=isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D",
            is_first=not found,
        )
        before = tensors.get(str(site))
    return found


def _same_numbers(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None or a.numel() != b.numel() or a.dtype != b.dtype:
        return False
    return torch.equal(a.flatten(), b.flatten())


def _ends(module: nn.Module) -> tuple[float, float] | None:
    if isinstance(module, nn.Hardtanh):
        low, high = float(module.min_val), float(module.max_val)
        return (low, high) if math.isfinite(low) and math.isfinite(high) else None
    return (0.0, 1.0) if isinstance(module, nn.Hardsigmoid) else None
