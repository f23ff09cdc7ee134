"""Faults that are planted in studies, and the null arms that see them."""

from dataclasses import dataclass, replace
from random import Random

import numpy as np
import pytest
import torch

from sonde import load
from sonde.compress import (
    RTN,
    BitStack,
    PruneWeights,
    QuantCache,
    WeightCodebook,
)
from sonde.core import CachePacking
from sonde.data import open_inputs
from sonde.detect import DictLookup
from sonde.edit import NGrams, SuperposedGenerate
from sonde.explain import FaultLines, SparseAutoencoder
from sonde.weights import Examples, Exchange, Rewrite, RewritePlan
from sonde_studies import _signed_directions, abstopk, class_panel, code_strip, length_law
from sonde_studies._bit_orders import BLOCKS, rounded_net
from sonde_studies._blocks import block_digits
from sonde_studies._cached import SmallerCaches, pieces
from sonde_studies._digits import digits, encoder, shuffled
from sonde_studies._drafts import drafts_of, judged
from sonde_studies._forgetting import CLASS, world
from sonde_studies._help_pages import gains_of, language_model
from sonde_studies._patch_lookup import plain_lookup
from sonde_studies._patches import image_area
from sonde_studies._planted import PatchAttention
from sonde_studies._separation import area
from sonde_studies._shrunk import wide_net
from sonde_studies._trigger import surer_of
from sonde_studies._trigger import trained as trained_on_digits
from sonde_studies._typed_code import N_NAMES, Parameters
from sonde_studies._world_facts import known_answers
from sonde_studies._written import code
from sonde_studies._written import pieces as pieces_of
from sonde_studies.costarr import scored_arms
from sonde_studies.memories import DIM, unasked_for
from sonde_studies.parts.lots import share_by_lot
from sonde_studies.recipes.unlearning_audit import unlearning_audit
from sonde_studies.stacked_blocks import reopened
from sonde_studies.stacked_pretrained import costs_of
from sonde_studies.stacked_pretrained import own_gain as gain_of_texts
from sonde_studies.study import NULL_LEVEL, Outcome
from sonde_studies.unlearned_pretrained import (
    CAPITALS,
    made_up_capitals,
    read_as_before,
    unlearned,
)
from sonde_studies.unlearning_audit import traces_lost
from sonde_studies.worlds.learning import digit_images, drawn

HEAD = "lm_head.weight"


def _seen(values, expected=0.0):
    """Whether a null arm of these figures is not as expected."""
    return not Outcome(tuple(values), expected, NULL_LEVEL).covers


@dataclass(frozen=True)
class ByHeart(Rewrite):
    """A leak: the head learns the texts that calibrate."""

    examples = ({},)

    def reads(self):
        return {"calibration": Examples()}

    @torch.enable_grad()
    def planned(self, model, calibration):
        module = model.module
        weight = module.lm_head.weight.detach().clone().requires_grad_()
        adam = torch.optim.Adam([weight], lr=3e-3)
        batches = [batch.kwargs["input_ids"] for batch in calibration.batches(0, len(calibration))]
        with torch.no_grad():
            states = [module.model(ids)[0] for ids in batches]
        for _ in range(30):
            adam.zero_grad()
            for ids, state in zip(batches, states, strict=True):
                logits = (state[:, :-1] @ weight.T).flatten(0, 1)
                torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()).backward()
            adam.step()
        return RewritePlan.of(model, {HEAD: Exchange(weight.detach())}, "by heart")


@pytest.mark.slow
def test_texts_that_were_learned_by_heart_are_seen_by_a_gain_on_own_texts():
    model = language_model("smollm2", tiny=True)
    size, wanda = (PruneWeights(pattern="2:4", score=s) for s in ("magnitude", "wanda"))
    for informed, leaks in ((wanda, False), (ByHeart(), True)):
        own = [gains_of(model, seed, True, size, informed)["own texts"] for seed in range(5)]
        assert _seen(own) == leaks


@dataclass(frozen=True)
class Late(CachePacking):
    """A side effect: each key stands one place late."""

    inner: CachePacking
    chunk: int = 64
    recent: int = 0

    @property
    def setting(self):
        return self.inner.setting

    def pack(self, keys, values, real):
        return self.inner.pack(keys.roll(1, -2), values, real)


@pytest.mark.slow
def test_keys_at_other_places_are_seen_by_a_cache_of_eight_bits():
    eight = QuantCache(8, 32, chunk=64, recent=0)
    caches = [SmallerCaches(pieces(1, seed)) for seed in range(8)]
    assert not _seen(one.dearer(eight) for one in caches)
    assert _seen(one.dearer(Late(eight)) for one in caches)


@pytest.mark.slow
def test_another_bar_than_that_of_chance_is_seen_by_orders_by_lot():
    """The planted bar counts the step after which all blocks have two bits, which lots do not."""
    nets = [rounded_net(seed, tiny=True) for seed in range(6)]
    lots = [(net, net.by_lot(seed, 100)) for seed, net in enumerate(nets)]
    usual = [float(net.areas().mean()) for net in nets]
    more = [
        ((BLOCKS - 1) * one + net.kl[frozenset(range(BLOCKS))]) / BLOCKS
        for one, net in zip(usual, nets, strict=True)
    ]
    assert not _seen(1 - lot / one for one, (_, lot) in zip(usual, lots, strict=True))
    assert _seen(1 - lot / one for one, (_, lot) in zip(more, lots, strict=True))


@pytest.mark.slow
def test_a_state_that_tells_the_pattern_is_seen_by_a_memory_that_is_asked_nothing():
    draw = torch.Generator().manual_seed(0)
    stored = 2.0 * torch.randint(2, (256, DIM), generator=draw) - 1
    for flipped, leaks in ((0.5, False), (0.4, True)):
        assert _seen([unasked_for(stored, 1.0, draw, flipped) - 0.5 for _ in range(5)]) == leaks


@pytest.mark.slow
def test_a_rewrite_that_touches_other_layers_is_seen_by_one_of_eight_bits():
    nets = [wide_net(seed, tiny=False) for seed in range(8)]
    eight = WeightCodebook(8, steps=2, layers=("2", "4"))
    assert not _seen(net.dearer(eight) for net in nets)
    assert _seen(net.dearer(RTN(2, 0, layers=("0", "6"))) for net in nets)


def test_sets_of_too_few_blocks_are_seen_by_halves_by_lot():
    draw = torch.Generator().manual_seed(0)
    added = [torch.rand(30, generator=draw).exp() for _ in range(10)]
    for n, wrong in ((15, False), (14, True)):
        shares = [share_by_lot(x, n, seed) - 0.5 for seed, x in enumerate(added)]
        assert _seen(shares) == wrong


@pytest.mark.slow
def test_a_cut_file_is_seen_by_one_that_is_opened_whole():
    nets = [wide_net(seed, tiny=False) for seed in range(4)]
    assert not _seen(reopened(net, 4.25) for net in nets)
    assert _seen(reopened(net, 4.25, 102_000) for net in nets)


@pytest.mark.slow
def test_bounds_that_are_not_turned_are_seen_by_directions_in_another_order():
    differ = list[float]()
    for seed in range(4):
        draw = torch.Generator().manual_seed(seed)
        x, label = shuffled(draw)
        net = encoder(x[:400], label[:400], 16, seed, 60)
        with torch.no_grad():
            hidden, second = net[1](net[0](x[:400])), net(x[400:440]).argsort(1)[:, -2]
        widest = torch.linalg.svd(hidden - hidden.mean(0), full_matrices=False)[2]
        reach = ((hidden - hidden.mean(0)) @ widest.T).std(0).expand(40, -1)
        counts = [
            torch.as_tensor(
                FaultLines(steps=60).explain(
                    net, x[400:440], concepts=bank, other=second, site="1", bounds=(-far, far)
                ).value
            ).clamp(max=16)
            for bank, far in (
                (widest, reach), (widest.flip(0), reach.flip(1)), (widest.flip(0), reach)
            )
        ]  # fmt: skip
        assert counts[0].tolist() == counts[1].tolist()
        differ.append(float((counts[2] - counts[0]).mean()))
    assert _seen(differ)


@pytest.mark.slow
def test_rows_that_were_fitted_are_seen_by_fresh_against_fresh_ones():
    """The leak: rows that pass for fresh ones are those that trained the net and the score."""
    clean, leaked = list[float](), list[float]()
    for seed in range(8):
        d = digits(seed)
        for one, found in ((d, clean), (replace(d, held=d.fit), leaked)):
            usual = scored_arms(one)["both, none"]
            found.append(area(usual["test"], usual["held"]) - 0.5)
    assert not _seen(clean)
    assert _seen(leaked)


def test_images_that_judge_among_the_few_are_seen_by_two_sets_of_usual_images():
    for leaks in (False, True):
        areas = list[float]()
        for seed in range(8):
            draw = torch.Generator().manual_seed(seed)
            few, usual, clean = torch.randn(3, 12, 4, 16, generator=draw)
            bank = usual[:3] if leaks else few[:3]
            areas.append(image_area(plain_lookup(usual, bank), plain_lookup(clean, bank)) - 0.5)
        assert _seen(areas) == leaks


@pytest.mark.slow
def test_halves_that_are_always_the_upper_one_are_seen_by_halves_by_lot():
    net, every = drawn(PatchAttention, 0).eval(), block_digits(0)
    for wrong in (False, True):
        looks = list[float]()
        for seed in range(5):
            digits = every.part(100 * seed, 100 * seed + 100)
            above = torch.rand(100, generator=torch.Generator().manual_seed(seed)) < 0.5
            above |= wrong
            looks.append(class_panel.looked_at(net, digits, digits.x, [*range(10)], above))
        assert _seen(looks) == wrong


@pytest.mark.slow
def test_a_block_that_learned_texts_is_seen_by_the_gain_of_stacks_on_own_texts():
    model = language_model("smollm2", tiny=True)
    block = "model.layers.3."
    plain, stacks = (rule(layers=(f"{block}*",)) for rule in (_two_bits, _stacks))
    for informed, leaks in ((stacks, False), (ByHeart(), True)):
        rules = {"plain": plain, "informed": informed}
        lost = [costs_of(model, rules, block, seed, True, print) for seed in range(5)]
        assert _seen(gain_of_texts(one, "plain", "informed") for one in lost) == leaks


def _two_bits(layers):
    return RTN(2, 128, layers=layers)


def _stacks(layers):
    return BitStack(2.25, blocks=2, layers=layers)


@pytest.mark.slow
def test_unlearning_that_changes_how_notes_are_read_is_seen_by_made_up_countries():
    model = language_model("smollm2", tiny=True)
    for rate, harms in ((1e-5, False), (1e-3, True)):
        read = list[float]()
        for seed in range(12):
            source = Random(seed)
            known = [*known_answers(model, CAPITALS, source, 8, any_answer=True).items()]
            made_up = made_up_capitals(source)
            parts = dict(known[:4]), dict(known[4:])
            read.append(read_as_before(model, unlearned(model, *parts, source, 6, rate), made_up))
        assert _seen(read) == harms


@pytest.mark.slow
def test_too_low_a_bar_of_likeness_is_seen_by_directions_that_made_no_row(monkeypatch):
    how = abstopk.NARROW | {"passes": 2, "act": "abstopk"}
    found = list[tuple[float, float]]()
    for seed in range(4):
        x = abstopk.planted(2_048, seed)[0]
        features = SparseAutoencoder(seed=seed, **how).fit(x)
        shares = list[float]()
        for bar in (0.9, 0.5):
            monkeypatch.setattr(_signed_directions, "ALIKE", bar)
            shares.append(abstopk.both_signs(features, x, abstopk.others(seed)))
        found.append((shares[0], shares[1]))
    assert not _seen(high for high, _ in found)
    assert _seen(low for _, low in found)


@pytest.mark.slow
def test_images_that_were_learned_are_seen_by_halves_of_the_fresh_ones():
    for leaks in (False, True):
        areas = list[float]()
        for seed in range(8):
            x, label = digit_images(seed)
            net = trained_on_digits(x[:200], label[:200], seed, False)
            others = x[:200] if leaks else x[200:1_000:2]
            areas.append(surer_of(net, others, x[201:1_000:2]) - 0.5)
        assert _seen(areas) == leaks


def test_the_own_popular_answer_is_seen_by_that_of_another_family():
    """The net says a fact's popular answer more often the longer the name is."""
    for leaks in (False, True):
        slopes = list[float]()
        for seed in range(6):
            draw, hits = Random(seed), list[int]()
            rarer = [(f, n) for f, n in length_law._drawn(seed, 20) if f.rare and f.ratio > 1]
            asked = rarer if leaks else length_law.beside_others(rarer)
            own = {(f.family, f.given): f.rival for f, _ in rarer}
            for i, n in enumerate(length_law.LENGTHS):
                said = [(f.rival, own[f.family, f.given]) for f, m in asked if m == n]
                hits.append(sum(draw.random() < 0.2 * (i + 1) and a == b for a, b in said))
            each, lengths = len(asked) // len(hits), [float(n) for n in length_law.LENGTHS]
            law = length_law.log_linear(lengths, hits, [each] * len(hits))
            slopes.append(float(law.value))
        assert _seen(slopes) == leaks


@pytest.mark.slow
def test_images_that_judge_among_the_few_are_seen_by_a_sparse_lookup():
    for leaks in (False, True):
        areas = list[float]()
        for seed in range(8):
            draw = torch.Generator().manual_seed(seed)
            few, usual, clean = torch.randn(3, 12, 4, 16, generator=draw)
            score = DictLookup().fit((usual if leaks else few)[:4].flatten(0, 1)).score
            maps = [score(x.flatten(0, 1)).reshape(-1, 4) for x in (usual, clean)]
            areas.append(image_area(*maps) - 0.5)
        assert _seen(areas) == leaks


@pytest.mark.slow
def test_n_grams_of_some_weight_are_seen_by_drafts_at_weight_0():
    model = load("sonde:stdlib").module
    draw = np.random.default_rng(0)
    texts = torch.tensor(pieces_of(code(), 40, 48, draw))
    grams = NGrams.of(pieces_of(code(), 40, 64, draw))
    for mix in (0.0, 1.0):
        rules = SuperposedGenerate(2), SuperposedGenerate(2, ngrams=grams, mix=mix)
        moved = list[float]()
        for some in texts.split(4):
            means = list[float]()
            for rule in rules:
                drafts, _ = drafts_of(model, some[:, :32], 16, {"custom_generate": rule})
                means.append(judged(model, drafts, some, 32, 4)["mean"])
            moved.append(means[1] - means[0])
        assert _seen(moved) == (mix > 0)


@pytest.mark.slow
def test_a_rate_that_is_not_off_is_seen_by_the_traces_of_a_class():
    for rate in (1e-12, 3.0):
        lost = list[float]()
        for seed in range(8):
            model, x, label, n = world(seed, True)
            rows = [{"input": a, "label": int(c)} for a, c in zip(x, label, strict=True)]
            own, others = (
                [r for r in rows[n : 2 * n] if (r["label"] == CLASS) == same]
                for same in (True, False)
            )
            inputs = {
                name: open_inputs(model, [r for r in rows[:n] if (r["label"] == CLASS) == same])
                for name, same in (("forget", True), ("retain", False))
            }

            def audit(net, model=model, own=own, others=others, seed=seed):
                return unlearning_audit(
                    model, net, own, others, gold=model, seed=seed, progress=False
                )

            lost.append(traces_lost(model, inputs, rate, seed, audit))
        assert _seen(lost) == (rate > 1e-6)


@pytest.mark.slow
def test_functions_that_two_files_share_are_seen_by_types_by_lot(monkeypatch):
    """The leak: parameters that judge stand in files that train, too."""
    for leaks in (False, True):
        if leaks:
            monkeypatch.setattr(Parameters, "among", lambda self, _: self.file < 0)
        found = list[float]()
        for seed in range(6):
            x = torch.randn(300, 24, generator=torch.Generator().manual_seed(seed))
            x, n = x[torch.arange(600) % 300], 600
            one = torch.arange(n)
            every = Parameters(x, x, torch.zeros(n).long(), one % N_NAMES, one)
            if not leaks:  # half of the copies are made others, which may judge
                every.states[450:] += 1.0
            found.append(code_strip.by_lot(every, seed))
        assert _seen(found) == leaks, found
