"""How well a language model predicts each of the sampled texts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.inputs import InputBatch
from sonde.engine.progress import Bar
from sonde.findings._shared import one_per_group, shared_rows
from sonde.findings.evidence import Evidence
from sonde.tap import LiveStream
from sonde.tap.model.probe import find_logits
from sonde.tap.model.seeding import untouched
from sonde.tap.model.watch import watch
from sonde.tap.reading.small_batches import cut, single, token_length

MOST, LEAST, LONGEST = 320, 100, 129
TOO_FEW: Final = f"needs the loss of {LEAST} texts of different groups, got {{}}"


@dataclass(frozen=True, eq=False)
class TextLosses:
    """Loss of a language model on one text of each of some groups.

    Parameters
    ----------
    row : Int[Tensor, "text"]
        Which shared rows they are.
    loss : Float[Tensor, "text"]
        Mean over a text's first 128 predicted tokens, in nats per token, of how much the loss
        exceeds that of all texts at such a position: beginnings are hard in every text, so a short
        one is not worse for being short.
    mean : float
        Mean loss of all these tokens.
    """

    row: Int[Tensor, "text"]
    loss: Float[Tensor, "text"]
    mean: float


def text_losses(stream: LiveStream, evidence: Evidence, shown: bool) -> TextLosses | str:
    """Run a causal language model on at most 320 texts of different groups, one at a time.

    Returns the reason where it is none, or where fewer than 100 texts have a loss.
    """
    shared = shared_rows(evidence)
    if stream.model.task != "causal" or shared.order is None:
        return "the model does not predict a next token"
    rows = one_per_group(shared.group)[:MOST]
    if len(rows) < LEAST:
        return TOO_FEW.format(len(rows))
    kept: list[int] = []
    losses: list[Tensor] = []
    with untouched(stream.model.module), torch.no_grad(), Bar("texts", len(rows), shown) as bar:
        for row, example in zip(rows.tolist(), shared.order[rows].tolist(), strict=True):
            text = single(stream.inputs, example)
            found = None if text is None else _loss(stream, cut(text, LONGEST))
            bar.advance(1)
            if found is not None and bool(torch.isfinite(found).all()):
                kept.append(row)
                losses.append(found)
    if len(kept) < LEAST:
        return TOO_FEW.format(len(kept))
    return TextLosses(torch.tensor(kept), beyond_position(losses), float(torch.cat(losses).mean()))


def beyond_position(losses: Sequence[Float[Tensor, "_token"]]) -> Float[Tensor, "text"]:
    """Return each text's mean loss beyond that of all texts at the same positions.

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


def _loss(stream: LiveStream, text: InputBatch) -> Float[Tensor, "token"] | None:
    """Return the loss at each token that the model predicts; None where that is not known."""
    ids = text.kwargs.get("input_ids", text.args[0] if text.args else None)
    if not isinstance(ids, Tensor) or (token_length(text) or 0) < 2 or len(ids) != 1:
        return None
    output = watch(stream.model.module, text, (), place=stream.probe.place).output
    logits = find_logits(output)
    if logits is None or logits.ndim != 3 or logits.shape[1] != ids.shape[1]:
        return None
    target = ids[0, 1:].to(logits.device)
    if int(target.max()) >= logits.shape[-1]:
        return None
    found = torch.nn.functional.cross_entropy(logits[0, :-1].float(), target, reduction="none")
    if text.placeholder is not None:  # nobody predicts a patch of an image
        found = found[~text.placeholder[0, 1:].to(found.device)]
    return found.double().cpu() if len(found) else None
