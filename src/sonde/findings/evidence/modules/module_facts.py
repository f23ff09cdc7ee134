"""Facts about modules: flags, parts that never run, and the modules at the sites."""

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from sonde.core.repacking import count_weights
from sonde.core.site import Site
from sonde.findings.evidence.modules.small_forwards import Trials
from sonde.findings.evidence.modules.unused_modules import Silent, Unused
from sonde.findings.evidence.record import Evidence
from sonde.findings.self_check import SelfCheck, self_check
from sonde.tap import LiveStream
from sonde.tap.streams.padding_sides import padding_side

BATCH_NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
DROPOUTS = (nn.modules.dropout._DropoutNd,)
ROUTERS = ("router", "expert", "moe")


@dataclass(frozen=True)
class SiteFacts:
    """Properties of the module at a site.

    Parameters
    ----------
    n_parameters : int
        Its parameters and those of its children.
    follows : bool
        Whether it works on exactly the numbers that the site before it returned.
    ends : (float, float) or None
        Where its output is cut off, for ReLU6 and its kin.
    n_inputs : int or None
        How many numbers a linear layer reads for one row, token or point; None for others.
    is_first : bool
        Whether no site is read before it.
    n_channels : int or None
        How many channels a convolution reads, also at the batch norm that follows it.
    is_input : bool
        Whether its output is the model's input in another shape, as behind a Flatten.
    """

    n_parameters: int = 0
    follows: bool = False
    ends: tuple[float, float] | None = None
    n_inputs: int | None = None
    is_first: bool = False
    n_channels: int | None = None
    is_input: bool = False


@dataclass(frozen=True, eq=False)
class ModelEvidence:
    """Facts about a live model, in addition to its states.

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
    silent : Silent or None
        Modules that no forward has used so far; None if no row could be run.
    n_experts : int
    routed : bool
        Whether the model has a router.
    pools : bool
        Whether the model gives a single answer for all tokens of an example.
    task : str
    padding_side : {"left", "right"}
        Where texts are padded: as they came, or as the model's processor pads.
    n_numbers : int or None
        How many floating-point numbers an input holds; None if it holds other numbers, such as ids.
    """

    self_check: SelfCheck
    sites: Mapping[str, SiteFacts] = field(default_factory=dict)
    n_parameters: int = 0
    was_training: bool = False
    training: tuple[str, ...] = ()
    batch_norm: tuple[str, ...] = ()
    silent: Silent | None = None
    n_experts: int = 0
    routed: bool = False
    pools: bool = False
    task: str = "tensor"
    padding_side: str = "right"
    n_numbers: int | None = None

    @property
    def never_ran(self) -> list[Unused]:
        """Modules with parameters that no forward pass used, except experts and routers."""
        return [u for u in self._unused if not _is_routed(u.path)]

    @property
    def experts(self) -> list[Unused]:
        """Experts and routers that no forward pass used."""
        return [u for u in self._unused if _is_routed(u.path)]

    @property
    def _unused(self) -> list[Unused]:
        return [] if self.silent is None else self.silent.unused()


def read_modules(stream: LiveStream, evidence: Evidence) -> ModelEvidence:
    """Return facts about the modules, as a part of the evidence."""
    return model_evidence(stream, evidence.data.seed, evidence.deep)


def in_training_mode(evidence: Evidence) -> Sequence[str]:
    """Return the paths of modules in training mode; none if no model is known."""
    model = evidence.get(read_modules)
    return () if model is None else model.training


def site_facts(evidence: Evidence) -> Mapping[str, SiteFacts]:
    """Return what is known of the module of each site, by its key; {} if no model is known."""
    model = evidence.get(read_modules)
    return {} if model is None else model.sites


def model_evidence(stream: LiveStream, seed: int = 0, deep: bool = False) -> ModelEvidence:
    """Return facts about the model of a stream; runs a few small forward passes."""
    root = stream.model.module
    modules = stream.probe.names.modules
    trials = Trials(stream)
    checked = self_check(stream, seed, deep, trials)
    return ModelEvidence(
        self_check=checked,
        sites=_site_facts(stream, trials.tensors),
        n_parameters=count_weights(root),
        was_training=root.training,
        training=() if root.training else tuple(_left_in_training(modules)),
        batch_norm=tuple(_without_statistics(modules)),
        silent=trials.silent if checked.n_rows else None,
        n_experts=sum(1 for name in modules if _is_expert(name)),
        routed=any(_is_routed(name) for name in modules),
        pools=_pools(stream),
        task=stream.model.task,
        padding_side=padding_side(stream),
        n_numbers=trials.n_numbers,
    )


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
    """Return whether a module's own forward method reads its training flag."""
    try:
        return "self.training" in inspect.getsource(type(module).forward)
    except (OSError, TypeError):
        return False


def _without_statistics(modules: Mapping[str, nn.Module]) -> Iterator[str]:
    for name, module in modules.items():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            yield name


def _pools(stream: LiveStream) -> bool:
    """Return whether the model returns a single row of numbers for each example."""
    if stream.model.task == "causal":
        return False
    leaves = stream.probe.output.values()
    shapes = [leaf.shape for leaf in leaves if leaf.dtype.is_floating_point]
    return bool(shapes) and len(shapes[0]) == 2


def _site_facts(stream: LiveStream, tensors: Mapping[str, Tensor]) -> dict[str, SiteFacts]:
    facts_of: dict[str, SiteFacts] = {}
    before: Tensor | None = None
    n_channels: int | None = None
    is_input = True
    for kind in stream.kinds:
        site = kind.site
        if "|" in kind.key:
            continue
        module = stream.probe.names.modules[site.path]
        received = tensors.get(str(Site(site.path, site.call, "in")))
        follows = site.port == "out" and _same_numbers(before, received)
        n_channels = (
            n_channels if follows and isinstance(module, BATCH_NORMS) else _channels(module)
        )
        own = tensors.get(str(site))
        is_input = is_input and (follows or not facts_of) and _same_numbers(received, own)
        facts_of[kind.key] = SiteFacts(
            n_parameters=count_weights(module),
            follows=follows,
            ends=_ends(module),
            n_inputs=_inputs(module, received),
            is_first=not facts_of,
            n_channels=n_channels,
            is_input=is_input,
        )
        before = own
    return facts_of


def _channels(module: nn.Module) -> int | None:
    return module.in_channels if isinstance(module, nn.modules.conv._ConvNd) else None


def _inputs(module: nn.Module, received: Tensor | None) -> int | None:
    is_linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    return received.shape[-1] if is_linear and received is not None else None


def _same_numbers(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None or a.numel() != b.numel() or a.dtype != b.dtype:
        return False
    return torch.equal(a.flatten(), b.flatten())


def _ends(module: nn.Module) -> tuple[float, float] | None:
    if isinstance(module, nn.Hardtanh):
        low, high = float(module.min_val), float(module.max_val)
        return (low, high) if math.isfinite(low) and math.isfinite(high) else None
    return (0.0, 1.0) if isinstance(module, nn.Hardsigmoid) else None
