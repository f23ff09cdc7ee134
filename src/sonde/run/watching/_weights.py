"""The weights of a guarded model: whether they are still those that the probe was compared with."""

from torch import Tensor, nn

from sonde.tap.model.parts import active_adapters


class HeldWeights:
    """The parameters and active adapters of a model at one moment, and what is another by now.

    ``torch.func.functional_call`` exchanges parameters for one call; an optimiser, a loaded state
    dictionary and ``copy_`` change them in place. Both are seen without reading a number: by the
    tensor's identity and by its version counter. Tensors of a subclass and on ``meta`` are left
    out: sharded and offloaded models exchange them in every forward.

    Parameters
    ----------
    module : nn.Module

    Examples
    --------
    >>> import torch
    >>> net = nn.Linear(2, 1)
    >>> held = HeldWeights(net)
    >>> held.changed()
    ''
    >>> with torch.no_grad():
    ...     _ = net.bias.add_(1)
    >>> held.changed()
    'the weight bias was changed, or exchanged for this call'
    """

    def __init__(self, module: nn.Module) -> None:
        self._held = [
            (f"{path}.{name}" if path else name, owner._parameters, name, tensor, _version(tensor))
            for path, owner in module.named_modules()
            for name, tensor in owner._parameters.items()
            if isinstance(tensor, Tensor)
            if type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta
        ]

        self._tuned = [part for part in module.modules() if "_active_adapter" in vars(part)]
        self._adapters = active_adapters(self._tuned)

    def changed(self) -> str:
        """Return what was changed, as words: a weight or the adapters; empty if nothing was."""
        for path, now, name, tensor, version in self._held:
            if now.get(name) is not tensor or _version(tensor) != version:
                return f"the weight {path} was changed, or exchanged for this call"
        adapters = active_adapters(self._tuned) if self._tuned else ""
        if adapters != self._adapters:
            return f"adapter {adapters} is active, and was {self._adapters}"
        return ""


def _version(tensor: Tensor) -> int:
    """Return how often a tensor was changed in place; inference tensors do not count."""
    return -1 if tensor.is_inference() else tensor._version
