"""The number that is explained for each example, with its name."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core._kinds import is_list, is_tuple
from sonde.core.errors import InputError
from sonde.core.ranges import check_ranges
from sonde.core.wording import plural
from sonde.data.sentence_encoder import EMBEDDING
from sonde.tap.hooks.outputs import leaves
from sonde.tap.streams.site_function import SiteFunction

MAP = 4
"""Axes of a map of logits."""
Kind = Literal["logit", "log_prob", "prob", "margin", "answer", "output"]
Target = int | Sequence[int] | Tensor | Literal["predicted"]


@final
@dataclass(frozen=True, eq=False)
class Objective:
    """The number that is explained, computed for each example from the model's output.

    ``logit`` of the target; its ``log_prob`` or ``prob``; the ``margin`` by which its logit exceeds
    that of ``other`` (by default the largest of the others); ``answer``, for language models, the
    log-probability of the last ``length`` tokens of the text together; ``output``, for models with
    one output, that output itself. For such models ``logit``, ``log_prob`` and ``prob`` become
    ``output``. A target of a language model is the token that comes after the last real token.
    Of a map of logits (row, class, height, width) a target is a class over the pixels that the
    model gives it, by default the class of most pixels, or the class of one ``pixel``.

    Parameters
    ----------
    kind : {"logit", "log_prob", "prob", "margin", "answer", "output"}, default="logit"
        Which number is explained.
    target : "predicted", int, or ints (row,), default="predicted"
        Class or token; ``predicted`` is the likeliest for the inputs as they are.
    other : int, ints (row,) or None, default=None
        Class that is subtracted for ``margin``; None takes the largest of the others.
    length : int, default=1
        Number of last tokens that ``answer`` counts.
    output : str or None, default=None
        Which output holds the logits; None is ``logits``, or the only one that can.
    pixel : (int, int) or None, default=None
        Line and column of the one pixel of a map that is explained.

    Examples
    --------
    >>> logits = torch.tensor([[1.0, 3.0], [2.0, 0.0]])
    >>> Objective("margin").fixed(logits).of(logits).tolist()
    [2.0, 2.0]
    """

    kind: Kind = "logit"
    target: Target = "predicted"
    other: int | Sequence[int] | Tensor | None = None
    length: int = 1
    output: str | None = None
    pixel: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_ranges(self, kind=get_args(Kind), length=">= 1")
        check_target(self.target)

    @property
    def name(self) -> str:
        """Name of the objective in results."""
        if self.kind == "answer":
            return f"log-probability of the last {plural(self.length, 'token')}"
        if self.kind == "output":
            return "output"
        target = self.target if isinstance(self.target, int | str) else "given"
        where = "" if self.pixel is None else f" at pixel {self.pixel[0]}, {self.pixel[1]}"
        return f"{self.kind}[{target}]{where}"

    def at(self, function: SiteFunction) -> "FixedObjective":
        """Return the objective with its targets fixed for a model's inputs.

        Raises
        ------
        InputError
            If a target is no class of the model, or an answer is longer than its text.
        """
        fed, mask = function.call.fed, function.call.mask
        return self.fixed(function.outputs, fed, mask)

    def fixed(
        self, outputs: Any, tokens: Tensor | None = None, mask: Tensor | None = None
    ) -> "FixedObjective":
        """Return the objective with its targets taken from the unchanged outputs."""
        key, logits = self._found(outputs)
        named = replace(self, output=key)
        if logits.ndim == MAP:
            pixels = named._pixels(logits.detach())
            fixed = named._at(_over(logits.detach(), pixels), None, None)
            return replace(fixed, pixels=pixels)
        if self.pixel is not None:
            raise InputError(
                "Objective: expected a map of logits (row, class, height, width) for pixel=, "
                f"got {tuple(logits.shape)}. Leave pixel out."
            )
        return named._at(logits.detach(), tokens, mask)

    def _pixels(self, logits: Float[Tensor, "row class h w"]) -> Float[Tensor, "row h w"]:
        """Return the weight of each pixel: one pixel, the pixels of the class, or all pixels."""
        n, n_classes, height, width = logits.shape
        if self.pixel is not None:
            i, j = self.pixel
            if not (0 <= i < height and 0 <= j < width):
                raise InputError(
                    f"Objective: expected a pixel of a map of {height} x {width}, got {self.pixel}."
                )
            one = logits.new_zeros(n, height, width)
            one[:, i, j] = 1.0
            return one
        tops = logits.argmax(1)
        if isinstance(self.target, str):
            counts = torch.nn.functional.one_hot(tops.flatten(1), n_classes).sum(1)
            target = counts.argmax(1)
        else:
            target = _indices(self.target, n, n_classes).to(tops.device)
        own = (tops == target[:, None, None]).to(logits)
        own[own.sum((1, 2)) == 0] = 1.0  # a class that no pixel has is asked for over all
        return own / own.sum((1, 2), keepdim=True)

    def _at(self, logits: Tensor, tokens: Tensor | None, mask: Tensor | None) -> "FixedObjective":
        n = len(logits)
        last = None
        if logits.ndim == 3:
            real = torch.ones(logits.shape[:2]) if mask is None else mask
            last = (real.to(logits.device).cumsum(1).argmax(1)).long()
        if self.kind == "answer":
            return self._answer(logits, tokens, last)
        row = logits if last is None else logits[torch.arange(n), last]
        if row.ndim != 2:
            raise InputError(
                f"Objective: expected logits of (row, class), got {tuple(logits.shape)}. Name the "
                "output that holds them: Objective(output=...)."
            )
        if row.shape[1] == 1:
            return self._one_output(row, last)
        if self.kind == "output":
            raise InputError(
                f"Objective: expected a model with a single output, got {row.shape[1]} outputs. "
                "Take kind='logit'."
            )
        best = row.argmax(1)
        target = best if isinstance(self.target, str) else _indices(self.target, n, row.shape[1])
        other = None
        if self.kind == "margin":
            rest = row.scatter(1, target.to(row.device)[:, None], -torch.inf)
            other = rest.argmax(1) if self.other is None else _indices(self.other, n, row.shape[1])
        return FixedObjective(self, target.to(row.device), other, last)

    def _one_output(self, row: Tensor, last: Tensor | None) -> "FixedObjective":
        """Return the objective that reads the only output directly; its softmax is always 1."""
        if self.kind in ("margin", "answer"):
            raise InputError(
                f"Objective: a {self.kind} needs two classes or more, got a model with a single "
                "output. Take kind='output'."
            )
        if not isinstance(self.target, str):
            _indices(self.target, len(row), 1)
        zero = torch.zeros(len(row), dtype=torch.int64, device=row.device)
        return FixedObjective(replace(self, kind="output"), zero, None, last)

    def _answer(
        self, logits: Tensor, tokens: Tensor | None, last: Tensor | None
    ) -> "FixedObjective":
        if tokens is None or last is None or tokens.shape != logits.shape[:2]:
            raise InputError(
                "Objective: answer= needs a language model with input_ids, got logits of shape "
                f"{tuple(logits.shape)}. Take kind='logit'."
            )
        if int(last.min()) < self.length:
            raise InputError(
                f"Objective: an answer of {self.length} tokens needs a prompt of one token or more "
                f"before it, the shortest text has {int(last.min()) + 1}."
            )
        places = last[:, None] - torch.arange(self.length, device=last.device).flip(0)
        target = tokens.to(last.device).gather(1, places)
        return FixedObjective(self, target, None, places - 1)

    def _logits(self, outputs: Any) -> Float[Tensor, "row ..."]:
        logits = self._found(outputs)[1]
        if logits.ndim == MAP:
            raise InputError(
                f"expected logits of (row, class), got a map of shape {tuple(logits.shape)}. "
                "Use a gradient method instead: Saliency, IntegratedGradients."
            )
        return logits

    def _found(self, outputs: Any) -> tuple[str, Float[Tensor, "row ..."]]:
        """Return the name of the output that holds the logits, and the logits."""
        every = leaves(outputs)
        able = [k for k, x in every.items() if x.is_floating_point() and x.ndim in (1, 2, 3, MAP)]
        wanted = self.output if self.output is not None else "logits"
        if wanted not in every and self.output is None and len(able) == 1:
            wanted = able[0]
        rows = every.get(wanted)
        if wanted == EMBEDDING and isinstance(self.target, str):
            raise InputError(
                "Objective: expected a model that returns class scores, got a model that embeds "
                "a text as a vector, which has no most likely class. Explain the similarity to "
                "another text: --target TEXT, or in Python sonde.data.similarity_to(model, "
                "text). Or explain a single entry of the vector: Objective(target=3)."
            )
        if rows is None or not rows.is_floating_point():
            shapes = ", ".join(f"{k} {tuple(every[k].shape)}" for k in able)
            advice = f" Name one: Objective(output={able[-1]!r})." if able else ""
            raise InputError(
                "Objective: expected an output that holds the logits, found "
                f"{shapes or 'no floating-point one'}.{advice}"
            )
        rows = rows if rows.dtype == torch.float64 else rows.float()
        return wanted, rows[:, None] if rows.ndim == 1 else rows


@dataclass(frozen=True, eq=False)
class FixedObjective:
    """An objective with the targets of some inputs, which stay fixed when states are changed.

    Parameters
    ----------
    objective : Objective
        The objective whose targets are fixed.
    target : Int[Tensor, "row"] or Int[Tensor, "row token"]
        Class or token whose logit counts, for each example.
    other : Int[Tensor, "row"] or None
        Class that is subtracted for ``margin``; None takes the largest of the others.
    place : Int[Tensor, "row"], Int[Tensor, "row token"] or None
        Which token's logits count, in a language model.
    pixels : Float[Tensor, "row h w"] or None
        How much the logits of each pixel of a map count.
    """

    objective: Objective
    target: Int[Tensor, "..."]
    other: Int[Tensor, "row"] | None
    place: Int[Tensor, "..."] | None
    pixels: Float[Tensor, "row h w"] | None = None

    def _logits(self, outputs: Any) -> Float[Tensor, "row ..."]:
        if self.pixels is None:
            return self.objective._logits(outputs)
        return _over(self.objective._found(outputs)[1], self.pixels)

    def repeated(self, times: int) -> "FixedObjective":
        """Return the objective for examples that are each repeated ``times`` times."""
        if times == 1:
            return self
        target, other, place, pixels = (
            None if x is None else x.repeat_interleave(times, dim=0)
            for x in (self.target, self.other, self.place, self.pixels)
        )
        assert target is not None  # it was there before
        return replace(self, target=target, other=other, place=place, pixels=pixels)

    def tiled(self, times: int) -> "FixedObjective":
        """Return the objective for all examples, with their batch repeated."""
        if times == 1:
            return self
        target, other, place, pixels = (
            None if x is None else x.repeat(times, *[1] * (x.ndim - 1))
            for x in (self.target, self.other, self.place, self.pixels)
        )
        assert target is not None  # it was there before
        return replace(self, target=target, other=other, place=place, pixels=pixels)

    @property
    def output_named(self) -> dict[str, str]:
        """Name of the output that holds the logits, as an entry of a result's conventions."""
        return {"output": self.objective.output} if self.objective.output else {}

    def log_probs(self, outputs: Any) -> Float[Tensor, "answer class"]:
        """Return the log-probabilities at the positions that predict the targets."""
        logits = self._logits(outputs)
        row = torch.arange(len(logits), device=logits.device)
        if self.place is not None:
            row = row if self.place.ndim == 1 else row[:, None]
            logits = logits[row, self.place].flatten(0, -2)
        return torch.log_softmax(logits, dim=-1)

    def of(self, outputs: Any) -> Float[Tensor, "row"]:
        """Return the objective's value for each row."""
        logits = self._logits(outputs)
        row = torch.arange(len(logits), device=logits.device)
        if self.objective.kind == "answer":
            assert self.place is not None  # as ``fixed`` made it
            log_p = torch.log_softmax(logits, dim=-1)
            return log_p[row[:, None], self.place, self.target].sum(1)
        at = logits if self.place is None else logits[row, self.place]
        if self.objective.kind == "log_prob":
            at = torch.log_softmax(at, dim=-1)
        elif self.objective.kind == "prob":
            at = at.softmax(dim=-1)
        numbers = at[row, self.target]
        return numbers if self.other is None else numbers - at[row, self.other]


def _over(logits: Float[Tensor, "row class h w"], pixels: Float[Tensor, "row h w"]) -> Tensor:
    """Return the mean logits of each row over its pixels."""
    return torch.einsum("nchw,nhw->nc", logits, pixels.to(logits))


def _indices(value: Any, n: int, n_classes: int) -> Int[Tensor, "row"]:
    indices = _tensor(value).long().flatten()
    indices = indices.expand(n).clone() if len(indices) == 1 else indices
    if len(indices) != n:
        raise InputError(f"Objective: expected a target for each of {n} rows, got {len(indices)}.")
    if int(indices.min()) < 0 or int(indices.max()) >= n_classes:
        raise InputError(
            f"Objective: expected targets in 0..{n_classes - 1}, got {int(indices.min())} to "
            f"{int(indices.max())}."
        )
    return indices


def _tensor(value: Any) -> Tensor:
    return torch.as_tensor(list(value) if is_list(value) or is_tuple(value) else value)


def check_target(target: Any) -> None:
    """Raise if the target is neither ``predicted`` nor the number of a class.

    Raises
    ------
    InputError
    """
    if isinstance(target, str):
        is_class = target == "predicted"
    else:
        kind = torch.float32 if target is None else _tensor(target).dtype
        is_class = not kind.is_floating_point and kind != torch.bool
    if not is_class:
        raise InputError(
            f"Objective: expected the target 'predicted', or the number of a class (for each row), "
            f"got {target!r}."
        )
