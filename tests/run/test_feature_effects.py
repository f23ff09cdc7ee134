"""Features that answers depend on, against runs of the model with a hook that takes one away."""

import pytest
import torch

import models
from sonde.core import Model
from sonde.data import open_inputs
from sonde.explain import Dictionary, Objective
from sonde.run.explaining.dictionaries import feature_effects

SITE, LENGTHS, N, K = "transformer.h.0", (7, 5), 24, 6


@pytest.fixture(scope="module")
def gpt2() -> Model:
    return Model(models.gpt2(), task="causal")


@pytest.fixture(scope="module")
def dictionary(gpt2):
    dim = gpt2.module.config.n_embd
    source = torch.Generator().manual_seed(3)
    encoder = torch.nn.functional.normalize(torch.randn(N, dim, generator=source), dim=1)
    zero = torch.zeros(dim)
    return Dictionary(
        encoder=encoder,
        bias=torch.zeros(N),
        centre=zero,
        decoder=encoder,
        offset=zero,
        act="topk",
        k=K,
    )


def _answer(model, ids, change):
    """The logit of the token that the untouched model takes for the next, with states changed."""

    def hook(module, args, output):
        rows = output[0] if isinstance(output, tuple) else output
        return (change(rows), *output[1:]) if isinstance(output, tuple) else change(rows)

    with torch.no_grad():
        top = int(model(ids[None]).logits[0, -1].argmax())
        handle = model.get_submodule(SITE).register_forward_hook(hook)
        found = model(ids[None]).logits[0, -1, top]
    handle.remove()
    return float(found)


@pytest.mark.truth("a hook that takes a share of one feature out, a text at a time")
def test_effects_are_slopes_and_what_ablating_by_hand_changes(gpt2, dictionary):
    source = torch.Generator().manual_seed(0)
    texts = [torch.randint(3, models.VOCABULARY, (n,), generator=source) for n in LENGTHS]
    inputs = open_inputs(gpt2, [{"input_ids": ids} for ids in texts], batch_size=2)
    batch = next(iter(inputs.batches(0, 2)))
    found = feature_effects(gpt2, batch, dictionary, Objective(), SITE, most=4)
    assert len(found) == 4

    def lost(feature, share):
        def change(rows):
            z = dictionary.encode(rows)[..., feature]
            return rows - share * z[..., None] * dictionary.decoder[feature]

        one = [_answer(gpt2.module, ids, lambda rows: rows) for ids in texts]
        other = [_answer(gpt2.module, ids, change) for ids in texts]
        return sum(a - b for a, b in zip(one, other, strict=True)) / len(texts)

    for row in found:
        assert row["ablated"] == pytest.approx(lost(row["feature"], 1.0), rel=1e-3, abs=1e-5)
        slope = (lost(row["feature"], 0.01) - lost(row["feature"], -0.01)) / 0.02
        assert row["value"] == pytest.approx(slope, rel=0.02, abs=1e-4)
    seen = [abs(row["value"]) for row in found]
    assert max(seen) > 0
