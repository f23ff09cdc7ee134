"""Faults that are planted in studies, and the null arms that see them."""

from dataclasses import dataclass, replace
from random import Random

import pytest
import torch

from sonde.compress import (
    RTN,
    BitStack,
    PruneWeights,
    QuantCache,
    WeightCodebook,
)
from sonde.core import CachePacking
from sonde.explain import FaultLines
from sonde.weights import Examples, Exchange, Rewrite, RewritePlan
from sonde_studies import class_panel
from sonde_studies._bit_orders import BLOCKS, rounded_net
from sonde_studies._blocks import block_digits
from sonde_studies._cached import SmallerCaches, pieces
from sonde_studies._digits import digits, encoder, shuffled
from sonde_studies._help_pages import gains_of, language_model
from sonde_studies._patch_lookup import plain_lookup
from sonde_studies._patches import image_area
from sonde_studies._planted import PatchAttention
from sonde_studies._separation import area
from sonde_studies._shrunk import wide_net
from sonde_studies._world_facts import known_answers
from sonde_studies.costarr import scored_arms
from sonde_studies.depth_pretrained import share_by_lot
from sonde_studies.memories import DIM, unasked_for
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
from sonde_studies.worlds.learning import drawn

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
