"""Loss of a language model on texts with other positions, token ids or starts."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.inputs import InputBatch
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.texts.lens import known_losses
from sonde.findings.self_check import chosen_examples
from sonde.findings.trial import chooses_by_key
from sonde.findings.trial_budget import counted
from sonde.tap import LiveStream
from sonde.tap.model.probe import find_logits
from sonde.tap.model.seeding import untouched
from sonde.tap.model.watch import watch
from sonde.tap.streams.small_batches import small_batches

TEXTS, LONGEST, LEAST = 32, 64, 8
# Texts are cut before any is left out: a signed-rank test of nine texts cannot reach 0.1 %.
SHORTEST, WAYS, PART = 16, 8, 0.25  # tokens; ways to change them; part of the budget
KIND: Final = ("change of the tokens", "changes of the tokens")

Ids = Int[Tensor, "row pos"]
Given = Int[Tensor, "row pos2"]  # of another length where a token was put before them
Way = Callable[[Ids], tuple[Ids, dict[str, Any]]]


@dataclass(frozen=True, eq=False)
class TextVariantEvidence:
    """Mean loss of each text, unchanged and changed in several ways.

    Parameters
    ----------
    given : Float[Tensor, "row"]
        Nats per token.
    losses : mapping of str to Float[Tensor, "row"]
        Keyed by the words for each way.
    rows : Int[Tensor, "text"]
        Their examples by planned order.
    chooses : Bool[Tensor, "text"]
        Which of them choose a form; the others judge it.
    """

    given: Float[Tensor, "row"]
    losses: Mapping[str, Tensor]
    rows: Int[Tensor, "row"]
    chooses: Bool[Tensor, "row"]


@counted
def text_variant_evidence(stream: LiveStream, evidence: Evidence) -> TextVariantEvidence | None:
    """Run a causal language model on changed texts; return None if it cannot."""
    if stream.model.task != "causal":
        return None
    longest = evidence.budget.rows(TEXTS * LONGEST, TEXTS * SHORTEST, WAYS, PART) // TEXTS
    small = small_batches(
        stream.model, stream.inputs, chosen_examples(stream, TEXTS, evidence.data.seed), longest
    )
    if len(small) < LEAST or small.length is None:
        return None
    whole = small.together(range(len(small)))
    if whole.placeholder is not None:
        return None
    ids = whole.kwargs.get("input_ids", whole.args[0] if whole.args else None)
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.ndim != 2:
        return None
    losses: dict[str, Tensor] = {}
    with untouched(stream.model.module), torch.no_grad():
        read = known_losses(evidence, whole.order, ids.shape[1] - 1)
        given = _loss(stream, whole, ids, {}, ids) if read is None else read.mean(1)
        if given is None:
            return None
        ways = dict(_ways(stream, small.takes_positions))
        for words, way in evidence.budget.affordable(ways, ids.numel(), KIND, PART):
            changed, more = way(ids)
            try:
                loss = _loss(stream, whole, changed, more, ids)
            except (IndexError, RuntimeError, ValueError):  # e.g. a position that it does not have
                continue
            if loss is not None:
                losses[words] = loss
    return TextVariantEvidence(given, losses, whole.order, chooses_by_key(whole.group_keys))


def _ways(stream: LiveStream, takes_positions: bool) -> Iterator[tuple[str, Way]]:
    """Yield ways to change texts, by description."""
    n_words = getattr(stream.model.config, "vocab_size", None)
    if takes_positions:
        for step in (-1, 1, 2):
            yield (
                f"with positions {_moved(step)}",
                lambda x, s=step: (x, _at(x, s)),
            )
    if n_words is not None:
        for step in (-1, 1):
            yield (
                f"with all token ids {_moved(step)}",
                lambda x, s=step: (
                    (x + s) % n_words,
                    {},
                ),
            )
    yield "read from the end to the start", lambda x: (x.flip(1), {})
    start = getattr(stream.model.processor, "bos_token_id", None)
    start = getattr(stream.model.config, "bos_token_id", None) if start is None else start
    if isinstance(start, int) and (n_words is None or start < n_words):
        yield (
            "with a start token before them",
            lambda x: (
                torch.cat([x.new_full((len(x), 1), start), x], dim=1),
                {},
            ),
        )


def _moved(step: int) -> str:
    return f"{abs(step)} {'higher' if step > 0 else 'lower'}"


def _at(ids: Ids, step: int) -> dict[str, Any]:
    place = (torch.arange(ids.shape[1]) + step).clamp(min=0)
    return {"position_ids": place.expand(len(ids), -1)}


def _loss(
    stream: LiveStream, batch: InputBatch, ids: Ids, more: dict[str, Any], original: Given
) -> Float[Tensor, "row"] | None:
    """Return the mean loss of each text after its first token."""
    kwargs = {k: v for k, v in batch.kwargs.items() if k not in ("position_ids", "input_ids")}
    if ids.shape[1] != original.shape[1] and "attention_mask" in kwargs:
        kwargs["attention_mask"] = torch.ones_like(ids)
    args = batch.args
    if "input_ids" in batch.kwargs:
        kwargs["input_ids"] = ids
    else:
        args = (ids, *args[1:])
    changed = replace(batch, args=args, kwargs=kwargs | more)
    output = watch(stream.model.module, changed, (), place=stream.probe.place).output
    logits = find_logits(output)
    if logits is None or logits.ndim != 3 or logits.shape[1] != ids.shape[1]:
        return None
    n = original.shape[1] - 1
    losses = torch.nn.functional.cross_entropy(
        logits[:, -n - 1 : -1].float().transpose(1, 2), ids[:, -n:].to(logits.device),
        reduction="none",
    )  # fmt: skip
    return losses.mean(1).double().cpu()
