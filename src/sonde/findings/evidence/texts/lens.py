"""Next-token prediction by the model's own final norm and head after each block.

The states after every block go through the modules between the last block and the logits. Losses by
block are given only if these modules reproduce the model's logits; else the reason is given.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.few_groups import grouped_error
from sonde.core.hashing import base_hashes, draws, rank_key
from sonde.core.inputs import InputBatch
from sonde.core.repacking import count_weights
from sonde.core.site import Site
from sonde.core.special_ids import special_ids
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.texts.counted_tokens import counted_losses, ids_of
from sonde.findings.self_check import chosen_examples
from sonde.tap import LiveStream
from sonde.tap.model.blocks import block_paths
from sonde.tap.model.probe import find_logits
from sonde.tap.model.readout import head_module, readout
from sonde.tap.model.seeding import untouched
from sonde.tap.model.watch import metered, watch
from sonde.tap.streams.small_batches import cut, single, stacked, token_length

MOST_ROWS, MOST_GROUPS = 4096, 48
LEAST_ROWS, LEAST_GROUPS = 512, 32
FEWEST: Final = 128
"""Least rows that are read after every block, however large the head."""
AT_ONCE: Final = 512
"""Tokens of texts of one length that the model reads together."""
LOGITS: Final = 1 << 26
"""Entries of logits that are held together."""
TOGETHER: Final = 128
"""Rows that a head reads together: it reads its weights once for all of them."""
SPARE: Final = 4
"""Texts beyond the least, because some may be too short."""
LONGEST, SHORTEST = 129, 65
"""Most tokens of a text, and of a text if the model is too large for so many."""
OPERATIONS, OF_HEADS = 5e11, 2.5e11
USUAL = 1e-4


@dataclass(frozen=True, eq=False)
class TextAnswers:
    """Predictions of a language model for every token of some texts.

    Parameters
    ----------
    ids : tuple of Int[Tensor, "token"]
        The tokens of each text.
    losses, counted : tuple of Float[Tensor, "token"]
        Loss at each token after the first: of the model, and by counts of three tokens.
    said : Float[Tensor, "text word"]
        Sum over positions of the probability of each token.
    words : dict of int to str
        Text of the tokens that occur, or that the model expects more than once in 10,000 tokens.
    unknown : int or None
        The token that stands for what the tokenizer does not know.
    special : frozenset of int
        Tokens that are no text, such as the end of a text. In many tokenizers, the token for what
        is unknown is the end of a text: it is special, and ``unknown`` is None.
    order : Int[Tensor, "text"]
        Their examples by planned order; empty if these are not known.
    """

    ids: tuple[Int[Tensor, "_token"], ...]
    losses: tuple[Float[Tensor, "_target"], ...]
    counted: tuple[Float[Tensor, "_target"], ...]
    said: Float[Tensor, "text word"]
    words: Mapping[int, str]
    unknown: int | None = None
    special: frozenset[int] = frozenset()
    order: Int[Tensor, "text"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    def losses_of(
        self, order: Int[Tensor, "row"], n_targets: int
    ) -> Float[Tensor, "row target"] | None:
        """Return the losses of the first predicted tokens of examples; None if one is unknown."""
        at = dict(zip(self.order.tolist(), self.losses, strict=False))
        each = [at[i][:n_targets] for i in order.tolist() if i in at]
        is_whole = len(each) == len(order) and all(len(x) == n_targets for x in each)
        return torch.stack(each) if is_whole and each else None

    @property
    def seen(self) -> Float[Tensor, "text word"]:
        """Counts of each token after the first position, by text."""
        n_words = self.said.shape[1]
        return torch.stack([torch.bincount(x[1:], minlength=n_words) for x in self.ids]).float()


@dataclass(frozen=True, eq=False)
class LensEvidence:
    """Next-token loss after each block, on the same rows.

    Parameters
    ----------
    sites : tuple of str
        Keys of the blocks, in order of execution.
    loss, se : Float[Tensor, "block"]
        Mean loss in nats, and its standard error over groups.
    rise, rise_se : Float[Tensor, "block"]
        Loss after a block minus loss after the one before it, paired by row; the first is NaN.
    above_final, above_final_se : Float[Tensor, "block"]
        Final loss minus the loss after a block, paired by row.
    final, final_se : float
        Loss of the model itself, even if losses by block are missing; NaN if it gives no logits.
    unigram : float
        Entropy in nats of the targets' own frequencies.
    doubt : float
        Mean entropy of the model's own probabilities, as a share of the entropy of equal ones.
    expected, expected_by_rank : float
        Cross entropy in nats of the targets' frequencies with the model's mean prediction, and
        the cross entropy once both are sorted.
    frequencies : float
        Loss by the frequencies of the tokens in the other texts; minus infinity if unknown.
        ``unigram`` knows the texts themselves: of a list of names it is far lower.
    counted, counted_tokens : float, int
        Smallest loss by counts of one to three tokens of the other texts (infinite if unknown), and
        the number of tokens that gives it.
    texts : TextAnswers or None
        What the model says of all tokens of these texts.
    n_words : int
        Tokens that the model knows.
    bytes_per_token : float
        Bytes per target token; 0 if no tokenizer gives them.
    n_rows, n_groups : int
    longest : int
        Most tokens that are read of a text.
    reason : str
        Why losses by block are missing; empty if they are there.
    too_few : bool
        Whether the reason is that there are too few rows.
    """

    sites: tuple[str, ...] = ()
    loss: Float[Tensor, "block"] | None = None
    se: Float[Tensor, "block"] | None = None
    rise: Float[Tensor, "block"] | None = None
    rise_se: Float[Tensor, "block"] | None = None
    above_final: Float[Tensor, "block"] | None = None
    above_final_se: Float[Tensor, "block"] | None = None
    final: float = math.nan
    final_se: float = math.nan
    unigram: float = math.nan
    doubt: float = math.nan
    expected: float = math.nan
    expected_by_rank: float = math.nan
    frequencies: float = -math.inf
    counted: float = math.inf
    counted_tokens: int = 0
    texts: "TextAnswers | None" = None
    n_words: int = 0
    bytes_per_token: float = 0.0
    n_rows: int = 0
    n_groups: int = 0
    longest: int = LONGEST
    reason: str = ""
    too_few: bool = False

    @property
    def by_counts(self) -> float:
        """The smaller loss of counts in the other texts, and of the targets' frequencies."""
        return min(self.counted, self.unigram)

    @property
    def beats_counts(self) -> bool:
        """Whether the model's loss is no larger than that of counts and frequencies."""
        return self.final <= self.by_counts


def measure_lens(stream: LiveStream, evidence: Evidence) -> LensEvidence:
    """Return the loss after every block, as a part of the evidence, and as no trial."""
    with metered(None):
        return lens_evidence(stream, evidence.data.seed)


def known_losses(
    evidence: Evidence, order: Int[Tensor, "row"], n_targets: int
) -> Float[Tensor, "row target"] | None:
    """Return the model's losses on the beginnings of texts that were read; else None.

    Trials of changed texts compare with these, without another forward pass.
    """
    lens = evidence.get(measure_lens)
    texts = lens.texts if isinstance(lens, LensEvidence) else None
    return None if texts is None else texts.losses_of(order, n_targets)


def lens_evidence(stream: LiveStream, seed: int = 0) -> LensEvidence:
    """Return a language model's loss, at the end and after every block, on a sample.

    Losses by block need the model's final norm and head to give its logits; its own loss does not.
    """
    if stream.model.task != "causal":
        return LensEvidence(reason="the model does not predict a next token")
    n, longest = sampled_texts(count_weights(stream.model.module))
    singles = [single(stream.inputs, i) for i in chosen_examples(stream, n, seed)]
    texts = [cut(s, longest) for s in singles if s is not None]
    texts = [t for t in texts if (token_length(t) or 0) >= 2]
    if not texts:
        return LensEvidence(reason="no text has two tokens")
    head, blocks, decode = head_module(stream.probe), blocks_of(stream), None
    reason = "needs a model with a head, and at least two blocks among the sites"
    with untouched(stream.model.module), torch.no_grad():
        if head is not None and len(blocks) >= 2:
            decode = readout(stream.model.module, stream.probe, head, blocks[-1], texts[0])
            reason = "the model's final norm and head alone do not give its logits"
        if head is None or decode is None:
            own = _own(_outcomes(stream, texts, seed))
            return replace(own, longest=longest, reason=reason)
        # Of a packed head the codes count: it has no parameter.
        entries = max((v.numel() for v in head.state_dict().values()), default=1)
        budget = OF_HEADS / (2.0 * max(1, entries) * len(blocks))
        wanted = int(min(MOST_ROWS, max(FEWEST, budget)))
        outcomes = _outcomes(stream, texts, seed, blocks, decode, wanted)
        lens = _by_block(stream, outcomes, blocks, min(LEAST_ROWS, wanted))
        return replace(lens, longest=longest)


def prediction_section(evidence: Evidence) -> dict[str, Any] | None:
    """Return the report's section on prediction by depth, or None without results."""
    lens = evidence.get(measure_lens)
    if not isinstance(lens, LensEvidence) or lens.loss is None or lens.se is None:
        return None
    rows = zip(lens.sites, lens.loss.tolist(), lens.se.tolist(), strict=True)
    return {
        "sites": [{"site": site, "value": value, "se": se} for site, value, se in rows],
        "unigram": lens.unigram,
        "final": lens.final,
        "unit": "nats",
        "n_rows": lens.n_rows,
        "n_groups": lens.n_groups,
    }


@dataclass(frozen=True, eq=False)
class _Outcomes:
    """Losses at the chosen positions, after each block and at the end, and the answers."""

    losses: Float[Tensor, "row block"]
    final: Float[Tensor, "row"]
    doubt: Float[Tensor, "row"]
    group: Int[Tensor, "row"]
    targets: Int[Tensor, "target"]
    expected: Float[Tensor, "token"]
    counted: Float[Tensor, "order row"]
    texts: TextAnswers
    n_words: int
    bytes_per_token: float


def _outcomes(
    stream: LiveStream,
    texts: Sequence[InputBatch],
    seed: int,
    blocks: Sequence[Site] = (),
    decode: Callable[[Tensor], Tensor] | None = None,
    wanted: int = MOST_ROWS,
) -> _Outcomes | None:
    """Return the model's next-token losses, or None if it gives no logits of tokens."""
    by_block, n_words = _ByBlock(decode, len(blocks)), 0
    by_counts, positions = (
        counted_losses(stream.inputs, texts, seed),
        _positions(texts, wanted, seed),
    )
    answers: dict[int, _Answer] = {}
    left = [g for g, at in enumerate(positions) if len(at)]
    while left:
        some = _alike(texts, left, n_words)
        left = [g for g in left if g not in some]
        watched = watch(stream.model.module, stacked([texts[g] for g in some]), blocks)
        logits = find_logits(watched.output)
        if logits is None or logits.ndim != 3 or logits.shape[1] != token_length(texts[some[0]]):
            return None
        n_words = logits.shape[-1]
        for row, g in enumerate(some):
            at, ids = positions[g], ids_of(texts[g])[0]
            if int(ids[at + 1].max()) >= n_words:
                return None
            if decode is not None:
                states = [watched.tensors[str(b)][row] for b in blocks]
                by_block.add(g, [tokens[at.to(tokens.device)] for tokens in states], ids[at + 1])
            answers[g] = _Answer.of(logits[row], ids, at)
    read = dict(sorted(answers.items()))
    ids = [one.ids for one in read.values()]
    final, losses = torch.cat([one.final for one in read.values()]), by_block.losses()
    answered = [(one.ids, one.loss, by_counts[g][-1]) for g, one in read.items()]
    sums, order = torch.stack([one.said for one in read.values()]), [texts[g].order for g in read]
    return _Outcomes(
        losses=final.new_zeros(len(final), 0) if losses is None else losses,
        final=final,
        doubt=torch.cat([one.entropy for one in read.values()]) / math.log(max(n_words, 2)),
        group=torch.cat([torch.full((len(positions[g]),), g) for g in read]),
        targets=torch.cat([x[1:] for x in ids]),
        expected=torch.stack([one.expected for one in read.values()]).sum(0) / len(final),
        counted=torch.cat([by_counts[g][:, positions[g]] for g in read], dim=1),
        texts=_texts(stream.model.processor, answered, sums, torch.cat(order)),
        n_words=n_words,
        bytes_per_token=_bytes_per_token(stream.model.processor, [x[1:] for x in ids]),
    )


@dataclass(frozen=True, eq=False)
class _Answer:
    """What the model says of one text: of all its tokens, and at the chosen positions.

    Parameters
    ----------
    ids : Int[Tensor, "token"]
    loss, said : Tensor
        Loss of every token after the first, and the summed chance of each token of the vocabulary.
    final, entropy, expected : Tensor
        Loss and entropy at each chosen position, and the chances summed over these.
    """

    ids: Int[Tensor, "token"]
    loss: Float[Tensor, "target"]
    said: Float[Tensor, "word"]
    final: Float[Tensor, "row"]
    entropy: Float[Tensor, "row"]
    expected: Float[Tensor, "word"]

    @staticmethod
    def of(
        logits: Float[Tensor, "token word"], ids: Int[Tensor, "token"], at: Int[Tensor, "row"]
    ) -> "_Answer":
        """Reduce the logits of a text to losses and sums."""
        chance = logits[:-1].float().softmax(-1)
        chosen = chance[at.to(logits.device)]
        loss = _loss(logits[:-1], ids[1:])
        return _Answer(
            ids=ids,
            loss=loss,
            said=chance.sum(0).cpu(),
            final=loss[at],
            entropy=torch.special.entr(chosen).sum(-1).double().cpu(),
            expected=chosen.sum(0).cpu(),
        )


def _alike(texts: Sequence[InputBatch], left: Sequence[int], n_words: int) -> list[int]:
    """Return the first text that is left and those of its size, as many as may be read at once.

    One forward pass of several texts takes less time than one for each. Without ``n_words``, the
    size of the vocabulary, one text is read.
    """
    first = texts[left[0]]
    n = token_length(first) or 1
    most = min(AT_ONCE, LOGITS // n_words) // n if n_words else 1
    if first.placeholder is not None:
        return [left[0]]
    return [g for g in left if token_length(texts[g]) == n][: max(1, most)]


def sampled_texts(n_weights: int) -> tuple[int, int]:
    """Return how many texts are read of a model of this size, and the most tokens of a text.

    Larger models read fewer texts first, then fewer tokens of each.

    Examples
    --------
    >>> sampled_texts(1_000_000), sampled_texts(70_000_000), sampled_texts(135_000_000)
    ((48, 129), (36, 99), (36, 65))
    """
    able = OPERATIONS / (2.0 * max(1, n_weights))
    n = min(MOST_GROUPS, max(LEAST_GROUPS + SPARE, int(able / LONGEST)))
    return n, min(LONGEST, max(SHORTEST, int(able / n)))


class _ByBlock:
    """Losses of positions after each block, read by the head for many texts together."""

    def __init__(self, decode: Callable[[Tensor], Tensor] | None, n_blocks: int) -> None:
        self.decode, self.n_blocks = decode, n_blocks
        self.waiting: list[tuple[int, list[Tensor], Tensor]] = []
        self.found: dict[int, Tensor] = {}

    def add(self, text: int, states: list[Tensor], target: Int[Tensor, "row"]) -> None:
        """Add the states of a text after each block, and the tokens that follow."""
        self.waiting.append((text, states, target))
        if sum(len(target) for *_, target in self.waiting) >= TOGETHER:
            self._read()

    def losses(self) -> Float[Tensor, "row block"] | None:
        """Return all losses in the order of the texts, or None if no state was added."""
        if self.waiting:
            self._read()
        return torch.cat([self.found[g] for g in sorted(self.found)]) if self.found else None

    def _read(self) -> None:
        assert self.decode is not None  # states are added only if a head reads them
        sizes = [len(target) for *_, target in self.waiting]
        target = torch.cat([target for *_, target in self.waiting])
        each = [torch.cat([x[b] for _, x, _ in self.waiting]) for b in range(self.n_blocks)]
        losses = torch.stack([_loss(self.decode(s), target) for s in each], dim=1)
        for (text, *_), of_text in zip(self.waiting, losses.split(sizes), strict=True):
            self.found[text] = of_text
        self.waiting = []


def _own(found: _Outcomes | None) -> LensEvidence:
    """Return the loss of the model itself."""
    if found is None:
        return LensEvidence()
    share = torch.bincount(found.targets, minlength=found.n_words).double()
    share /= share.sum()
    by_rank = share.sort().values, found.expected.sort().values
    counted = found.counted.mean(1)
    return LensEvidence(
        final=float(found.final.mean()),
        final_se=float(clustered_error(found.final[:, None], found.group)),
        unigram=entropy(found.targets),
        doubt=float(found.doubt.mean()),
        expected=_cross_entropy(share, found.expected),
        expected_by_rank=_cross_entropy(*by_rank),
        frequencies=float(counted[0]),
        counted=float(counted.min()),
        counted_tokens=1 + int(counted.argmin()),
        texts=found.texts,
        n_words=found.n_words,
        bytes_per_token=found.bytes_per_token,
        n_rows=len(found.final),
        n_groups=len(torch.unique(found.group)),
    )


def _by_block(
    stream: LiveStream, found: _Outcomes | None, blocks: Sequence[Site], least: int
) -> LensEvidence:
    """Return the loss of the model at the end and after each block."""
    own = _own(found)
    if found is None or own.n_rows < least or own.n_groups < LEAST_GROUPS:
        return replace(
            own,
            reason=f"needs {least} predicted tokens in {LEAST_GROUPS} groups, "
            f"got {own.n_rows} in {own.n_groups}",
            too_few=True,
        )
    loss, group = found.losses, found.group
    first = torch.full((own.n_rows, 1), math.nan)
    steps = torch.cat([first, loss.diff(dim=1)], dim=1).double()
    above = found.final[:, None] - loss
    return replace(
        own,
        sites=tuple(_key(stream, b) for b in blocks),
        loss=loss.mean(0),
        se=clustered_error(loss, group),
        rise=steps.mean(0),
        rise_se=clustered_error(steps, group),
        above_final=above.mean(0),
        above_final_se=clustered_error(above, group),
    )


def _texts(
    processor: Any,
    read: Sequence[tuple[Tensor, ...]],
    said: Float[Tensor, "text word"],
    order: Int[Tensor, "text"],
) -> TextAnswers:
    """Return the model's answers on the texts, with the strings of the relevant tokens."""
    decode = getattr(processor, "decode", None)
    wanted = {int(i) for ids, _, _ in read for i in torch.unique(ids)}
    wanted |= set(torch.nonzero(said.mean(0) > USUAL * said[0].sum()).flatten().tolist())
    words = {i: str(decode([i])) for i in sorted(wanted)} if callable(decode) else {}
    ids, losses, counted = zip(*read, strict=True)
    special = special_ids(processor)
    unknown = {getattr(processor, "unk_token_id", None)} - {None} - special
    return TextAnswers(ids, losses, counted, said, words, next(iter(unknown), None), special, order)


def _bytes_per_token(processor: Any, targets: Sequence[Int[Tensor, "_target"]]) -> float:
    """Return the mean number of text bytes per target; 0 without a tokenizer."""
    decode = getattr(processor, "decode", None)
    if not callable(decode):
        return 0.0
    texts = [str(decode(ids.tolist(), skip_special_tokens=True)) for ids in targets]
    return sum(len(text.encode()) for text in texts) / sum(map(len, targets))


def clustered_error(
    values: Float[Tensor, "row figure"], group: Int[Tensor, "row"]
) -> Float[Tensor, "figure"]:
    """Return the standard error of column means for rows in groups."""
    _, member = torch.unique(group, return_inverse=True)
    count = int(member.max()) + 1
    sums = values.new_zeros(count, values.shape[1])
    sums.index_add_(0, member, values - values.mean(0))
    return grouped_error(sums, torch.bincount(member)) / len(values)


def entropy(ids: Int[Tensor, "row"]) -> float:
    """Return the entropy in nats of the frequencies of these ids."""
    _, counts = torch.unique(ids, return_counts=True)
    share = counts.double() / counts.sum()
    return float(-(share * share.log()).sum())


def _cross_entropy(share: Float[Tensor, "token"], expected: Float[Tensor, "token"]) -> float:
    return -float((share * expected.clamp(min=1e-9).log()).sum())


def _loss(logits: Float[Tensor, "row token"], target: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
    losses = torch.nn.functional.cross_entropy(
        logits.float(), target.to(logits.device), reduction="none"
    )
    return losses.double().cpu()


def _positions(texts: Sequence[InputBatch], wanted: int, seed: int) -> list[Int[Tensor, "_chosen"]]:
    """Return each text's positions among the ``wanted`` smallest sampling keys of all texts."""
    base = base_hashes([t.keys[0] for t in texts], "sample", seed)
    every: list[tuple[Tensor, Tensor]] = []
    for i, text in enumerate(texts):
        place = np.arange((token_length(text) or 1) - 1)
        if text.placeholder is not None:  # nobody predicts a patch of an image
            place = place[~text.placeholder[0, 1:].numpy()]
        draw = draws(np.full(len(place), base[i]), place, np.zeros(len(place)))
        every.append((torch.from_numpy(place), rank_key(draw)))
    keys = torch.cat([key for _, key in every])
    last = keys.sort().values[min(wanted, len(keys)) - 1]
    return [place[key <= last] for place, key in every]


def _key(stream: LiveStream, site: Site) -> str:
    return next(k.key for k in stream.kinds if k.site is site and "|" not in k.key)


def blocks_of(stream: LiveStream) -> list[Site]:
    """Return the sites that resemble the last token output in width and class."""
    kinds = [k for k in stream.kinds if "|" not in k.key and k.site.port == "out"]
    kinds = [k for k in kinds if k.reduction.axes.words == ("row", "pos", "dim")]
    if not kinds:
        return []
    last = kinds[-1].schema
    blocks = set(block_paths(stream.probe.names, stream.probe))
    same = [
        k.site
        for k in kinds
        if k.schema.dim == last.dim
        and (k.schema.module == last.module or {k.site.path, last.site.path} <= blocks)
    ]
    return [site for site in same if not isinstance(site.call, str)]
