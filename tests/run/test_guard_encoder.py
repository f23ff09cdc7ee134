"""A guard at the encoder of an encoder-decoder, which ``generate`` runs once and by itself."""

from typing import Any

import pytest
import torch
from transformers import BartConfig, BartForSequenceClassification

from models import ARCHITECTURES, model_of
from sonde import Guard
from sonde.core import InputError, Model, SiteError
from sonde.detect import KNN, NAC, Mahalanobis
from sonde.run.fitting.fit import fit
from sonde.tap import live_stream
from tap_inputs import Texts, padded

DRAW = torch.Generator().manual_seed(0)
TEXTS = [torch.randint(3, 60, (4 + i % 6,), generator=DRAW).tolist() for i in range(200)]
TARGETS = [[0, *torch.randint(3, 60, (i % 4,), generator=DRAW).tolist()] for i in range(200)]
SITES = {"encoder": "encoder.block.1", "decoder": "decoder.block.1"}


@pytest.fixture(scope="module")
def model():
    return model_of(next(a for a in ARCHITECTURES if a.name == "t5"))


@pytest.fixture(scope="module")
def probes(model):
    """Return fitted probes by reducer and sites."""
    made = {}

    def probe(reducer, *parts):
        if (reducer, parts) not in made:
            made[reducer, parts] = fitted_on(model, reducer, *parts)
        return made[reducer, parts]

    return probe


def fitted_on(model, reducer, *parts):
    items = Texts(TEXTS, targets=TARGETS, special=False)
    stream = live_stream(model, items, [SITES[p] for p in parts], reducer)
    return fit([Mahalanobis(), KNN(k=3)], stream, progress=False)


def _tripled(module, args):
    args[0].mul_(3.0)


def inputs():
    ids, mask = padded(TEXTS[:3])
    return {"input_ids": ids, "attention_mask": mask.long()}


@pytest.mark.slow
@pytest.mark.truth("one forward over prompt and answer, encoder and decoder together")
@pytest.mark.parametrize("parts", [("encoder",), ("encoder", "decoder")], ids=str)
@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("use_cache", [True, False])
def test_generation_scores_the_encoder_once(model, probes, parts, beams, use_cache):
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "num_beams": beams}
    plain = model.module.generate(**inputs(), **settings)
    probe = probes("tokens", *parts)
    with Guard(model, probe) as guard:
        out = model.module.generate(**inputs(), **settings, use_cache=use_cache)
    assert torch.equal(out, plain)
    with torch.no_grad(), Guard(model, probe) as whole:
        model.module(**inputs(), decoder_input_ids=out[:, :-1])
    for name in whole.scores:
        if "encoder" in name[1]:
            of_encoder = whole.example[name].repeat_interleave(1)
            assert sorted(guard.example[name].tolist()) == sorted(
                beams * e + b for e in of_encoder.tolist() for b in range(beams)
            )
            for b in range(beams):
                mine = guard.scores[name][guard.example[name] % beams == b]
                assert mine.tolist() == pytest.approx(whole.scores[name].tolist(), rel=1e-4)
            assert len(guard.p_values[name]) == len(guard.scores[name])
        elif beams == 1:
            assert sorted(guard.scores[name].tolist()) == pytest.approx(
                sorted(whole.scores[name].tolist()), rel=1e-3
            )


@pytest.mark.slow
@pytest.mark.truth("one forward of encoder and decoder together, which is read in the hook")
def test_work_in_place_after_a_site_of_an_encoder_does_not_reach_its_rows(model):
    following = model.module.encoder.block[2]
    handle = following.register_forward_pre_hook(_tripled)
    try:
        probe = fitted_on(model, "tokens", "encoder")
        with Guard(model, probe) as guard:
            out = model.module.generate(**inputs(), max_new_tokens=1, min_new_tokens=1)
        with torch.no_grad(), Guard(model, probe) as whole:
            model.module(**inputs(), decoder_input_ids=out[:, :-1])
    finally:
        handle.remove()
    for name, scores in whole.scores.items():
        assert guard.scores[name].tolist() == pytest.approx(scores.tolist(), rel=1e-4)


@pytest.mark.slow
@pytest.mark.truth("one forward of encoder and decoder together")
def test_a_mean_over_the_prompt_is_scored_with_the_first_step(model, probes):
    probe = probes("mean", "encoder")
    with Guard(model, probe) as guard:
        model.module.generate(**inputs(), max_new_tokens=3, min_new_tokens=3)
    with torch.no_grad(), Guard(model, probe) as whole:
        model.module(**inputs(), decoder_input_ids=torch.zeros(3, 1, dtype=torch.int64))
    assert guard.n_forwards == 3
    for name in whole.scores:
        assert guard.scores[name].tolist() == pytest.approx(whole.scores[name].tolist(), rel=1e-4)


def test_only_the_output_of_the_run_that_was_seen_counts(model, probes):
    encoder, target = model.module.get_encoder(), torch.zeros(3, 1, dtype=torch.int64)
    with torch.no_grad():
        before = encoder(**inputs())
        with Guard(model, probes("tokens", "encoder")) as guard:
            with pytest.raises(SiteError, match="Open the guard before the encoder runs"):
                model.module(encoder_outputs=before, decoder_input_ids=target)
            seen = encoder(**inputs())
            assert guard.scores == {}
            model.module(encoder_outputs=seen, decoder_input_ids=target)
    assert set(guard.scores) == {(m, "encoder.block.1:out") for m in ("mahalanobis", "knn")}


@pytest.mark.slow
def test_no_gradient_reaches_an_encoder_that_ran_alone():
    torch.manual_seed(0)
    sides: dict[str, Any] = dict.fromkeys(("encoder_layers", "encoder_attention_heads"), 2)
    sides |= {name.replace("encoder", "decoder"): size for name, size in sides.items()}
    config = BartConfig(vocab_size=61, d_model=16, eos_token_id=2, **sides)
    module = BartForSequenceClassification(config).eval()
    model = Model(module, config=config, task="classifier")
    items = Texts([[*text, 2] for text in TEXTS], batch_size=1, special=False)
    site = "model.encoder.layers.1"
    stream = live_stream(model, items, site, "tokens", objective="max_logit")
    probe = fit(NAC(), stream, calibrate=0, progress=False)
    ids = torch.tensor([[*TEXTS[0], 2]])
    with Guard(model, probe, alpha=None) as guard:
        model.module(input_ids=ids)
        seen = module.get_encoder()(ids)
        with pytest.raises(InputError, match=r"no gradient reaches model\.encoder\.layers\.1:out"):
            model.module(input_ids=ids, encoder_outputs=seen)
    assert guard.n_forwards == 1
