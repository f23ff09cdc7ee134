"""What a language model expected of each token, while ``generate`` makes them one by one."""

from typing import Any

import pytest
import torch
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel

from cache_name import CACHE
from sonde import Guard
from sonde.core import InputError, Model
from sonde.detect import PAWN, Mahalanobis, TokenStatistics
from sonde.run.fitting.fit import fit
from sonde.run.scoring.score import score
from sonde.tap import cache_of, live_stream
from tap_inputs import Texts, padded

DRAW = torch.Generator().manual_seed(0)
TEXTS = [torch.randint(3, 64, (6 + i % 5,), generator=DRAW).tolist() for i in range(160)]
FEW = [TEXTS[0], TEXTS[3]]
SMALL = PAWN(features=8, gates=4, hidden=8, depth=1, epochs=2, batch=16)


@pytest.fixture(scope="module")
def causal():
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2, n_embd=32, n_head=2, vocab_size=64, n_positions=64, bos_token_id=1,
        eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    net = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        net.transformer.wte.weight.mul_(20.0)  # logits that differ
    return Model(net, config=config, task="causal")


def stream_of(model, items, reading, labels=None):
    sites, reducer = reading.get("sites", "logits"), reading.get("reducer", "tokens")
    return live_stream(model, Texts(items, special=False, labels=labels), sites, reducer)


@pytest.fixture(scope="module")
def probes(causal):
    """Return probes by name, calibrated for single tokens."""
    found = {}
    for detector in (TokenStatistics(), SMALL):
        stream = stream_of(causal, TEXTS, detector.reading(), [i % 2 for i in range(len(TEXTS))])
        name = type(detector).__name__
        found[name] = fit(detector, stream, progress=False, reduction="rows")
    return found


def places(rows: Any) -> dict[tuple[int, int], float]:
    return {(int(r["id"].removeprefix("text")), r["position"]): r["score"] for r in rows}


def assert_as_finished(guard, probe, model, texts, reading, positions):
    """Assert that each text has the rows of these positions, as a score of the whole has them."""
    want = places(score(probe, stream_of(model, texts, reading), progress=False).to_pylist())
    mine = places(guard.table().to_pylist())
    assert set(mine) == {(i, p) for i, mine in enumerate(positions) for p in mine}
    assert list(mine.values()) == pytest.approx([want[k] for k in mine], rel=1e-4, abs=1e-5)
    assert len(set(mine.values())) > len(mine) / 2


@pytest.mark.truth("sonde.score of the finished text")
@pytest.mark.parametrize("settings", [{}, {"do_sample": True}, {"logits_to_keep": 0}], ids=str)
@pytest.mark.parametrize("detector", [TokenStatistics(), SMALL], ids=["TokenStatistics", "PAWN"])
def test_tokens_are_scored_as_they_come(causal, probes, detector, settings):
    ids, mask = padded(FEW, "left")
    probe = probes[type(detector).__name__]
    torch.manual_seed(1)
    with torch.no_grad(), Guard(causal, probe) as guard:
        out = causal.module.generate(
            input_ids=ids, attention_mask=mask.long(), max_new_tokens=6, eos_token_id=None,
            pad_token_id=0, **settings,
        )  # fmt: skip
    fed = [row[ids.shape[1] - len(t) : -1].tolist() for row, t in zip(out, FEW, strict=True)]
    whole = "logits_to_keep" in settings
    made = [range(1 if whole else len(t), len(t) + 5) for t in FEW]
    assert_as_finished(guard, probe, causal, fed, detector.reading(), made)
    assert set(guard.p_values) == set(guard.scores)


def cached(model, ids, cache=None, **options):
    with torch.no_grad():
        return model.module(input_ids=torch.tensor(ids), **{CACHE: cache}, **options)


@pytest.mark.truth("sonde.score of the finished text")
@pytest.mark.parametrize("again", [[0, 1], [1, 0], [1, 1]], ids=str)
def test_logits_follow_the_rows_of_a_cache_as_beams_move_them(causal, probes, again):
    first = [TEXTS[0][:5], TEXTS[1][:5]]
    probe, reading = probes["TokenStatistics"], TokenStatistics().reading()
    with Guard(causal, probe) as guard:
        cache = cache_of(cached(causal, first, use_cache=True))
        cache.reorder_cache(torch.tensor(again))
        cached(causal, [[7, 8], [9, 10]], cache)
    counts = [guard.position[name].tolist() for name in guard.scores]
    assert counts == [[1, 2, 3, 4, 1, 2, 3, 4, 5, 6, 5, 6]]
    texts = [first[a] + more for a, more in zip(again, ([7, 8], [9, 10]), strict=True)]
    want = places(score(probe, stream_of(causal, texts, reading), progress=False).to_pylist())
    (scores,) = guard.scores.values()
    assert scores[8:].tolist() == pytest.approx(
        [want[i, p] for i in range(2) for p in (5, 6)], rel=1e-4
    )


def test_a_cache_that_was_cut_or_filled_elsewhere_is_refused(causal, probes):
    elsewhere = cache_of(cached(causal, [TEXTS[0][:5]], use_cache=True))
    with Guard(causal, probes["TokenStatistics"]) as guard:
        cache = cache_of(cached(causal, [TEXTS[0][:5]], use_cache=True))
        cache.crop(-1)
        with pytest.raises(
            InputError, match=r"with 5 tokens, got another cache with 4 tokens.*assistant"
        ):
            cached(causal, [[7]], cache)
        cached(causal, [TEXTS[1][:5]], use_cache=True)
        with pytest.raises(InputError, match="with 5 tokens, got another cache with 5 tokens"):
            cached(causal, [[7]], elsewhere)
        cached(causal, [TEXTS[1][:5]], DynamicCache(config=causal.config))
    assert guard.n_forwards == 3


@pytest.mark.truth("sonde.score of the finished texts")
def test_texts_that_take_turns_go_on_with_their_own_caches(causal, probes):
    first, probe = [TEXTS[0][:5], TEXTS[1][:5]], probes["TokenStatistics"]
    reading = TokenStatistics().reading()
    with Guard(causal, probe) as guard:
        caches = [cache_of(cached(causal, [text], use_cache=True)) for text in first]
        seen = []
        for cache, more in zip(caches, ([7, 8], [9, 10]), strict=True):
            cached(causal, [more], cache)
            seen.append(guard.last(here=True))
    assert [text.forwards for text in seen] == [[0, 2], [1, 3]]
    texts = [[*text, *more] for text, more in zip(first, ([7, 8], [9, 10]), strict=True)]
    want = places(score(probe, stream_of(causal, texts, reading), progress=False).to_pylist())
    for i, text in enumerate(seen):
        (scores,), (position,) = text.scores.values(), text.position.values()
        expected = [want[i, p] for p in position.tolist()]
        assert scores.tolist() == pytest.approx(expected, rel=1e-4)


def test_a_text_begins_anew_without_a_cache(causal, probes):
    with Guard(causal, probes["TokenStatistics"]) as guard:
        cached(causal, FEW[:1], use_cache=True)
        cached(causal, [[7, 8]], use_cache=False)
    (position,) = guard.position.values()
    assert position.tolist() == [1]


@pytest.mark.truth("one forward over each beginning of the text")
def test_states_of_the_tokens_that_were_made_stand_at_their_places(causal):
    """``generate`` takes the head's input of a prompt's last token alone."""
    probe = fit(Mahalanobis(), stream_of(causal, TEXTS, {"sites": "lm_head:in"}), progress=False)
    ids, mask = padded(FEW, "left")
    with torch.no_grad(), Guard(causal, probe) as guard:
        out = causal.module.generate(
            input_ids=ids, attention_mask=mask.long(), max_new_tokens=3, eos_token_id=None,
            pad_token_id=0,
        )  # fmt: skip
    fed = [row[ids.shape[1] - len(t) : -1].tolist() for row, t in zip(out, FEW, strict=True)]
    made = [range(len(t) - 1, len(t) + 2) for t in FEW]
    assert_as_finished(guard, probe, causal, fed, {"sites": "lm_head:in"}, made)


def test_a_mean_of_states_that_are_left_out_is_refused(causal):
    stream = live_stream(causal, Texts(TEXTS, special=False), "lm_head:in", "mean")
    probe = fit(Mahalanobis(), stream, progress=False)
    with Guard(causal, probe), pytest.raises(InputError, match="those of the first 5 tokens"):
        causal.module.generate(input_ids=torch.tensor([TEXTS[0]]), max_new_tokens=2, pad_token_id=0)
