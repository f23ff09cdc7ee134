"""The table that is fed the tokens, found by running: in any order, by any name, in pairs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AlbertConfig,
    AlbertModel,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MambaConfig,
    MambaForCausalLM,
    MBartConfig,
    MBartForConditionalGeneration,
    OPTConfig,
    OPTForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    XLNetConfig,
    XLNetModel,
)

from sonde.core import SiteError
from sonde.explain import ActivationMax, Baseline, GradTimesInput, Occlusion
from sonde.tap.model.token_table import find_token_table
from sonde.tap.streams.site_function import SiteFunction

DRAW = torch.Generator().manual_seed(0)
IDS = torch.randint(3, 50, (4, 6), generator=DRAW)
ENCODER = "model.encoder.embed_tokens"
SHORT = torch.randint(3, 50, (4, 3), generator=DRAW)


class Positions(nn.Module):
    """Registers its positions and segments before its tokens; takes ids under its own name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.pos, self.kind = nn.Embedding(9, 5), nn.Embedding(2, 5)
        self.words, self.last = nn.Embedding(50, 5), nn.Linear(5, 3)

    def forward(self, segments, text, padding_mask=None):
        there = self.pos(torch.arange(text.shape[1])) + self.kind(segments)
        x = torch.tanh(there + self.words(text))
        if padding_mask is not None:
            x = x.masked_fill(padding_mask[..., None] != 0, 0.0)
        return self.last((x + x.cumsum(1).square() / 7).sum(1))


class Functional(Positions):
    """Looks its tokens up by a function."""

    def forward(self, text):  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.last(torch.tanh(F.embedding(text, self.words.weight)).sum(1))


class Inner(nn.Module):
    """Looks tokens up by a function and adds positions: one module that is fed the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.pos = nn.Parameter(torch.randn(50, 5)), nn.Embedding(9, 5)

    def forward(self, x):
        return F.embedding(x, self.weight) + self.pos(torch.arange(x.shape[1]))


class Composed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Embedding(9, 5), Inner(), nn.Linear(5, 3)

    def forward(self, ids):
        return self.last(torch.tanh(self.inner(ids)).sum(1))


class WideAndDeep(nn.Module):
    """Reads its tokens twice."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.deep, self.last = nn.Embedding(50, 3), nn.Embedding(50, 5), nn.Linear(5, 3)

    def forward(self, ids):
        return self.last(torch.tanh(self.deep(ids.clone())).sum(1)) * self.wide(ids).sum(1)


def pair(config: Any) -> Any:
    return config(
        d_model=8, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=12, decoder_ffn_dim=12, vocab_size=50,
        max_position_embeddings=16, pad_token_id=1, eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip


def sizes(**other: Any) -> dict[str, Any]:
    return {
        "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50,
        "pad_token_id": 1, "max_position_embeddings": 16, **other,
    }  # fmt: skip


def t5() -> Any:
    return T5ForConditionalGeneration(
        T5Config(d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2, vocab_size=50)
    ).eval()


DECODED = {"input_ids": IDS, "decoder_input_ids": SHORT}
TWICE = {"input_ids": IDS, "decoder_input_ids": IDS}
SEGMENTS = torch.tensor([[0, 0, 0, 1, 1, 1]]).expand(4, -1)
OURS = {"input_ids": IDS}
ALONE = {"segments": SEGMENTS[:1, :1], "text": IDS[:1, :1]}
CASES: dict[str, tuple[Callable[[], Any], Any, str]] = {
    "positions first": (Positions, (SEGMENTS, IDS), "words"),
    "one token": (Positions, (SEGMENTS[:, :1], IDS[:, :1]), "words"),
    "one token of one row": (Positions, ALONE, "words"),
    "one token again and again": (Positions, (SEGMENTS, torch.full_like(IDS, 1)), "words"),
    "a module around a function": (Composed, (IDS,), "inner"),
    "wide and deep": (WideAndDeep, (IDS,), "deep"),
    "t5": (t5, DECODED, "encoder.embed_tokens"),
    "t5, ids twice": (t5, TWICE, "encoder.embed_tokens"),
    "bart": (lambda: BartForConditionalGeneration(pair(BartConfig)), DECODED, ENCODER),
    "m2m": (lambda: M2M100ForConditionalGeneration(pair(M2M100Config)), TWICE, ENCODER),
    "roberta": (
        lambda: RobertaForSequenceClassification(RobertaConfig(**sizes(intermediate_size=12))),
        OURS,
        "roberta.embeddings.word_embeddings",
    ),
    "albert": (
        lambda: AlbertModel(AlbertConfig(**sizes(embedding_size=4, intermediate_size=12))),
        OURS,
        "embeddings.word_embeddings",
    ),
    "opt": (
        lambda: OPTForCausalLM(OPTConfig(**sizes(ffn_dim=12, word_embed_proj_dim=4))),
        OURS,
        "model.decoder.embed_tokens",
    ),
    "bert": (
        lambda: BertModel(BertConfig(**sizes(intermediate_size=12))),
        OURS,
        "embeddings.word_embeddings",
    ),
    "electra": (
        lambda: ElectraModel(ElectraConfig(**sizes(embedding_size=4, intermediate_size=12))),
        OURS,
        "embeddings.word_embeddings",
    ),
    "distilbert": (
        lambda: DistilBertModel(
            DistilBertConfig(dim=8, n_layers=1, n_heads=2, hidden_dim=12, vocab_size=50)
        ),
        OURS,
        "embeddings.word_embeddings",
    ),
    "llama": (
        lambda: LlamaForCausalLM(LlamaConfig(**sizes(intermediate_size=12))),
        OURS,
        "model.embed_tokens",
    ),
    "mamba": (
        lambda: MambaForCausalLM(
            MambaConfig(hidden_size=8, num_hidden_layers=1, state_size=4, vocab_size=50)
        ),
        OURS,
        "backbone.embeddings",
    ),
    "mbart": (lambda: MBartForConditionalGeneration(pair(MBartConfig)), DECODED, ENCODER),
    "gpt-neox": (
        lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**sizes(intermediate_size=12))),
        OURS,
        "gpt_neox.embed_in",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_table_is_what_is_fed_the_tokens(name):
    made, inputs, path = CASES[name]
    module = made().eval()
    before = {n: p.clone() for n, p in module.state_dict().items()}
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (inputs, {})
    found = find_token_table(module, args, kwargs)
    assert found is not None
    assert str(found.site) == f"{path}:out"
    assert all(torch.equal(p, before[n]) for n, p in module.state_dict().items())
    function = SiteFunction(module, inputs)
    ids: Any = kwargs.get("input_ids", kwargs.get("text", args[-1] if args else None))
    assert function.value.shape[:2] == ids.shape


@pytest.mark.truth("gradients at the words' vectors, taken by hand")
@pytest.mark.parametrize("by_name", [False, True])
def test_attributions_of_tokens_are_those_of_their_own_vectors(by_name):
    net = Positions().eval()
    padding = torch.zeros(4, 6)
    padding[1, 4:] = 1.0  # a mask in floating point is no input
    named = {"segments": SEGMENTS, "text": IDS, "padding_mask": padding}
    found = GradTimesInput().explain(net, named if by_name else (*named.values(),))
    vectors = net.words(IDS).detach().requires_grad_(True)
    there = net.pos(torch.arange(6)) + net.kind(SEGMENTS)
    x = torch.tanh(there + vectors).masked_fill(padding[..., None] != 0, 0.0)
    answers = net.last((x + x.cumsum(1).square() / 7).sum(1))
    (slope,) = torch.autograd.grad(answers.max(1).values.sum(), vectors)
    torch.testing.assert_close(found.value, slope * vectors.detach())
    assert found.conventions["site"] == "words:out"
    assert found.conventions["held"] == "segments"
    gone = Occlusion(Baseline("zero")).explain(net, named)
    assert (gone.by_place[1, 4:] == 0).all()
    assert (gone.by_place[1, :4] != 0).all()


@pytest.mark.truth("gradients at inputs_embeds of transformers")
def test_of_a_pair_the_encoder_is_explained_and_the_decoder_by_name():
    module, method = t5(), GradTimesInput()
    mask = torch.ones_like(IDS)
    mask[2, 4:] = 0
    inputs = {**DECODED, "attention_mask": mask}
    vectors = module.get_submodule("encoder.embed_tokens")(IDS).detach().requires_grad_(True)
    logits = module(inputs_embeds=vectors, attention_mask=mask, decoder_input_ids=SHORT).logits
    (slope,) = torch.autograd.grad(logits[:, -1].max(1).values.sum(), vectors)
    found = method.explain(module, inputs)
    torch.testing.assert_close(found.value, slope * vectors.detach())
    at_decoder: Any = method.explain(module, inputs, site="decoder.embed_tokens")
    assert at_decoder.value.shape == (4, 3, 8)
    same = {**inputs, "decoder_input_ids": IDS}  # as many tokens on both sides
    places = Occlusion(Baseline("zero")).explain(module, same).by_place
    assert (places[2, 4:] == 0).all()
    assert (places[2, :4] != 0).all()


def test_a_table_that_scales_its_rows_gives_its_own_vectors_back():
    config = pair(BartConfig)
    config.scale_embedding = True
    module: Any = BartForConditionalGeneration(config).eval()
    top = ActivationMax(2).explain(
        module, DECODED, site="model.encoder.layernorm_embedding", unit=3
    )
    assert top.tokens is not None
    states = module.model.encoder.embed_tokens(top.tokens[None]).expand(4, -1, -1)
    seen = []
    handle = module.model.encoder.layernorm_embedding.register_forward_hook(
        lambda m, args, out: seen.append(out)
    )
    module(inputs_embeds=states, decoder_input_ids=SHORT)
    handle.remove()
    assert top.token_value == pytest.approx(float(seen[0][0, :, 3].detach().mean()), rel=1e-4)


def test_without_such_a_module_a_site_must_be_named():
    time_first = XLNetModel(XLNetConfig(d_model=8, n_layer=1, n_head=2, d_inner=12, vocab_size=50))
    for module in (Functional(), time_first.eval(), nn.EmbeddingBag(50, 3)):
        with pytest.raises(SiteError, match="Name a site"):
            SiteFunction(module, IDS)


def test_token_ids_by_their_name_are_refused_with_the_module_that_is_fed_them():
    net = Positions().eval()
    inputs = {"segments": torch.zeros_like(IDS), "text": IDS}
    with pytest.raises(SiteError, match=r"got int64\. Name the .* numbers: words:out"):
        GradTimesInput().explain(net, inputs, site=":in.text")
    with pytest.raises(SiteError, match=r"got int64\. Name a module after it"):
        Occlusion(Baseline("zero")).explain(net, inputs, site=":in.segments")
