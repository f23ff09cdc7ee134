"""The mean of tokens in training is the mean that readings give, and its gradients are its own."""

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

import models
import sonde
from sonde.core import Model
from sonde.data import open_inputs
from sonde.measure import rate_reduction
from sonde.tap import resolve
from sonde.tap.training.terms import training
from sonde.train import RateReduction

SITE = "blocks.1"
LABEL = torch.tensor([0, 2, 2, 0, 1, 1])


@pytest.mark.truth("sonde.measure.rate_reduction of the rows of sonde.read")
def test_the_value_on_digits_is_the_measure_of_the_rows_that_are_read():
    model = sonde.load("sonde:digits", device="cpu")
    (batch,) = open_inputs(model, "sonde:digits/test", limit=40, batch_size=40).batches(0, 40)
    read = sonde.read(model, "sonde:digits/test", [SITE], "mean", 16, limit=40)
    rows = torch.cat([part.rows[read.schema[0].key] for part in read.batches(0, len(read))])
    expected = rate_reduction(rows, batch.label, eps2=0.5).value

    with training(model.module, {SITE: RateReduction()}) as terms:
        (found,) = terms.evaluate([((*batch.args, batch.kwargs), {"label": batch.label})]).values()
    assert -found == pytest.approx(expected, rel=1e-5)


@pytest.mark.truth("the mean over patches written by hand")
@pytest.mark.parametrize(("build", "n_extra"), [(models.vit, 1), (models.dinov2, 5)])
def test_gradients_are_those_of_the_mean_over_patches(build, n_extra):
    net, x = build().train(), torch.randn(6, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    block = resolve(net, SITE)[0].path
    calls = []
    net.register_forward_hook(lambda *_: calls.append(net.training))
    with training(net, {SITE: RateReduction()}) as terms:
        net(x)
        found = terms.loss(label=LABEL)
        found.backward()
        n_first = len(calls)
        net(x)
        assert len(calls) == n_first + 1  # the patches are looked for once
    assert calls[-1]
    gradients = [p.grad for p in net.parameters()]
    net.zero_grad()

    kept: list[Tensor] = []
    handle = net.get_submodule(block).register_forward_hook(lambda *a: kept.append(_state(a[2])))
    net(x)
    handle.remove()
    expected = RateReduction()(kept[0][:, n_extra:].mean(1), LABEL)
    expected.backward()
    torch.testing.assert_close(found, expected)
    for a, p in zip(gradients, net.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad)


def _state(output: object) -> Tensor:
    state = output[0] if isinstance(output, tuple) else output
    assert isinstance(state, Tensor)
    return state


class Mean(nn.Module):
    """The mean of all entries of rows."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean()


@pytest.mark.truth("means over the tokens that are not special, by hand")
def test_special_ids_do_not_count_if_the_tokenizer_is_known():
    words = {"[PAD]": 0, "[BOS]": 1, "[EOS]": 2, **{f"w{i}": i for i in range(3, 30)}}
    plain = Tokenizer(WordLevel(words, unk_token="w3"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="[PAD]", bos_token="[BOS]", eos_token="[EOS]"
    )
    net = models.llama()
    ids = torch.tensor([[1, 5, 9, 2, 7], [1, 8, 4, 0, 0]])
    mask = (ids != 0).long()
    states = net(ids, attention_mask=mask, output_hidden_states=True).hidden_states[1]
    model = Model(net, processor=tokenizer, config=net.config, task="causal")
    for given, counted in ((model, ids > 2), (net, ids > 0)):
        with training(given, {"blocks.0": Mean()}) as terms:
            net(ids, attention_mask=mask)
            found = terms.loss()
        expected = torch.stack([x[c].mean(0) for x, c in zip(states, counted, strict=True)])
        torch.testing.assert_close(found, expected.mean())


class OfSix(nn.Module):
    """A token of its own before the patches; it runs on six images and on no other number."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 5, 3, 3)
        self.cls_token = nn.Parameter(torch.ones(1, 1, 5))
        self.block = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).mT
        return self.block(torch.cat((self.cls_token.expand(6, -1, -1), tokens), 1))


def test_a_model_that_does_not_run_on_two_images_keeps_all_tokens():
    net, x = OfSix(), torch.randn(6, 1, 9, 6)
    with training(net, {"block": Mean()}) as terms:
        states = net(x)
        torch.testing.assert_close(terms.loss(), states.mean())
