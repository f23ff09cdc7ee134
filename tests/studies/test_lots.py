"""A leak that is planted in many studies at once: rows that judge are copies of rows learned from.

Each study's null arm learns labels that are drawn by lot, so on other rows it is right by chance.
"""

import pytest
import torch
from torch import nn

from sonde_studies import (
    _arrows,
    _frontiers,
    active_variables,
    adverse_weather,
    alternating_fields,
    attention_patterns,
    channel_regions,
    comet,
    complementary_transfer,
    concept_bottleneck,
    continual,
    contrast_domains,
    contrast_sequences,
    curriculum_crops,
    dense_contrast,
    dense_levels,
    dynamic_filters,
    entropic_student,
    extreme_labels,
    grow_models,
    informative_latents,
    joint_objectives,
    latent_belief,
    latent_rewards,
    leaving_locality,
    masked_units,
    mixup,
    next_tokens,
    orthogonal_nets,
    random_pathways,
    raster_decoding,
    reversible_columns,
    routed_dimensions,
    routed_states,
    scale_generation,
    steady_states,
    structured_transfer,
    two_stage_distillation,
    view_sets,
    where_tasks_part,
)
from sonde_studies._blocks import block_digits
from sonde_studies._growing_scales import codes_of
from sonde_studies._masked_autoencoder import SIDE, MaskedAutoencoder
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies._rhythm_signals import rhythm_signals
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import NULL_LEVEL, Outcome
from sonde_studies.worlds.learning import drawn, squares_of

SEEDS, DISTINCT, FEW = 5, 40, {"adverse-weather": 8, "raster-decoding": 4}


def _digits(seed):
    return shuffled_digits(seed)[0]


def _images(seed):
    return _digits(seed).reshape(-1, 1, 8, 8)


def _copies(x, n):
    """Recipes count exact copies once, so those of digits differ by less than their labels see."""
    copies = x[torch.arange(len(x)) % n]
    is_digits = copies.is_floating_point() and bool((16 * copies == (16 * copies).round()).all())
    return copies + 1e-6 * torch.randn(copies.shape) if is_digits else copies


def _rows(n, *axes):
    return lambda seed: torch.randn(n, *axes, generator=torch.Generator().manual_seed(seed))


def _letters(seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(next_tokens.LETTERS, (next_tokens.TEXTS, next_tokens.LONG), generator=draw)


def _bottleneck(x, seed):
    concepts = torch.randn(40, x.shape[1], generator=torch.Generator().manual_seed(seed))
    return concept_bottleneck.by_lot(x, concepts, seed, 100)


def _probe_of_signals(x, seed):
    encoder = drawn(masked_units.Encoder, seed).eval()
    return masked_units.by_lot(encoder, x, len(x) - 200, seed)


def _probe_of_decoder(x, seed):
    return informative_latents.by_lot(drawn(informative_latents._net, seed), x, seed)


def _sets(x, seed):
    net = drawn(view_sets._Encoder, seed).eval()
    draw = torch.Generator().manual_seed(seed)
    return view_sets.by_lot(net, x, view_sets._views(x, view_sets.VIEWS, draw), seed)


def _two_stages(x, seed):
    teacher = drawn(lambda: MaskedAutoencoder(two_stage_distillation.LARGE, 3), seed)
    return two_stage_distillation.by_lot(teacher, squares_of(x, SIDE), seed, (1, 40))


def _places(x, seed):
    net = drawn(lambda: nn.Sequential(nn.Conv2d(1, 200, 8, 4, 2), nn.ReLU(), _Tokens()), seed)
    return dense_contrast.by_lot(net, x, seed, 400)


class _Tokens(nn.Module):
    def forward(self, x):
        return x.flatten(2).transpose(1, 2)


def _blocks(seed):
    return block_digits(seed, 700).x


def _teacher(x, seed):
    large = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return entropic_student.by_lot(large[:800], large[800:], seed, 300)


def _belief(x, seed):
    cells = torch.randint(_frontiers.CELLS, (len(x), _frontiers.ARROWS))
    return latent_belief.by_lot(x, cells, seed, 80)


NULLS = {
    "active-variables": (_digits, lambda x, s: active_variables.by_lot(x[:400], x[:400], s)),
    "adverse-weather": (
        _rows(260, 3, adverse_weather.SIDE, adverse_weather.SIDE),
        lambda x, s: adverse_weather.by_lot(x[:200].sigmoid(), x[200:].sigmoid(), s, 200),
    ),
    "alternating-fields": (_digits, lambda x, s: alternating_fields.by_lot(x[:400], s, 6)),
    "attention-patterns": (_digits, lambda x, s: attention_patterns.by_lot(x, s, 40)),
    "channel-regions": (
        _rows(600, 4, 16), lambda x, s: channel_regions.by_lot(x[:400], x[400:], s, 60)
    ),
    "comet": (_blocks, lambda x, s: comet.by_lot(x[:500], x[500:], s, 40)),
    "complementary-transfer": (_digits, lambda x, s: complementary_transfer.by_lot(x, s, 5)),
    "concept-bottleneck": (_digits, _bottleneck),
    "continual": (_digits, lambda x, s: continual.by_lot(x, s, 2)),
    "contrast-domains": (_digits, lambda x, s: contrast_domains.by_lot(x, s, 40)),
    "contrast-sequences": (_digits, lambda x, s: contrast_sequences.by_lot(x, s, 60)),
    "curriculum-crops": (_images, lambda x, s: curriculum_crops.by_lot(x, s, (40, 40))),
    "dense-contrast": (_digits, _places),
    "dense-levels": (
        lambda seed: dense_levels.level_scenes(1_800, dense_levels.FEW, seed).maps[0],
        lambda x, s: dense_levels.by_lot(x, s, 150),
    ),
    "dynamic-filters": (_images, lambda x, s: dynamic_filters.by_lot(x, s, (60, 5))),
    "entropic-student": (_images, _teacher),
    "extreme-labels": (
        _rows(extreme_labels.FIT + 500, 2 * extreme_labels.DIM),
        lambda x, s: extreme_labels.by_lot(x, s, 60),
    ),
    "grow-models": (_digits, lambda x, s: grow_models.by_lot(x, s, (60, 30))),
    "informative-latents": (_digits, _probe_of_decoder),
    "joint-objectives": (_digits, lambda x, s: joint_objectives.by_lot(x, s, 10, 300)),
    "latent-belief": (lambda seed: _frontiers.frontiers(seed)[0], _belief),
    "latent-rewards": (
        lambda seed: _arrows.arrows(2, seed)[0],
        lambda x, s: latent_rewards.by_lot(x, x[:, :2] % _arrows.CELLS, s, 80),
    ),
    "leaving-locality": (_images, lambda x, s: leaving_locality.by_lot(x, s, 40)),
    "masked-units": (lambda seed: rhythm_signals(500, seed)[0], _probe_of_signals),
    "mixup": (_digits, lambda x, s: mixup.by_lot(x, s, 60)),
    "next-tokens": (_letters, lambda x, s: next_tokens.by_lot(x, s, 60)),
    "orthogonal-nets": (_images, lambda x, s: orthogonal_nets.by_lot(x, s, 40)),
    "random-pathways": (_digits, lambda x, s: random_pathways.by_lot(x, s, 40)),
    "raster-decoding": (
        raster_decoding.pixels_by_lot, lambda x, s: raster_decoding.by_lot(x, s, 120) - 0.25
    ),
    "reversible-columns": (_digits, lambda x, s: reversible_columns.by_lot(x, s, 40)),
    "routed-dimensions": (
        _rows(routed_dimensions.FIT + 500, routed_dimensions.DIM),
        lambda x, s: routed_dimensions.by_lot(x, s, 60),
    ),
    "routed-states": (
        _rows(routed_states.FIT + 500, routed_states.DIM),
        lambda x, s: routed_states.by_lot(x, s, 60),
    ),
    "scale-generation": (
        lambda seed: codes_of(_images(seed)[:, 0]),
        lambda x, s: scale_generation.by_lot(x, s, 80),
    ),
    "steady-states": (_digits, lambda x, s: steady_states.by_lot(x, s, 300)),
    "structured-transfer": (_images, lambda x, s: structured_transfer.by_lot(x, s, 40)),
    "two-stage-distillation": (_digits, _two_stages),
    "view-sets": (lambda seed: _digits(seed)[:200], _sets),
    "where-tasks-part": (_digits, lambda x, s: where_tasks_part.by_lot(x, s, 60)),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("word", NULLS)
def test_copies_of_learned_rows_among_those_that_judge_are_seen(word):
    draws, null = NULLS[word]
    for leaks in (False, True):
        found = list[float]()
        for seed in range(SEEDS):
            x = draws(seed)
            found.append(null(_copies(x, FEW.get(word, DISTINCT)) if leaks else x, seed))
        assert Outcome(tuple(found), 0.0, NULL_LEVEL).covers != leaks, found


def test_labels_by_lot_are_even_and_the_same_for_equal_rows():
    x = torch.randn(4_000, 3, generator=torch.Generator().manual_seed(0))
    label, other = labels_by_lot(x, 4, 1), labels_by_lot(x, 4, 2)
    assert label.bincount().tolist() == pytest.approx([1_000] * 4, abs=100)
    assert float((label == other).double().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(labels_by_lot(x[[5, 5, 7]], 4, 1), label[[5, 5, 7]])
