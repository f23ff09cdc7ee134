"""How well the model would predict if it stopped after each block: its own norm and head, earlier.

The states after every block go through what runs between the last block and the logits. This is
used only where that reproduces the model's logits; elsewhere the reason is given.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sonde.core.hashing import base_hashes, draws, rank_key
from sonde.core.inputs import InputBatch
from sonde.core.site import Site
from sonde.findings._probes import chosen_examples, cut, single, token_length
from sonde.findings._trials import untouched
from sonde.findings.evidence import Evidence
from sonde.tap import LiveStream
from sonde.tap.model.blocks import block_paths
from sonde.tap.model.probe import find_logits
from sonde.tap.model.watch import watch

MOST_ROWS, MOST_GROUPS = 4096, 48
LEAST_ROWS, LEAST_GROUPS = 512, 32
LONGEST = 129
OPERATIONS = 5e11
REPRODUCED = 1e-3


@dataclass(frozen=True, eq=False)
class LensEvidence:
    """Loss at the next token after each block, over the same rows.

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
    final : float
        Loss of the model itself.
    unigram : float
        Entropy in nats of the targets' own frequencies.
    n_rows, n_groups : int
    reason : str
        Why there are no figures; empty where there are.
    """

    sites: tuple[str, ...] = ()
    loss: Float[Tensor, "block"] | None = None
    se: Float[Tensor, "block"] | None = None
    rise: Float[Tensor, "block"] | None = None
    rise_se: Float[Tensor, "block"] | None = None
    above_final: Float[Tensor, "block"] | None = None
    above_final_se: Float[Tensor, "block"] | None = None
    final: float = math.nan
    unigram: float = math.nan
    n_rows: int = 0
    n_groups: int = 0
    reason: str = ""


def lens_evidence(stream: LiveStream, seed: int = 0) -> LensEvidence:
    """Return the loss after every block of a causal language model, on a sample of its data."""
    if stream.model.task != "causal":
        return LensEvidence(reason="the model does not predict a next token")
    head = _head(stream)
    blocks = _blocks(stream)
    if head is None or len(blocks) < 2:
        return LensEvidence(reason="needs a head and at least two blocks among the sites")
    singles = [single(stream, i) for i in chosen_examples(stream, MOST_GROUPS, seed)]
    texts = [cut(s, LONGEST) for s in singles if s is not None]
    texts = [t for t in texts if (token_length(t) or 0) >= 2]
    if not texts:
        return LensEvidence(reason="no text has two tokens")
    with untouched(stream.model.module), torch.no_grad():
        decode = _decoder(stream, head, blocks[-1], texts[0])
        if decode is None:
            return LensEvidence(
                reason="the model's final norm and head alone do not give its logits"
            )
        return _measured(stream, texts, blocks, decode, head, seed)


def prediction_section(evidence: Evidence) -> dict[str, Any] | None:
    """Return the report's section on prediction by depth; None where there are no figures."""
    lens = evidence.lens
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


def _measured(
    stream: LiveStream,
    texts: Sequence[InputBatch],
    blocks: Sequence[Site],
    decode: Callable[[Tensor], Tensor],
    head: nn.Module,
    seed: int,
) -> LensEvidence:
    weight = next(head.parameters())
    budget = OPERATIONS / (2.0 * max(1, weight.numel()) * len(blocks))
    wanted = int(min(MOST_ROWS, max(LEAST_ROWS, budget)))
    chosen = _positions(texts, wanted, seed)
    losses, finals, group, targets = [], [], [], []
    for g, (text, positions) in enumerate(zip(texts, chosen, strict=True)):
        if len(positions) == 0:
            continue
        watched = watch(stream.model.module, text, blocks)
        ids = _ids(text)
        target = ids[positions + 1]
        every = [watched.tensors[str(b)][0] for b in blocks]
        states = [tokens[positions.to(tokens.device)] for tokens in every]
        losses.append(torch.stack([_loss(decode(s), target) for s in states], dim=1))
        logits = find_logits(watched.output)
        assert logits is not None
        finals.append(_loss(logits[0, positions.to(logits.device)], target))
        group.append(torch.full((len(positions),), g))
        targets.append(ids[1:])
    loss, final = torch.cat(losses), torch.cat(finals)
    member = torch.cat(group)
    n_rows, n_groups = len(loss), len(torch.unique(member))
    if n_rows < LEAST_ROWS or n_groups < LEAST_GROUPS:
        return LensEvidence(
            reason=f"needs {LEAST_ROWS} predicted tokens in {LEAST_GROUPS} groups, "
            f"got {n_rows} in {n_groups}",
            n_rows=n_rows,
            n_groups=n_groups,
        )
    steps = torch.cat([torch.full((n_rows, 1), math.nan), loss.diff(dim=1)], dim=1).double()
    above = final[:, None] - loss
    return LensEvidence(
        sites=tuple(_key(stream, b) for b in blocks),
        loss=loss.mean(0),
        se=clustered_error(loss, member),
        rise=steps.mean(0),
        rise_se=clustered_error(steps, member),
        above_final=above.mean(0),
        above_final_se=clustered_error(above, member),
        final=float(final.mean()),
        unigram=entropy(torch.cat(targets)),
        n_rows=n_rows,
        n_groups=n_groups,
    )


def clustered_error(
    values: Float[Tensor, "row figure"], group: Int[Tensor, "row"]
) -> Float[Tensor, "figure"]:
    """Return the standard error of column means whose rows come in groups."""
    _, member = torch.unique(group, return_inverse=True)
    count = int(member.max()) + 1
    sums = values.new_zeros(count, values.shape[1])
    sums.index_add_(0, member, values - values.mean(0))
    return (sums.square().sum(0) * count / (count - 1)).sqrt() / len(values)


def entropy(ids: Int[Tensor, "row"]) -> float:
    """Return the entropy in nats of the frequencies of these ids."""
    _, counts = torch.unique(ids, return_counts=True)
    share = counts.double() / counts.sum()
    return float(-(share * share.log()).sum())


def _loss(logits: Float[Tensor, "row token"], target: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
    found = torch.nn.functional.cross_entropy(
        logits.float(), target.to(logits.device), reduction="none"
    )
    return found.double().cpu()


def _positions(texts: Sequence[InputBatch], wanted: int, seed: int) -> list[Int[Tensor, "_chosen"]]:
    """Return, for each text, the positions of smallest draw, over all texts ``wanted`` of them."""
    base = base_hashes([t.keys[0] for t in texts], "sample", seed)
    every: list[tuple[Tensor, Tensor]] = []
    for i, text in enumerate(texts):
        place = np.arange((token_length(text) or 1) - 1)
        draw = draws(np.full(len(place), base[i]), place, np.zeros(len(place)))
        every.append((torch.from_numpy(place), rank_key(draw)))
    keys = torch.cat([key for _, key in every])
    last = keys.sort().values[min(wanted, len(keys)) - 1]
    return [place[key <= last] for place, key in every]


def _ids(text: InputBatch) -> Int[Tensor, "pos"]:
    ids = text.kwargs.get("input_ids", text.args[0] if text.args else None)
    assert isinstance(ids, Tensor)
    return ids[0].cpu()


def _blocks(stream: LiveStream) -> list[Site]:
    """Return the last run of blocks, or of sites of one class, read at their output over tokens."""
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


def _key(stream: LiveStream, site: Site) -> str:
    return next(k.key for k in stream.kinds if k.site is site and "|" not in k.key)


def _head(stream: LiveStream) -> nn.Module | None:
    inner = stream.probe.names.modules[""]
    get = getattr(inner, "get_output_embeddings", None)
    found = get() if callable(get) else None
    if isinstance(found, nn.Module):
        return found
    return None if stream.probe.head is None else stream.probe.names.modules[stream.probe.head]


def _decoder(
    stream: LiveStream, head: nn.Module, last: Site, text: InputBatch
) -> Callable[[Tensor], Tensor] | None:
    """Return what the model does between its last block and its logits, if that is what it does."""
    between = _between(stream, head, last)
    if between is None:
        return None

    def decode(states: Float[Tensor, "row dim"]) -> Float[Tensor, "row token"]:
        states = states[None].to(usual.device)
        with _reading([*between, head]):
            for module in between:
                states = module(states)
            return head(states)[0]

    watched = watch(stream.model.module, text, [last])
    logits = find_logits(watched.output)
    if logits is None or logits.ndim != 3 or str(last) not in watched.tensors:
        return None
    usual = watched.tensors[str(last)][0]
    try:
        again = decode(usual).to(logits.device)
    except Exception:  # what ran between takes more than states
        return None
    gap = (again - logits[0]).abs().max() if again.shape == logits[0].shape else math.inf
    return decode if float(gap) <= REPRODUCED * float(logits[0].std()) + 1e-6 else None


@contextmanager
def _reading(parts: Sequence[nn.Module]) -> Iterator[None]:
    modes = [(m, m.training) for part in parts for m in part.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _between(stream: LiveStream, head: nn.Module, last: Site) -> list[nn.Module] | None:
    """Return the outermost modules that ran after the last block and before the head, in order."""
    probe = stream.probe
    path = probe.names.canonical.get(id(head))
    if path is None or probe.calls(path) == 0:
        return None
    start = probe.order(last.path, last.call if isinstance(last.call, int) else 0, "out")
    stop = probe.order(path, 0, "in")
    inside = [
        (call.start, call.end, name)
        for name, calls in probe.trace.items()
        for call in calls
        if start < call.start and call.end < stop
    ]
    inside.sort()
    found: list[nn.Module] = []
    end = -1
    for first, finish, name in inside:
        if first > end:
            found.append(probe.names.modules[name])
            end = finish
    return found
