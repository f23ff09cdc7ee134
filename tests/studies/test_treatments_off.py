"""Treatments that should be off and are not: the null arms of many studies see each of them.

A null arm applies the treatment at strength 0, to all parts or to none; the planted fault is a
treatment that is not quite off.
"""

from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sonde
from sonde.compress import (
    RTN,
    AlternateSlim,
    BlockRounding,
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
    domain_experts,
    gradient_phases,
    information_plane,
    joined_attention,
    lol,
    merged_experts,
    prompt_compression,
    skip_scaling,
    smooth_frames,
)
from sonde_studies._bit_rule import bit_rule, untrained
from sonde_studies._careless_facts import facts_told_carelessly
from sonde_studies._flow_matching import Denoiser
from sonde_studies._layers import layers_of
from sonde_studies._recipe_data import mlp, shuffled_digits
from sonde_studies._shrunk import conv_net, shipped_net, wide_net
from sonde_studies.study import NULL_LEVEL, Outcome
from sonde_studies.worlds.facts import Schooling, facts_and_model
from sonde_studies.worlds.learning import drawn

SEEDS = 8
FEWER = (
    "align-teacher", "domain-experts", "merged-experts", "rounded-runs", "slim-in-turn", "two-bits"
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
    return plain - skip_scaling.moves_at(x, seed, 20, 1.0 if off else 2.0)


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


NULLS = {
    "align-teacher": _teacher,
    "attention-entropy": _entropy,
    "attention-steer": _steered,
    "causal-graph": _silent,
    "coda": _coda,
    "domain-experts": _experts,
    "gradient-phases": _answers,
    "information-plane": _sizes,
    "joined-attention": _joined,
    "lol": _itself,
    "merged-experts": _merged,
    "once-for-all": _widths,
    "prompt-compression": _words,
    "rounded-runs": _runs,
    "skip-scaling": _skips,
    "slim-in-turn": _slim,
    "smooth-frames": _frames,
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
