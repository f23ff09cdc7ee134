"""Loss of a language model on each of the sampled texts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.inputs import InputBatch
from sonde.core.repacking import count_weights
from sonde.engine.progress import Bar
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import one_per_group, shared_rows
from sonde.findings.evidence.texts.lens import known_losses
from sonde.findings.self_check import LARGE
from sonde.tap import LiveStream
from sonde.tap.model.probe import find_logits
from sonde.tap.model.seeding import untouched
from sonde.tap.model.watch import watch
from sonde.tap.streams.small_batches import cut, single, stacked, token_length

USUAL, DEEP = (160, 25), (320, 129)  # texts, tokens of each
OF_LARGE: Final = (120, 25)
"""Texts, and tokens of each, for a model that is large in the self-check's sense."""
LEAST, TOGETHER = 100, 16
T = TypeVar("T")
TOO_FEW: Final = f"needs the loss of {LEAST} texts of different groups, got {{}}"


@dataclass(frozen=True, eq=False)
class TextLosses:
    """Loss of a language model on texts of different groups.

    Parameters
    ----------
    row : Int[Tensor, "text"]
        Indices of the texts among the shared rows.
    loss : Float[Tensor, "text"]
        Mean over a text's first predicted tokens of its loss beyond that of all texts at the same
        positions, in nats per token. Beginnings are hard in every text, so a short text is not
        worse for being short.
    mean : float
        Mean loss of all these tokens.
    """

    row: Int[Tensor, "text"]
    loss: Float[Tensor, "text"]
    mean: float


def text_losses(stream: LiveStream, evidence: Evidence) -> TextLosses | str:
    """Run a causal language model on texts of different groups, batched by shape.

    At most 160 texts (120 for a large model) and 24 predicted tokens of each: a scan is to take
    little beyond its pass. A deep scan takes 320 and 128. Texts whose losses the lens knows are
    not run again. Returns the reason if fewer than 100 texts have losses.
    """
    shared = shared_rows(evidence)
    if stream.model.task != "causal" or shared.order is None:
        return "the model does not predict a next token"
    is_large = count_weights(stream.model.module) >= LARGE
    most, longest = DEEP if evidence.deep else OF_LARGE if is_large else USUAL
    rows = one_per_group(shared.group)[:most]
    if len(rows) < LEAST:
        return TOO_FEW.format(len(rows))
    losses: dict[int, Tensor] = {}
    alike: dict[tuple[Any, ...], list[tuple[int, InputBatch]]] = {}
    for row, example in zip(rows.tolist(), shared.order[rows].tolist(), strict=True):
        text = single(stream.inputs, example)
        if text is None or (token_length(text) or 0) < 2:
            continue
        text = cut(text, longest)
        read = _read_before(evidence, text)
        if read is not None:
            losses[row] = read
        else:
            alike.setdefault(_shapes(text), []).append((row, text))
    bar = Bar("texts", len(rows) - len(losses), evidence.budget.shown)
    with untouched(stream.model.module), torch.no_grad(), bar:
        for texts in alike.values():
            for some in in_lists(texts, TOGETHER):
                losses |= _losses(stream, some)
                bar.advance(len(some))
    kept = sorted(row for row, loss in losses.items() if bool(torch.isfinite(loss).all()))
    if len(kept) < LEAST:
        return TOO_FEW.format(len(kept))
    each = [losses[row] for row in kept]
    return TextLosses(torch.tensor(kept), beyond_position(each), float(torch.cat(each).mean()))


def _read_before(evidence: Evidence, text: InputBatch) -> Float[Tensor, "target"] | None:
    """Return the losses of a text that the lens has read, if all its tokens are predicted."""
    n = token_length(text)
    if text.asked is not None or n is None:
        return None
    losses = known_losses(evidence, text.order, n - 1)
    return None if losses is None else losses[0].double().cpu()


def _shapes(text: InputBatch) -> tuple[Any, ...]:
    """Return the shapes of a text's tensors. Texts of equal shapes run as a batch."""
    tensors = [*text.args, *text.kwargs.values(), text.mask, text.asked]
    return tuple(tuple(x.shape) if isinstance(x, Tensor) else None for x in tensors)


def in_lists(items: Sequence[T], n: int) -> list[Sequence[T]]:
    """Return the items in order, in lists of at most ``n``."""
    return [items[i : i + n] for i in range(0, len(items), n)]


def beyond_position(losses: Sequence[Float[Tensor, "_token"]]) -> Float[Tensor, "text"]:
    """Return each text's mean loss minus that of all texts at the same positions.

    Positions are taken together by octaves: the first, the second, the next two, the next four.

    Examples
    --------
    >>> beyond_position([torch.tensor([4.0, 1.0]), torch.tensor([4.0]), torch.tensor([7.0, 3.0])])
    tensor([-1.0000, -1.0000,  1.5000])
    """
    octave = torch.tensor([int(math.log2(i + 1)) for i in range(max(map(len, losses)))])
    where = torch.cat([octave[: len(x)] for x in losses])
    count = torch.bincount(where)
    expected = torch.bincount(where, torch.cat(list(losses))) / count
    return torch.stack([(x - expected[octave[: len(x)]]).mean() for x in losses])


def _losses(stream: LiveStream, texts: Sequence[tuple[int, InputBatch]]) -> dict[int, Tensor]:
    """Return the loss at each predicted token, by row; empty if it is not known."""
    batch = stacked([text for _, text in texts])
    ids = batch.kwargs.get("input_ids", batch.args[0] if batch.args else None)
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.ndim != 2:
        return {}
    output = watch(stream.model.module, batch, (), place=stream.probe.place).output
    logits = find_logits(output)
    if logits is None or logits.ndim != 3 or logits.shape[:2] != ids.shape:
        return {}
    target = ids[:, 1:].to(logits.device)
    if int(target.max()) >= logits.shape[-1]:
        return {}
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), target, reduction="none"
    )
    is_said = torch.ones_like(losses, dtype=torch.bool)
    asked = batch.asked
    if asked is not None:  # nobody predicts a patch of an image, or a prompt
        is_said = asked[:, 1:].to(losses.device)
    by_row = {row: losses[i][is_said[i]].double().cpu() for i, (row, _) in enumerate(texts)}
    return {row: loss for row, loss in by_row.items() if len(loss)}
