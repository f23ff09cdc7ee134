"""The request's texts told from others: scores over layers, the encoder, and the gate they make."""

from functools import cache

import numpy as np
import pytest
import torch
from sklearn.covariance import OAS

import sonde
from sonde.core import InputError, Scale, ShapeError
from sonde.edit import RequestDetector, layer_rows, soft_gate
from sonde.edit.request_detector import contrast, contrastive_map, without_words
from sonde.tap import Tap

SITES = ["model.layers.1", "model.layers.4"]
CODE = [f"def f{i}(x):\n    return [x + {i} * y for y in range({7 * i})]" for i in range(14)]
THINGS = ("roof", "door", "wall", "bell", "cat", "lamp", "yard", "bed", "pot", "clock")
PROSE = [f"The {word} was old, and nobody had seen it for {len(word)} years." for word in THINGS]


@cache
def model():
    return sonde.load("sonde:stdlib", device="cpu")


@cache
def rows(which):
    return torch.cat(layer_rows(model(), {"code": CODE, "prose": PROSE}[which], SITES), 1)


@pytest.mark.truth("a tap on each text alone")
def test_rows_stand_in_the_order_of_the_texts_and_of_the_named_sites():
    texts = [PROSE[0], "x = 1", CODE[3]]
    found = layer_rows(model(), texts, SITES[::-1])
    for i, text in enumerate(texts):
        with Tap(model(), SITES) as tap, torch.no_grad():
            model().module(torch.tensor([list(text.encode())]))
        for part, site in zip(found, SITES[::-1], strict=True):
            alone = tap.rows[f"{site}:out"][0].mean(0)
            torch.testing.assert_close(part[i], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.essential
@pytest.mark.truth("scikit-learn's OAS and numpy, text by text")
def test_the_score_is_the_distance_less_the_cosine_in_units_of_held_out_texts():
    scorer = RequestDetector(width=None).learn(model(), CODE, SITES)
    found = scorer.by_layer(rows("prose"))
    held = np.arange(len(CODE)) % 4 == 3
    for i, part in enumerate(np.split(rows("code").double().numpy(), 2, 1)):
        own, fresh = part[~held], np.split(rows("prose").double().numpy(), 2, 1)[i]

        def code(x, own=own):
            z = (x - own.mean(0)) / own.std(0)
            return z / np.linalg.norm(z, axis=1, keepdims=True)

        oas = OAS().fit(code(own))

        def two(x, own=own, oas=oas, code=code):
            return np.stack([oas.mahalanobis(code(x)) ** 0.5, (code(x) @ code(own).T).max(1)], 1)

        base = two(part[held])
        z = (two(fresh) - base.mean(0)) / base.std(0, ddof=1)
        np.testing.assert_allclose(found[:, i].numpy(), (z[:, 0] - z[:, 1]) / 2, rtol=2e-3)
    torch.testing.assert_close(scorer.score(rows("prose")), found.mean(1))


def test_the_unit_of_the_states_does_not_matter():
    draw = torch.Generator().manual_seed(3)
    own = torch.randn(20, 3, generator=draw, dtype=torch.float64) * torch.tensor([0.3, 1.0, 4.0])
    rule, fresh = RequestDetector(width=None), own.flip(1) + 0.5
    wanted, found = (
        rule._layer(scale * own[:14], scale * own[14:], None).score(scale * fresh)
        for scale in (1.0, 1e-4)
    )
    torch.testing.assert_close(found, wanted)


@pytest.mark.truth("a loop over pairs of views")
def test_the_contrast_finds_the_other_view_among_all_others():
    a, b = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1))
    every = [v / v.norm() for v in (*a, *b)]
    told = []
    for i, one in enumerate(every):
        other = torch.stack([one @ w / 0.7 for j, w in enumerate(every) if j != i])
        told.append(other.logsumexp(0) - one @ every[(i + 5) % 10] / 0.7)
    torch.testing.assert_close(contrast(a, b, 0.7), torch.stack(told).mean())


def test_the_encoder_keeps_what_views_of_a_text_share():
    draw = torch.Generator().manual_seed(2)
    views = torch.randn(6, 40, 12, generator=draw)
    views[:, :, 3:5] = torch.randn(40, 2, generator=draw) * 0.6 + 0.1 * views[:, :, 3:5]
    found = contrastive_map(views, 4, 0.3, 0.01, 300, 0).square().sum(1)
    assert float(found[3:5].sum() / found.sum()) > 0.8


@pytest.mark.slow
def test_a_gate_over_layers_opens_for_the_request_alone():
    scorer = RequestDetector(epochs=100, views=4).learn(model(), CODE, SITES)
    own, others = scorer.score(rows("code")), scorer.score(rows("prose"))
    gate = soft_gate(scorer, others, own, SITES)
    for text, opens in ((CODE[5], True), (PROSE[2], False)):
        ids = torch.tensor([list(text.encode())])
        net = model().module
        with torch.no_grad():
            plain = net(ids).logits
            with sonde.editing(model(), Scale(0.0), "model.layers.5", gate=gate):
                gated = net(ids).logits
        assert torch.equal(plain, gated) != opens


def test_at_least_one_word_stays_and_spaces_keep_theirs():
    draw = torch.Generator().manual_seed(0)
    views = {without_words("a = b", 0.5, draw) for _ in range(60)}
    assert views == {"a = b", "a =", "a b", "= b", "a", "=", "b"}
    assert without_words("  ", 0.5, draw) == "  "


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="at least 8 texts, got 3"):
        RequestDetector().learn(model(), CODE[:3])
    with pytest.raises(InputError, match="masked in"):
        RequestDetector(masked=1.0)
    with pytest.raises(InputError, match="width of at least 0, got -3"):
        RequestDetector(width=-3)
    scorer = RequestDetector(width=None).learn(model(), CODE, SITES)
    with pytest.raises(ShapeError, match="the rows of 2 layers joined"):
        scorer.score(torch.ones(2, 192))
