"""Latent steps of a language model: no step, no cache, gates by hand, gradients, generate."""

import math

import pytest
import torch
import transformers
from torch import nn

from sonde.core import InputError
from sonde.layers import LatentLoop
from sonde.testing import causal_model

IDS = torch.tensor([[5, 9, 3, 17], [4, 4, 30, 8]])


def made(**parameters):
    torch.manual_seed(1)
    return LatentLoop(causal_model().double(), **parameters).double()


def test_no_step_is_the_model_bit_for_bit():
    loop = LatentLoop(causal_model(), n_steps=0)
    assert torch.equal(loop(IDS), loop.model(IDS).logits[:, -1])


@pytest.mark.truth("the whole text in one forward without a cache, one more input at each step")
@pytest.mark.parametrize("feedback", ["state", "expected_embedding"])
def test_steps_with_a_cache_are_those_without(feedback):
    loop = made(n_steps=3, feedback=feedback)
    given, table = loop.model.get_input_embeddings()(IDS), loop.model.get_input_embeddings().weight
    latents = loop.latents(IDS)
    for x in latents.unbind(1):
        found = loop.model(inputs_embeds=given, output_hidden_states=True)
        p = (found.logits[:, -1] / 0.5).softmax(-1)
        mixed = (p / p.norm(dim=1, keepdim=True)) @ table
        wanted = loop.norm(found.hidden_states[-1][:, -1]) if feedback == "state" else mixed
        torch.testing.assert_close(x, wanted, rtol=1e-5, atol=1e-6)
        given = torch.cat([given, wanted.unsqueeze(1)], 1)
    said = loop.model(inputs_embeds=given).logits[:, -1]
    torch.testing.assert_close(loop(IDS), said, rtol=1e-5, atol=1e-5)
    weights = [table, *([loop.norm.weight] if feedback == "state" else [])]
    for mine, plain in zip(
        *(torch.autograd.grad(y.square().sum(), weights) for y in (loop(IDS), said)), strict=True
    ):
        torch.testing.assert_close(mine, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.truth("the gate's formula in Python floats; a starts in [.99, .999] for open gates")
@torch.no_grad()
def test_the_gate_is_the_formula():
    loop = made(n_steps=1, mix="gate")
    a = torch.exp(-8 * nn.functional.softplus(loop.rate))
    assert float(a.min()) >= 0.99 - 1e-6
    assert float(a.max()) <= 0.999 + 1e-6
    found = loop.model(IDS, output_hidden_states=True)
    h, word = found.hidden_states[-1][0, -1], int(found.logits[0, -1].argmax())
    e, x = loop.model.get_input_embeddings().weight[word], loop.latents(IDS)[0, 0]
    r, i = (1 / (1 + torch.exp(-(loop.gates.weight @ e + loop.gates.bias)))).chunk(2)
    opened = loop.openness(IDS)[0, 0]
    for k in range(len(e)):
        share = math.exp(-8 * math.log1p(math.exp(loop.rate[k])) * r[k])
        root = math.sqrt(1 - share**2 + 1e-8)
        assert float(x[k]) == pytest.approx(float(share * e[k] + root * i[k] * h[k]), rel=1e-9)
        assert float(opened[k]) == pytest.approx(float(root * i[k]), rel=1e-9)
    zero = made(n_steps=1, mix="gate", start="zero")
    zero.gates.weight.zero_()
    zero.gates.bias.fill_(-50.0)
    torch.testing.assert_close(zero.latents(IDS)[0, 0], e)
    assert bool((zero.openness(IDS) == 0).all())


@pytest.mark.truth("each word's chance after inputs made by the formula, without a cache")
def test_a_rollout_has_the_chances_of_its_words():
    loop = made(n_steps=2, mix="gate", feedback="expected_embedding", temperature=0.7)
    torch.nn.init.normal_(loop.gates.weight)
    embed, rows = loop.model.get_input_embeddings(), torch.arange(2)
    draw = torch.Generator().manual_seed(3)
    words, chance, logits = loop.rollout(IDS, draw=draw)
    assert any(not torch.equal(words, loop.rollout(IDS, draw=draw)[0]) for _ in range(9))
    given, told = embed(IDS), []
    for word in words.unbind(1):
        p = (loop.model(inputs_embeds=given).logits[:, -1] / 0.7).softmax(1)
        told.append(p[rows, word].log())
        r, i = (embed(word) @ loop.gates.weight.T + loop.gates.bias).sigmoid().chunk(2, 1)
        a = torch.exp(-8 * (1 + loop.rate.exp()).log() * r)
        mixed = (1 - a**2 + 1e-8).sqrt() * i * ((p / p.norm(dim=1, keepdim=True)) @ embed.weight)
        given = torch.cat([given, (a * embed(word) + mixed).unsqueeze(1)], 1)
    wanted = torch.stack(told, 1)
    torch.testing.assert_close(chance, wanted, rtol=1e-6, atol=1e-7)
    said = loop.model(inputs_embeds=given).logits[:, -1]
    torch.testing.assert_close(logits, said, rtol=1e-5, atol=1e-6)
    again = loop.rollout(IDS, words=words)
    assert all(map(torch.equal, again, (words, chance, logits)))
    weights = [embed.weight, loop.rate, loop.gates.weight]
    for mine, plain in zip(
        *(torch.autograd.grad(x.sum(), weights) for x in (chance, wanted)), strict=True
    ):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-6)


def test_padded_rollouts_keep_their_words():
    loop, words = made(n_steps=2, mix="gate"), torch.tensor([[3, 8], [1, 6]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]).bool()
    loop.hides_padding = False  # rows of each length by themselves
    found = loop.rollout(IDS, mask, words)
    for row in range(2):
        alone = loop.rollout(IDS[row, mask[row]][None], words=words[row : row + 1])
        for mine, plain in zip(found, alone, strict=True):
            torch.testing.assert_close(mine[row : row + 1], plain)
    for read in (LatentLoop.latents, LatentLoop.openness):
        assert read(made(n_steps=0, mix="gate"), IDS).shape[:2] == (len(IDS), 0)
    none = made(n_steps=0, mix="gate").rollout(IDS)
    assert [tuple(x.shape) for x in none[:2]] == [(2, 0), (2, 0)]


@pytest.mark.truth("rows alone, padded at either end")
@pytest.mark.parametrize("mix", ["replace", "gate"])
@torch.no_grad()
def test_padding_at_either_end_changes_nothing(mix):
    loop, alone = made(mix=mix), torch.tensor([[5, 9, 3]])
    for real in ([0, 1, 1, 1, 0], [1, 1, 1, 0, 0], [0, 0, 1, 1, 1]):
        mask = torch.tensor([real]).bool()
        ids = torch.full((1, 5), 7).masked_scatter(mask, alone)
        torch.testing.assert_close(loop(ids, mask=mask), loop(alone))


def test_the_gradient_reaches_the_first_step_and_attention_asks_the_memory():
    loop, memory = made(mix="attend"), torch.randn(2, 3, 16).double().requires_grad_()
    torch.nn.init.normal_(loop.ask.out_proj.weight)
    first = loop.latents(IDS, memory=memory)
    first.retain_grad()
    loop(IDS, memory=memory).square().sum().backward()
    assert memory.grad.abs().sum() > 0
    assert loop.norm.weight.grad.abs().sum() > 0


@pytest.mark.truth("the next token of the loop's own logits")
def test_a_text_goes_on_after_the_steps():
    loop = LatentLoop(causal_model(), n_steps=2)
    said = loop.model.generate(**loop.prompt(IDS), max_new_tokens=3, do_sample=False)
    assert torch.equal(said[:, 0], loop(IDS).argmax(1))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LatentLoop(nn.Linear(2, 2)), "a causal language model of transformers"),
        (lambda: made(n_steps=-1), "n_steps of 0 or more"),
        (lambda: made(mix="attend")(IDS), "memory= with mix='attend'"),
        (lambda: made().rollout(IDS), "mix='gate', which mixes words, got 'replace'"),
        (lambda: made().openness(IDS), "LatentLoop.openness: expected mix='gate'"),
        (lambda: made(mix="gate").rollout(IDS, words=IDS), r"\(2, 3\), got \(2, 4\)"),
    ],
)
def test_what_is_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()


SIZES = {"vocab_size": 50, "hidden_size": 16}
MEMORIES = [
    transformers.MambaConfig(**SIZES, num_hidden_layers=1, state_size=4),
    transformers.RwkvConfig(**SIZES, num_hidden_layers=2, context_length=16),
    transformers.RecurrentGemmaConfig(
        **SIZES,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=16,
        attention_window_size=8,
    ),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.truth("each text alone, all inputs again at each step, without a cache")
@pytest.mark.parametrize("config", MEMORIES, ids=lambda config: config.model_type)
@torch.no_grad()
def test_padded_texts_of_recurrent_models(config):
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for p in model.parameters():
        p += 0.1 * torch.randn_like(p)
    loop = LatentLoop(model, n_steps=2).eval()
    ids = torch.randint(3, 50, (3, 7))
    mask = torch.tensor([[1] * 4 + [0] * 3, [0, 0] + [1] * 5, [1] * 7]).bool()
    for row in range(3):
        given = model.get_input_embeddings()(ids[row, mask[row]][None])
        for x in loop.latents(ids, mask)[row]:
            found = model(inputs_embeds=given, output_hidden_states=True, use_cache=False)
            wanted = loop.norm(found.hidden_states[-1][:, -1])
            torch.testing.assert_close(x[None], wanted, rtol=1e-4, atol=1e-4)
            given = torch.cat([given, wanted[:, None]], 1)
        said = model(inputs_embeds=given, use_cache=False).logits[0, -1]
        torch.testing.assert_close(loop(ids, mask)[row], said, rtol=1e-4, atol=1e-4)
    if not loop.hides_padding:
        with pytest.raises(InputError, match="also reads padding tokens, got several lengths"):
            loop.prompt(ids, mask)
