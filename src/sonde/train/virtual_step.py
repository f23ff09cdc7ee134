"""Take a step of gradient descent that stays a function of what its loss depends on."""

import torch
from torch import Tensor, nn

from sonde.core.errors import InputError


def virtual_step(module: nn.Module, loss: Tensor, rate: float) -> dict[str, Tensor]:
    """Return a module's parameters after one step of gradient descent, without changing them.

    ``p - rate d loss / d p``. The result is differentiable: a second loss of the stepped module,
    run by ``torch.func.functional_call``, has gradients for everything that took part in the first
    loss. So the maps of ``LearnedViews`` are updated by what they do to the encoder's next step.

    Cost         one backward pass, whose graph the second loss passes through again.
    Assumes      a plain step without momentum, and operations that can be differentiated twice.

    Parameters
    ----------
    module : nn.Module
        Parameters that need no gradient, or are no part of the loss, are returned as they are.
    loss : Tensor
        A number.
    rate : float
        Step size of gradient descent.

    Examples
    --------
    >>> net, scale = nn.Linear(1, 1, bias=False), torch.tensor(2.0, requires_grad=True)
    >>> _ = nn.init.ones_(net.weight)
    >>> stepped = virtual_step(net, (scale * net.weight).sum(), rate=0.1)
    >>> stepped["weight"].sum().backward()
    >>> round(stepped["weight"].item(), 3), round(scale.grad.item(), 3)
    (0.8, -0.1)

    References
    ----------
    qin2023mclrec
    """
    named = dict(module.named_parameters())
    free = {name: p for name, p in named.items() if p.requires_grad}
    if loss.numel() != 1 or not loss.requires_grad or not free:
        raise InputError(
            "virtual_step: expected one number that depends on parameters of the module, got "
            f"{loss.numel()} numbers {'with' if loss.requires_grad else 'without'} a gradient and "
            f"{len(free)} parameters that need one."
        )
    slopes = torch.autograd.grad(loss.sum(), [*free.values()], create_graph=True, allow_unused=True)
    pairs = zip(free.items(), slopes, strict=True)
    moved = {name: p if g is None else p - rate * g for (name, p), g in pairs}
    return {**named, **moved}
