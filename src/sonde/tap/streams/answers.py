"""Answers of a model to one batch: log-probabilities of classes or next tokens, and truth."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.core.inputs import InputBatch, Model
from sonde.core.operations import OperationMode
from sonde.tap.hooks.holding import in_eval
from sonde.tap.hooks.outputs import find
from sonde.tap.hooks.session import Session
from sonde.tap.model.input_types import place_of
from sonde.tap.model.vary import token_ids

FEW = 20
"""So many single logits do not all lie in [0, 1] by chance; fewer may."""


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
        is_known = self.truth >= 0
        where, wide = self.example[is_known], values[is_known].double()
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
        if bool((self.truth >= self.log_p.shape[1]).any()):
            raise InputError(
                f"answers: expected labels below {self.log_p.shape[1]}, the number of the model's "
                f"classes, got {int(self.truth.max())}. Numbers that are no classes are read with "
                "target_column (--target-column)."
            )
        picked = self.log_p.gather(1, self.truth.clamp(min=0)[:, None])[:, 0]
        return torch.where(self.truth >= 0, picked, torch.zeros_like(picked))


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
    tensor = None if logits is None else find(output, logits)
    if tensor is None:
        raise InputError(
            f"answers: {type(module).__name__} returns no logits, so its answers are unknown. "
            "Use a classifier or a language model."
        )
    wide = tensor if tensor.dtype == torch.float64 else tensor.float()
    n = len(batch)
    if tensor.ndim == 2:
        label, rows = batch.label.clone(), wide.cpu()
        # without labels a single number may be the answer of a regression: it stays one column
        if tensor.shape[1] == 1 and bool((label >= 0).any()):
            log_p = _log_p_of_two(rows, _are_probabilities(rows, module, batch, logits))
        else:
            log_p = torch.log_softmax(rows, dim=-1)
        return Answers(log_p, label, torch.arange(n))
    log_p = torch.log_softmax(wide.cpu(), dim=-1)
    axis = "pos2" if batch.decoder_mask is not None or model.task == "seq2seq" else "pos"
    ids = token_ids(batch, axis)
    if tensor.ndim != 3 or ids is None or ids.shape != tensor.shape[:2]:
        raise InputError(
            f"answers: expected logits of (example, classes) or (example, token, vocabulary), got "
            f"{tuple(tensor.shape)}. Name the output that holds them."
        )
    mask = batch.decoder_mask if axis == "pos2" else batch.mask
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.cpu()
    asked = None if axis == "pos2" else batch.asked
    wanted = real if asked is None else real & asked.cpu()
    example, place = (wanted[:, 1:] & real[:, :-1]).nonzero(as_tuple=True)
    return Answers(log_p[example, place], ids.cpu()[example, place + 1], example)


def _log_p_of_two(single: Float[Tensor, "row 1"], given: bool) -> Float[Tensor, "row 2"]:
    """Return log-probabilities of two classes from probabilities (``given``) or logits."""
    if given:
        return torch.cat([1 - single, single], 1).clamp(min=torch.finfo(single.dtype).tiny).log()
    return torch.nn.functional.logsigmoid(torch.cat([-single, single], 1))


def _are_probabilities(
    single: Float[Tensor, "row 1"], module: nn.Module, batch: InputBatch, logits: str | None
) -> bool:
    """Return whether single numbers are probabilities: all in [0, 1], and not by chance.

    Logits of few rows may all lie in [0, 1]. Then the batch is run again, and its numbers must be
    those that a sigmoid returned.
    """
    if not bool(((single >= 0) & (single <= 1)).all()):
        return False
    if len(single) >= FEW:
        return True
    call = place_of(module, batch).call(batch.args, batch.kwargs)
    with (
        in_eval(module),
        torch.no_grad(),
        _Sigmoids(len(single)) as seen,
        Session(module) as session,
    ):
        output = session.run(*call)
    again = None if logits is None else find(output, logits)
    return again is not None and any(torch.equal(x, again.flatten().cpu()) for x in seen.outputs)


class _Sigmoids(OperationMode):
    """Records the outputs of sigmoids that hold one number for each of ``n`` rows."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.outputs = n, list[Tensor]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if "sigmoid" in func.name() and isinstance(result, Tensor) and result.numel() == self.n:
            self.outputs.append(result.detach().flatten().cpu().clone())
        return result
