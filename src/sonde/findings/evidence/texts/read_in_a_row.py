"""Next-token loss of texts that are read one after another, each after examples of its kind.

Texts of one template, rows of a table and lists of names are easily predicted from each other, and
hardly by a model that has read none of them. A model that works catches up once it has read a few.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.data.text_encoding import context_of
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.texts.counted_tokens import losses_after
from sonde.findings.evidence.texts.lens import LensEvidence, measure_lens
from sonde.findings.evidence.texts.text_forms import batch_of, tokens_of
from sonde.findings.self_check import chosen_examples
from sonde.tap import LiveStream
from sonde.tap.model.probe import find_logits
from sonde.tap.model.seeding import untouched
from sonde.tap.model.watch import metered, watch
from sonde.tap.streams.small_batches import small_batches

ROWS: Final = 2
TOKENS, LOGITS, FEWEST = 1024, 1 << 26, 3


@dataclass(frozen=True, eq=False)
class ReadInARow:
    """Losses of the later texts of rows of texts, each read after all texts before it in its row.

    Parameters
    ----------
    own : float
        The model's mean loss in nats per token after a text's first.
    counted : tuple of float
        Mean loss of the same tokens by counts of one to three tokens of the texts before.
    tokens : Int[Tensor, "2 target"]
        The token before each of these tokens, and the token itself.
    beyond : Float[Tensor, "target"]
        The model's loss at each minus that of counts of three tokens.
    said : Float[Tensor, "text word"]
        Sum over the targets of each text of the probability of each token.
    seen : Float[Tensor, "text word"]
        How often each token is a target of each text.
    """

    own: float
    counted: tuple[float, ...]
    tokens: Int[Tensor, "2 target"]
    beyond: Float[Tensor, "target"]
    said: Float[Tensor, "text word"]
    seen: Float[Tensor, "text word"]

    def beyond_of(self, token: int, is_after: bool) -> float:
        """Return the mean of ``beyond`` after a token, or at it; infinite if it does not occur."""
        where = self.tokens[0 if is_after else 1] == token
        return float(self.beyond[where].mean()) if bool(where.any()) else math.inf


def read_in_a_row(stream: LiveStream, evidence: Evidence) -> ReadInARow | None:
    """Read the lens's texts one after another, in two rows of 1,024 tokens or what the model takes.

    The later half of a row counts. None if a row holds fewer than three texts, or the model gives
    no losses.
    """
    lens = evidence.get(measure_lens)
    if not isinstance(lens, LensEvidence) or lens.texts is None:
        return None
    most = min(TOKENS, context_of(stream.model) or TOKENS, LOGITS // max(1, lens.n_words))
    processor = stream.model.processor
    between = [] if processor is None else tokens_of(processor, "\n\n")
    own, counted, tokens, chances = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
    with metered(None), untouched(stream.model.module), torch.no_grad():
        for start in range(ROWS):
            texts = _fitting(lens.texts.ids[start::ROWS], most, len(between))
            if len(texts) < FEWEST:
                continue
            answered = _answers(stream, texts, between, evidence.data.seed)
            if answered is None:
                return None
            for i in range((len(texts) + 1) // 2, len(texts)):
                own.append(answered[i][0])
                chances.append(answered[i][1])
                counted.append(losses_after(texts[:i], texts[i]))
                tokens.append(torch.stack([texts[i][:-1], texts[i][1:]]))
    if not own:
        return None
    together, by_counts = torch.cat(own), torch.cat(counted, dim=1)
    return ReadInARow(
        own=float(together.mean()),
        counted=tuple(by_counts.mean(1).tolist()),
        tokens=torch.cat(tokens, dim=1),
        beyond=together - by_counts[-1],
        said=torch.stack(chances),
        seen=torch.stack([torch.bincount(x[1], minlength=len(chances[0])).float() for x in tokens]),
    )


def _fitting(
    texts: Sequence[Int[Tensor, "_token"]], most: int, between: int
) -> list[Int[Tensor, "_token"]]:
    """Return the first texts that fit into a row of tokens."""
    chosen, n = list[Tensor](), 0
    for ids in texts:
        n += len(ids) + between
        if n > most:
            break
        chosen.append(ids.long())
    return chosen


def _answers(
    stream: LiveStream, texts: Sequence[Int[Tensor, "_token"]], between: list[int], seed: int
) -> list[tuple[Float[Tensor, "_target"], Float[Tensor, "word"]]] | None:
    """Return each text's losses after its first token, and the summed chances there.

    All texts are read in one row.
    """
    gap = torch.tensor(between, dtype=torch.int64)
    row = torch.cat([part for ids in texts for part in (ids, gap)])[None]
    small = small_batches(stream.model, stream.inputs, chosen_examples(stream, 1, seed))
    if not small.singles:
        return None
    batch = batch_of(small, row, torch.ones_like(row))
    try:
        output = watch(stream.model.module, batch, (), place=stream.probe.place).output
    except (RuntimeError, IndexError, ValueError):  # e.g. more tokens than the model has places for
        return None
    logits = find_logits(output)
    if logits is None or logits.ndim != 3 or logits.shape[1] != row.shape[1]:
        return None
    loss = torch.nn.functional.cross_entropy(
        logits[0, :-1].float(), row[0, 1:].to(logits.device), reduction="none"
    )
    answers, at = list[tuple[Tensor, Tensor]](), 0
    for ids in texts:
        own = slice(at, at + len(ids) - 1)
        summed = logits[0, own].float().softmax(-1).sum(0)
        answers.append((loss[own].double().cpu(), summed.cpu()))
        at += len(ids) + len(between)
    return answers
