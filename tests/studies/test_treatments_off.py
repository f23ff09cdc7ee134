"""Treatments that should be off and are not: the null arms of many studies see each of them.

A null arm applies the treatment at strength 0, to all parts or to none; the planted fault is a
treatment that is not quite off.
"""

from copy import deepcopy
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sonde
from sonde.compress import (
    RTN,
    AdaptiveModules,
    AlternateSlim,
    BlockRounding,
    ConditionalCodec,
    DataFreeCompress,
    DecoupleQ,
    OnceForAllBits,
    expert_use,
)
from sonde.core import Constant, Model
from sonde.data import open_inputs
from sonde_studies import (
    _boards,
    align_teacher,
    attention_entropy,
    attention_steer,
    causal_graph,
    coda,
    conditional_latents,
    dense_composites,
    domain_experts,
    eft,
    gradient_phases,
    increment_penalty,
    information_plane,
    inpaint,
    joined_attention,
    lol,
    merged_experts,
    neuron_lens,
    next_pixel,
    prompt_compression,
    reader_feedback,
    scalar_codes,
    size_fidelity,
    skip_scaling,
    smooth_frames,
    stage_swap,
)
from sonde_studies._bit_rule import bit_rule, untrained
from sonde_studies._careless_facts import facts_told_carelessly
from sonde_studies._flow_matching import Denoiser
from sonde_studies._layers import layers_of
from sonde_studies._learner_counts import nats_if_dealt, nats_of
from sonde_studies._passages import Reader, Retriever, questions_and_passages
from sonde_studies._recipe_data import items_of, mlp, shuffled_digits
from sonde_studies._shrunk import conv_net, shipped_net, wide_net
from sonde_studies._table_of_digits import digit_table, requests_of, table_net
from sonde_studies._taught_retriever import gains, taught_by, train_reader
from sonde_studies.study import NULL_LEVEL, Outcome
from sonde_studies.worlds.facts import Schooling, facts_and_model
from sonde_studies.worlds.learning import drawn, squares_of

SEEDS = 8
FEWER = (
    "align-teacher", "merged-experts", "rounded-runs", "slim-in-turn", "two-bits"
)  # fmt: skip
"""They take their time: half as many seeds."""


@cache
def _bytes():
    return sonde.load("sonde:stdlib", device="cpu")


def _joined(seed, off):
    before, after, _ = joined_attention._pairs(4, np.random.default_rng(seed))
    return joined_attention.fall_at(_bytes().module, before, after, 0.0 if off else 0.05)


def _frames(seed, off):
    draw = torch.Generator().manual_seed(seed)
    net = smooth_frames._cleaner(torch.rand(64, 1, 8, 8, generator=draw), seed, 3)
    clip = torch.rand(4, smooth_frames.FRAMES, 64, generator=draw)
    return smooth_frames.moved_at(net, clip, 0.0 if off else 0.05)


def _skips(seed, off):
    x = shuffled_digits(seed)[0][: skip_scaling.FIT]
    plain = skip_scaling._train(drawn(lambda: skip_scaling._UNet("plain"), seed), x, seed, 20)
    return plain[0] - skip_scaling.moves_at(x, seed, 20, 1.0 if off else 2.0)


def _steered(seed, off):
    draw = torch.Generator().manual_seed(seed)
    net, (board, *_) = _boards.trained(draw, seed, 2), _boards.boards(4, draw)
    noise = [torch.randn(board.shape, generator=draw) for _ in attention_steer.NOISE]
    _, probs = attention_steer._denoised(net, board if off else board.roll(1, 0), noise)
    return attention_steer.moved_by(net, board, noise, probs)


def _entropy(seed, off):
    weights = (None, 0.0 if off else 30.0)
    plain, held = (attention_entropy._trained(w, seed, 25)[0] for w in weights)
    return plain - held


def _teacher(seed, off):
    x = shuffled_digits(seed)[0]
    teacher = drawn(lambda: mlp(64, align_teacher.WIDTH), seed)
    arms: list[tuple[nn.Module | None, float]] = [(None, 0.0), (teacher, 0.0 if off else 5.0)]
    plain, aligned = (
        align_teacher._train(drawn(Denoiser, seed), net, Constant(w), x, seed, 9)[0]
        for net, w in arms
    )
    return plain - aligned


def _coda(seed, off):
    world, model = facts_and_model(seed, 2, Schooling(32, steps=60))
    return coda.changed_at(model, world.facts, 0.0 if off else 30.0)


def _itself(seed, off):
    facts, model = facts_told_carelessly(seed, 1, 15)
    amateur = deepcopy(model.module)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in amateur.parameters():
            noise = torch.randn(weight.shape, generator=draw)
            weight += 0.0 if off else 0.2 * noise
    other = Model(amateur, model.processor, config=model.config, task=model.task)
    return lol.changed_by(model, other, facts)


def _words(seed, off):
    (piece,) = prompt_compression.pieces(
        prompt_compression.code(), 1, 80, np.random.default_rng(seed)
    )
    text, ids = bytes(piece[:60]).decode(errors="replace"), piece[60:]
    whole = prompt_compression._loss(_bytes(), text, ids)
    share = 1.0 if off else 0.1
    options: dict[str, Any] = {"digits": False, "window": 512}
    return prompt_compression.loss_of_share(_bytes(), text, ids, share, **options) - whole


def _experts(seed, off):
    texts = domain_experts._domains(seed, 4)
    given = {name: [{"input_ids": row} for row in t[:2]] for name, t in texts.items()}
    fresh = {name: t[2:] for name, t in texts.items()}
    return domain_experts.lost_at(_bytes(), given, fresh, 1.0 if off else 0.8)


@cache
def _mixture():
    texts = merged_experts._texts("train")[:8]
    model = merged_experts._trained("apart", texts, 0, 2)
    return model, open_inputs(model, [{"input_ids": t} for t in texts])


def _merged(seed, off):
    model, inputs = _mixture()
    return merged_experts.lost_at(model, expert_use(model, inputs), inputs, 1.0 if off else 0.75)


def _channels(seed, off):
    return conv_net(seed, tiny=True).divergence(DataFreeCompress(0.0 if off else 0.25))


def _slim(seed, off):
    rule = AlternateSlim(0.0 if off else 0.25, epochs=1, rate=2e-3, seed=seed)
    return shipped_net(seed, tiny=True).divergence(rule)


def _widths(seed, off):
    return wide_net(seed, tiny=True).dearer(OnceForAllBits(8 if off else 2, 64, {}))


def _fitted_scales(seed, off):
    return shipped_net(seed, tiny=True).changed(DecoupleQ(8, 32) if off else RTN(2, 0))


def _runs(seed, off):
    rule = BlockRounding(8, 32, rows=8, layers=("vit.layers.0.*",))
    return shipped_net(seed, tiny=True).changed(rule if off else RTN(2, 0))


def _sizes(seed, off):
    states = layers_of(untrained(seed, nn.ReLU), bit_rule(seed)[0][::8])[0]
    return information_plane.lost_by_size(states, "adaptive bins" if off else "bins")


def _answers(seed, off):
    net, (x, _) = untrained(1, nn.Tanh), bit_rule(1)
    by_lot = torch.randint(2, (len(x),), generator=torch.Generator().manual_seed(seed))
    return gradient_phases.beyond_chance(net, x, None if off else by_lot, seed)


def _silent(seed, off):
    x, label = shuffled_digits(seed)
    net = causal_graph._net(seed)
    causal_graph.train(net, x[:300], label[:300], seed, 60, causal_graph.RATE)
    lost = list[float]()
    for c in range(5):
        rows = x[300:][label[300:] == c]
        rows = rows[net(rows).argmax(1) == c]
        lost.append(causal_graph.lost_by_silent(net, rows, c, 0 if off else 1))
    return sum(lost) / len(lost)


def _units(seed, off):
    base = _bytes().module
    ids = torch.randint(256, (200, 48), generator=torch.Generator().manual_seed(seed))
    other = neuron_lens._tuned(base, ids, 0 if off else 4, seed)
    sites = [f"model.layers.{i}.mlp.{name}" for i in (0, 1) for name in ("up_proj", "down_proj")]
    shares = neuron_lens.kept(base, other, sites)
    return 1 - sum(shares) / len(shares)


def _stages(seed, off):
    x, label = shuffled_digits(seed)
    net = stage_swap._trained(x, label, seed, 60)
    other = stage_swap.reordered(net, seed) if off else stage_swap._with_noise(net, seed)
    return stage_swap.lost_by_swap(stage_swap.swapped([net, other], x[700:], label[700:], seed))


def _dealt(seed, off):
    draw = torch.Generator().manual_seed(seed)
    net = table_net(*_requests(seed), seed, 100)
    inputs = open_inputs(Model(net), items_of(*(rows[:200] for rows in _requests(seed))))
    rule = AdaptiveModules(["mlp"], 8, 0.4, steps=20, rate=3e-3, seed=seed)
    made: Any = rule.fit(Model(net), inputs).module
    x = _requests(seed)[0]
    few = nats_of(net, made, x)
    number = made.get_submodule("mlp").number
    lot = number[torch.randperm(len(number), generator=draw)]
    return nats_if_dealt(net, made, x, number if off else lot) - few


@cache
def _requests(seed):
    x, label = shuffled_digits(seed)
    draw = torch.Generator().manual_seed(seed)
    return requests_of(x[:500], label[:500], digit_table(seed), 400, draw)


def _references(seed, off):
    x = squares_of(16 * shuffled_digits(seed)[0][:300], 4).flatten(0, 1)
    codec = ConditionalCodec.fit(x[:800], 16, 3.0, seed, references=2)
    rows, others = x[800:].chunk(2)
    return conditional_latents.share_off(codec, rows, rows if off else others)


def _emulated(seed, off):
    world, large = facts_and_model(seed, 1, Schooling(32, steps=40))
    small, tuned = (facts_and_model(seed, 1, Schooling(16, 1, steps=n))[1] for n in (10, 60))
    return eft.gained_by(large, small if off else tuned, small, world.facts[:6])


def _held(seed, off):
    at = increment_penalty.studio(seed, 10)
    net = increment_penalty.imitator(at, seed + 1, 10)
    asked = increment_penalty.order(at, seed, 40, False)
    return increment_penalty.moved_at(at, net, asked, 0.0 if off else 0.1)


def _hidden(seed, off):
    x = inpaint._patches(0, seed, 40)
    net = drawn(lambda: inpaint.UNet(2, 1, meeting=inpaint.Pair()), seed)
    hole = inpaint._holes(len(x), torch.Generator().manual_seed(seed))
    return inpaint.moved_by_hidden(net, x, hole, hole if off else hole.roll(1, 2))


def _pixels(seed, off):
    x = (16 * shuffled_digits(seed)[0]).long()
    coder = next_pixel._coder(next_pixel._trained(x[:200], 17, seed, 4), 17, 64)
    return next_pixel.share_lost(coder, x[200:203], x[200:203] if off else x[203:206])


def _taught(seed, off):
    known, new = questions_and_passages(seed, (60, 60))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        untaught, reader = Retriever(120), Reader()
        train_reader(reader, untaught, known, 200)

    def label(rows, found):
        return reader_feedback.weighed(gains(reader, known, rows, found), 0.0 if off else 1.0)

    nets = taught_by(untaught, known, label, 60, seed), untaught
    first = [net(new, new.answerable).argmax(1) for net in nets]
    helps = [new.helpful(new.answerable, one[:, None]).double().mean() for one in first]
    return float(helps[0] - helps[1])


def _rescaled(seed, off):
    draw = torch.Generator().manual_seed(seed)
    sizes = scalar_codes.SIZES
    factors = torch.stack([torch.randint(n, (400,), generator=draw) for n in sizes], 1).float()
    maps = scalar_codes.RESCALED if off else scalar_codes.RESCALED + 0.3
    return scalar_codes.lost_modularity(factors, maps)


def _passed_on(seed, off):
    usual = size_fidelity.usual_values(seed)
    texts = size_fidelity.texts_of(usual, 200, torch.Generator().manual_seed(seed))
    return size_fidelity.overwritten(usual, texts, texts if off else texts.roll(1, 0))


def _masks(module):
    def figure(seed, off):
        train, test = dense_composites.scenes_of(seed, tiny=True)
        plain = dense_composites.trained_with(dict, train, seed, 2)
        make = partial(module, 0.0 if off else 0.3)
        return dense_composites.moved_by(make, plain, train, test, seed, 2)

    return figure


NULLS = {
    "adaptive-learners": _dealt,
    "align-teacher": _teacher,
    "attention-entropy": _entropy,
    "attention-steer": _steered,
    "causal-graph": _silent,
    "coda": _coda,
    "conditional-latents": _references,
    "dense-composites": _masks(dense_composites.held_gate),
    "domain-experts": _experts,
    "eft": _emulated,
    "gradient-phases": _answers,
    "increment-penalty": _held,
    "information-plane": _sizes,
    "inpaint": _hidden,
    "joined-attention": _joined,
    "lol": _itself,
    "merged-experts": _merged,
    "neuron-lens": _units,
    "next-pixel": _pixels,
    "once-for-all": _widths,
    "prompt-compression": _words,
    "reader-feedback": _taught,
    "rounded-runs": _runs,
    "scalar-codes": _rescaled,
    "size-fidelity": _passed_on,
    "skip-scaling": _skips,
    "slim-in-turn": _slim,
    "smooth-frames": _frames,
    "stage-swap": _stages,
    "two-bits": _fitted_scales,
    "without-data": _channels,
}


@pytest.mark.slow
@pytest.mark.parametrize("word", NULLS)
def test_a_treatment_that_is_not_off_is_seen(word):
    for off in (True, False):
        n = SEEDS // 2 if word in FEWER else SEEDS
        found = tuple(NULLS[word](seed, off) for seed in range(n))
        assert Outcome(found, 0.0, NULL_LEVEL).covers == off, found
