"""The loss that a dictionary recovers, against one row at a time through a hook."""

import pytest
import torch
from torch.nn.functional import cross_entropy

import models
from sonde.core import InputError, Model
from sonde.data import open_inputs
from sonde.explain import Dictionary
from sonde.run.explaining.dictionary_health import loss_recovered

SITE, LENGTHS = "transformer.h.0", (7, 5, 4)


@pytest.fixture(scope="module")
def gpt2() -> Model:
    return Model(models.gpt2(), task="causal")


@pytest.fixture(scope="module")
def texts():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, models.VOCABULARY, (n,), generator=generator) for n in LENGTHS]


def _dictionary(dim, keep=None, offset=None):
    """One feature for each unit, of which those from ``keep`` on are read as 0."""
    turn, zero = torch.eye(dim), torch.zeros(dim)
    decoder = turn * (torch.arange(dim) < (dim if keep is None else keep))[:, None]
    return Dictionary(
        value=0.0,
        n=1,
        encoder=turn,
        bias=zero,
        centre=zero if offset is None else offset,
        decoder=decoder,
        offset=zero if offset is None else offset,
        act="abstopk",
        k=dim,
    )


def _by_hand(model, texts, change):
    """Mean over texts of the mean cross-entropy of their next tokens, one text at a time."""
    block = model.get_submodule(SITE)
    seen, losses = [], []

    def hook(module, args, output):
        rows = output[0] if isinstance(output, tuple) else output
        seen.append(rows[0])
        new = change(rows)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = block.register_forward_hook(hook)
    for ids in texts:
        with torch.no_grad():
            logits = model(input_ids=ids[None]).logits[0]
        losses.append(float(cross_entropy(logits[:-1], ids[1:])))
    handle.remove()
    return sum(losses) / len(losses), torch.cat(seen).mean(0)


@pytest.mark.slow
@pytest.mark.truth("definition: 1 of a perfect dictionary, 0 of the mean; forwards with a hook")
def test_a_perfect_dictionary_recovers_all_and_the_mean_nothing(gpt2, texts):
    inputs = open_inputs(gpt2, [{"input_ids": ids} for ids in texts], batch_size=3)
    clean, mean = _by_hand(gpt2.module, texts, lambda rows: rows)
    dim = len(mean)
    held, _ = _by_hand(gpt2.module, texts, lambda rows: mean.expand_as(rows))
    perfect = loss_recovered(gpt2, inputs, _dictionary(dim), SITE)
    of_mean = loss_recovered(gpt2, inputs, _dictionary(dim, keep=0, offset=mean), SITE)
    assert perfect is not None
    assert of_mean is not None
    assert perfect.value == pytest.approx(1.0, abs=1e-4)
    assert of_mean.value == pytest.approx(0.0, abs=1e-4)
    assert (perfect.clean, perfect.mean) == pytest.approx((clean, held), rel=1e-5)
    keep = dim // 2
    some = loss_recovered(gpt2, inputs, _dictionary(dim, keep=keep, offset=mean), SITE)

    def half(rows):
        return torch.where(torch.arange(dim) < keep, rows, mean)

    want, _ = _by_hand(gpt2.module, texts, half)
    assert some is not None
    assert some.n == len(texts)
    assert some.rebuilt == pytest.approx(want, rel=1e-5)
    assert some.value == pytest.approx((held - want) / (held - clean), rel=1e-3)


def test_without_right_answers_or_of_another_site_there_is_no_loss():
    net, x = models.mlp(), torch.randn(6, 8)
    model = Model(net)
    inputs = open_inputs(model, x)
    assert loss_recovered(model, inputs, _dictionary(16), "1") is None
    wide = Dictionary(
        encoder=torch.eye(16),
        bias=torch.zeros(16),
        centre=torch.zeros(16),
        decoder=torch.zeros(16, 3),
        offset=torch.zeros(3),
    )
    with pytest.raises(InputError, match="reconstructs the same site that it reads"):
        loss_recovered(model, inputs, wide, "1")
