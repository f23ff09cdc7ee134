"""The layers of a language model after its last block: the final norm and the head."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.inputs import InputBatch
from sonde.core.site import Site
from sonde.tap.model.probe import Probe, find_logits
from sonde.tap.model.watch import watch

REPRODUCED = 1e-3
Readout = Callable[[Tensor], Tensor]


def head_module(probe: Probe) -> nn.Module | None:
    """Return the layer that gives the logits, or None."""
    inner = probe.names.modules[""]
    get = getattr(inner, "get_output_embeddings", None)
    given = get() if callable(get) else None
    if isinstance(given, nn.Module):
        return given
    return None if probe.head is None else probe.names.modules[probe.head]


def readout(
    root: nn.Module, probe: Probe, head: nn.Module, last: Site, text: InputBatch
) -> Readout | None:
    """Return the map from states of the model's last block to its logits.

    None if the modules in between and the head do not reproduce the logits of a text.
    """
    between = modules_between(probe, head, last)
    if between is None:
        return None

    def decode(states: Float[Tensor, "row dim"]) -> Float[Tensor, "row token"]:
        states = states[None].to(usual.device)
        with _reading([*between, head]):
            for module in between:
                states = module(states)
            return head(states)[0]

    watched = watch(root, text, [last])
    logits = find_logits(watched.output)
    if logits is None or logits.ndim != 3 or str(last) not in watched.tensors:
        return None
    usual = watched.tensors[str(last)][0]
    try:
        again = decode(usual).detach().to(logits)
    except Exception:  # what ran between takes more than states
        return None
    gap = (again - logits[0]).abs().max() if again.shape == logits[0].shape else math.inf
    limit = REPRODUCED * float(logits[0].detach().std()) + 1e-6
    return decode if float(gap) <= limit else None


@contextmanager
def _reading(parts: Sequence[nn.Module]) -> Iterator[None]:
    modes = [(m, m.training) for part in parts for m in part.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def modules_between(probe: Probe, head: nn.Module, last: Site) -> list[nn.Module] | None:
    """Return the outermost modules that ran after the last block and before the head, in order."""
    path = probe.names.canonical.get(id(head))
    if path is None or probe.calls(path) == 0:
        return None
    start = probe.order(last.path, last.call if isinstance(last.call, int) else 0, "out")
    stop = probe.order(path, 0, "in")
    inside = [
        (call.start, call.end, name)
        for name, calls in probe.trace.items()
        for call in calls
        if start < call.start and call.end < stop
    ]
    inside.sort()
    between: list[nn.Module] = []
    end = -1
    for first, finish, name in inside:
        if first > end:
            between.append(probe.names.modules[name])
            end = finish
    return between
