"""Named scalars of outputs whose gradients port ``grad`` reads: sums over examples."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError, near
from sonde.core.inputs import InputBatch

NAMES = ("kl_uniform", "max_logit", "nll")
Objective = str | Callable[[Any, InputBatch], Tensor]


def kl_uniform(logits: Float[Tensor, "example class"]) -> Float[Tensor, ""]:
    """Return the sum over examples of ``KL(uniform || softmax(logits))`` in nats.

    Parameters
    ----------
    logits : Float[Tensor, "example class"]
        Logits of each example.
    """
    n_classes = logits.shape[-1]
    logs = torch.log_softmax(logits, dim=-1)
    constant = torch.log(torch.tensor(float(n_classes), dtype=logits.dtype, device=logits.device))
    return -(logs.mean(dim=-1) + constant).sum()


def max_logit(logits: Float[Tensor, "example class"]) -> Float[Tensor, ""]:
    """Return the sum over examples of the largest logit.

    Parameters
    ----------
    logits : Float[Tensor, "example class"]
        Logits of each example.
    """
    return logits.amax(dim=-1).sum()


def nll(logits: Float[Tensor, "example class"], label: Tensor) -> Float[Tensor, ""]:
    """Return the sum over labelled examples of the negative log likelihood in nats.

    Parameters
    ----------
    logits : Float[Tensor, "example class"]
        Logits of each example.
    label : Tensor
        Class of each example; -1 for none.
    """
    is_known = (label >= 0).to(logits.device)
    logs = torch.log_softmax(logits, dim=-1)
    picked = logs.gather(1, label.clamp(min=0).to(logits.device)[:, None])[:, 0]
    return -(picked * is_known).sum()


def check_objective(objective: Objective | None) -> None:
    """Raise if ``objective`` is neither a known name nor callable."""
    if objective is None or callable(objective) or objective in NAMES:
        return
    raise InputError(
        f"objective: expected one of {', '.join(NAMES)} or a callable (outputs, batch) -> scalar, "
        f"got {objective!r}." + near(str(objective), NAMES)
    )


def value(
    objective: Objective, outputs: Any, logits: Tensor | None, batch: InputBatch
) -> Float[Tensor, ""]:
    """Return the scalar whose gradient is read.

    Raises
    ------
    InputError
        If a named objective finds no logits of the examples, ``nll`` no labels, or a callable
        returns no scalar.
    """
    if callable(objective):
        scalar = objective(outputs, batch)
        if not isinstance(scalar, Tensor) or scalar.numel() != 1:
            raise InputError(
                "objective: expected a scalar tensor (a sum over the examples), "
                f"got {getattr(scalar, 'shape', type(scalar).__name__)}."
            )
        return scalar.reshape(())
    if logits is None and "decoder_input_ids" in batch.kwargs:
        raise InputError(
            f"objective {objective!r}: expected a prediction for each example, got predictions "
            "of all target tokens of an encoder-decoder, none of which stands for the example. "
            "In Python, choose the prediction by a callable (outputs, batch) -> scalar as "
            "objective= of sonde.read: for instance sonde.tap.kl_uniform of outputs.logits[:, "
            "0]."
        )
    if logits is None:
        raise InputError(
            f"objective {objective!r}: expected a model with logits, found none. "
            "Pass a callable (outputs, batch) -> scalar."
        )
    if objective == "nll":
        if not bool((batch.label >= 0).any()):
            raise InputError(
                "objective 'nll': expected labels, but this batch has none. Give data with labels."
            )
        return nll(logits, batch.label)
    return kl_uniform(logits) if objective == "kl_uniform" else max_logit(logits)


def name_of(objective: Objective | None) -> str | None:
    """Return the name of an objective for headers."""
    if objective is None or isinstance(objective, str):
        return objective
    return f"{objective.__module__}:{objective.__qualname__}"
