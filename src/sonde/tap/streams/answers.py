"""Answers of a model to one batch: log-probabilities of classes or next tokens, and truth."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.core.inputs import InputBatch, Model
from sonde.tap.hooks.outputs import find
from sonde.tap.hooks.session import Session
from sonde.tap.model.input_types import place_of
from sonde.tap.model.vary import token_ids


@dataclass(frozen=True, eq=False)
class Answers:
    """Answers of a classifier for each example, or of a language model for each token.

    Parameters
    ----------
    log_p : Float[Tensor, "answer classes"]
        Log-probabilities in nats, at least float32.
    truth : Int[Tensor, "answer"]
        The class or the token that is right; -1 where there is no label.
    example : Int[Tensor, "answer"]
        Index of the example in the batch.
    """

    log_p: Float[Tensor, "answer classes"]
    truth: Int[Tensor, "answer"]
    example: Int[Tensor, "answer"]

    def per_example(self, values: Float[Tensor, "answer"], n: int) -> Float[Tensor, "example"]:
        """Return the mean over each example's answers, or NaN without answers."""
        known = self.truth >= 0
        where, wide = self.example[known], values[known].double()
        total = torch.zeros(n, dtype=torch.float64).index_add_(0, where, wide)
        return total / torch.zeros_like(total).index_add_(0, where, torch.ones_like(wide))

    @property
    def has_classes(self) -> bool:
        """Whether there are two classes or more, and every label is one of them."""
        n_classes = self.log_p.shape[1]
        return n_classes > 1 and not bool((self.truth >= n_classes).any())

    @property
    def log_p_of_truth(self) -> Float[Tensor, "answer"]:
        """The log-probability of the truth, or 0 if the truth is unknown.

        Raises
        ------
        InputError
            If a label is no class of the model.
        """
        if not self.has_classes:
            raise InputError(
                f"answers: expected labels below {self.log_p.shape[1]}, the number of the model's "
                f"classes, got {int(self.truth.max())}. Numbers that are no classes are read with "
                "target_column (--target-column)."
            )
        found = self.log_p.gather(1, self.truth.clamp(min=0)[:, None])[:, 0]
        return torch.where(self.truth >= 0, found, torch.zeros_like(found))


def answers(model: Model, module: nn.Module, batch: InputBatch, logits: str | None) -> Answers:
    """Run a module on a batch and return its answers.

    Parameters
    ----------
    model : Model
        Whose inputs the batch holds.
    module : nn.Module
        What is run: the model's own module, or a changed copy of it. Edits that are open act.
    batch : InputBatch
    logits : str or None
        Which output holds the logits.

    Raises
    ------
    InputError
        If the model has no logits, or gives them in a form that is not known.
    """
    with Session(module) as session:
        output = session.run(*place_of(module, batch).call(batch.args, batch.kwargs))
    return answers_in(output, model, module, batch, logits)


def answers_in(
    output: Any, model: Model, module: nn.Module, batch: InputBatch, logits: str | None
) -> Answers:
    """Return the answers in an output, with its autograd graph if it has one.

    Parameters
    ----------
    output
        What the module returned for the batch.
    model, module, batch, logits
        As in ``answers``.

    Raises
    ------
    InputError
        If the model has no logits, or gives them in a form that is not known.
    """
    found = None if logits is None else find(output, logits)
    if found is None:
        raise InputError(
            f"answers: {type(module).__name__} returns no logits, so its answers are unknown. "
            "Use a classifier or a language model."
        )
    wide = found if found.dtype == torch.float64 else found.float()
    n = len(batch)
    if found.ndim == 2:
        label = batch.label.clone()
        return Answers(_log_p_of_classes(wide.cpu(), label), label, torch.arange(n))
    log_p = torch.log_softmax(wide.cpu(), dim=-1)
    axis = "pos2" if batch.decoder_mask is not None or model.task == "seq2seq" else "pos"
    ids = token_ids(batch, axis)
    if found.ndim != 3 or ids is None or ids.shape != found.shape[:2]:
        raise InputError(
            f"answers: expected logits of (example, classes) or (example, token, vocabulary), got "
            f"{tuple(found.shape)}. Name the output that holds them."
        )
    mask = batch.decoder_mask if axis == "pos2" else batch.mask
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.cpu()
    asked = real if batch.placeholder is None or axis == "pos2" else real & ~batch.placeholder
    example, place = (asked[:, 1:] & real[:, :-1]).nonzero(as_tuple=True)
    return Answers(log_p[example, place], ids.cpu()[example, place + 1], example)


def _log_p_of_classes(
    logits: Float[Tensor, "row class"], label: Int[Tensor, "row"]
) -> Float[Tensor, "row class2"]:
    """Return log-probabilities of classes; a single logit of labelled rows says two classes.

    Single numbers that all lie in [0, 1] are taken as a sigmoid's probabilities. Without labels a
    single number may be the answer of a regression, and stays one column.
    """
    if logits.shape[1] != 1 or not bool((label >= 0).any()):
        return torch.log_softmax(logits, dim=-1)
    if bool(((logits >= 0) & (logits <= 1)).all()):
        return torch.cat([1 - logits, logits], 1).clamp(min=torch.finfo(logits.dtype).tiny).log()
    return torch.nn.functional.logsigmoid(torch.cat([-logits, logits], 1))
