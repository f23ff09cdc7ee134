"""Test whether one signed feature can replace two non-negative features.

Rows that are sums of few planted directions with either sign, where the true directions are known,
and states of the shipped language model, where they are not. Dictionaries of the same number of
features differ only in whether signs are kept. What came out of planted rows (three seeds): .10 of
the variance is left against .25 of ``topk``, .11 with twice the features; 81 to 88 % of the
directions are recovered, 38 to 44 % by ``topk``. On states of the language model signs gain
nothing: .039 against .037, and .028 with twice the features, though four features in ten are read
with both signs.
"""

from typing import Any, final

import torch
from torch import Tensor

from sonde import load, read
from sonde.explain import Dictionary, SparseAutoencoder
from sonde_studies._signed_directions import (
    ACTIVE,
    FEATURES,
    both_signs,
    has_both_signs,
    planted,
    recovered,
)
from sonde_studies.arms import note
from sonde_studies.study import Claim, Figures, Study, Tick

ROWS, OTHERS = 16_384, 10_000
MODEL, SITE, TEXTS, FEW = "sonde:stdlib", "model.layers.1", 48, 4
BOTH: dict[str, Any] = {"batch": 512, "mixed": 1}
NARROW = BOTH | {"features": FEATURES, "k": ACTIVE, "passes": 16, "rate": 1e-2}
WIDE = BOTH | {"features": 256, "k": 16, "passes": 10, "rate": 3e-3}
TINY = {"passes": 1}
ARMS = {"abstopk": ("abstopk", 1), "topk": ("topk", 1), "topk, twice as many": ("topk", 2)}
"""The rule, and how many times as many features."""


@final
class AbsTopKStudy(Study):
    """Planted signed directions, and a language model; baselines have twice the features."""

    name = "abstopk"
    title = "does one signed feature stand for two opposite things?"
    paper = "abstopk2025"
    fidelity = (
        "the activation as published; the language model is the small one that sonde ships, read "
        "at the second of its blocks"
    )
    data = (
        "sums of 3 of 32 planted directions in 20 dimensions, of either sign, sizes even in [1, "
        "2]; tokens of 64 pieces of Python's library to train, of 64 others to test"
    )
    place = "byte-model"
    seconds = 25.0
    claims = (
        Claim(
            "both signs",
            "Most planted directions have one feature that is read with both signs.",
            "share of directions with a feature of their own, read with both signs, less 0.5",
        ),
        Claim(
            "better than twice as many",
            "Keeping signs leaves less unexplained than topk with twice as many features.",
            "share unexplained by topk with twice the features less that by abstopk",
            arms=("abstopk, 32 features", "topk, twice as many, 32 features"),
        ),
        Claim(
            "language model",
            "On states of a language model features with both signs leave less than topk with as "
            "many features.",
            "share unexplained by topk less that by abstopk, over that by topk",
            arms=("abstopk, 256 features", "topk, 256 features"),
        ),
    )
    null = Claim(
        "other directions",
        "Directions drawn anew, which made no row, have no feature of their own.",
        "share of these directions with a feature that is read with both signs",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train dictionaries on the same planted rows."""
        x, true = planted(1024 if tiny else ROWS, seed)
        how = NARROW | TINY if tiny else NARROW
        found = _fitted(x, how, 2 * seed, tick)
        signed = found["abstopk"]
        left = {name: float(own) for name, own in found.items()}
        return {
            **_on_language_model(seed, tiny, tick),
            "both signs": both_signs(signed, x, true) - 0.5,
            "better than twice as many": left["topk, twice as many"] - left["abstopk"],
            "other directions": both_signs(signed, x, others(seed)),
            **{f"unexplained | {name}": value for name, value in left.items()},
            "recovered | abstopk": recovered(signed, true),
            "recovered | topk": recovered(found["topk"], true),
        }


def others(seed: int) -> Tensor:
    """Return directions by lot, as many as those that make a seed's rows."""
    return planted(1, seed + OTHERS)[1]


def _fitted(x: Tensor, how: dict[str, Any], seed: int, tick: Tick) -> dict[str, Dictionary]:
    """Return a dictionary of each arm."""
    found: dict[str, Dictionary] = {}
    for name, (act, times) in ARMS.items():
        tick(f"{name}, {how['features']} features")
        own = how | {"act": act, "features": times * how["features"]}
        found[name] = _noted(SparseAutoencoder(seed=seed, **own).fit(x), own, x)
    return found


def _noted(found: Dictionary, how: dict[str, Any], x: Tensor) -> Dictionary:
    """Return the dictionary, after a note of what it was given."""
    each = -(-len(x) // how["batch"])
    note(updates=how["passes"] * each, rows=len(x), parameters=2 * found.n_features * x.shape[1])
    return found


def _on_language_model(seed: int, tiny: bool, tick: Tick) -> Figures:
    """Return the unexplained variance of unseen tokens' states, for dictionaries of both rules."""
    tick("states of the language model")
    x, fresh = (_states(part, FEW if tiny else TEXTS, seed) for part in ("train", "test"))
    found = _fitted(x, WIDE | TINY if tiny else WIDE, seed, tick)
    total = (fresh - fresh.mean(0)).square().sum()
    left = {
        name: float((fresh - own.rebuild(fresh)).square().sum() / total)
        for name, own in found.items()
    }
    signed = has_both_signs(found["abstopk"].encode(fresh))
    return {
        "language model": (left["topk"] - left["abstopk"]) / left["topk"],
        "features read with both signs | language model": float(signed.double().mean()),
        **{f"unexplained, language model | {name}": value for name, value in left.items()},
    }


def _states(part: str, n: int, seed: int) -> Tensor:
    """Return the token states of some pieces of text, different for each of ten seeds."""
    stream = read(load(MODEL), f"{MODEL}/{part}", sites=SITE, reducer="tokens")
    start = n * seed % (len(stream) - n + 1)
    rows = torch.cat(
        [next(iter(batch.rows.values())) for batch in stream.batches(start, start + n)]
    )
    return rows.float()
