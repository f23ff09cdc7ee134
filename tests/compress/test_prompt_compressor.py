"""Shorter prompts: information by hand, counts, order, forced words, a learned probe."""

import math
import random
import re
from types import SimpleNamespace

import pytest
import torch

import sonde
from sonde import Model
from sonde.compress import KeepProbe, PromptCompressor
from sonde.compress._prompt_report import PromptReport
from sonde.core import InputError

TEXT = (
    "import os, then return the value of the 42 names in x.\n\nimport sys and raise zebra errors."
)


@pytest.fixture(scope="module")
def model():
    return sonde.load("sonde:stdlib", device="cpu")


@pytest.mark.essential
@pytest.mark.truth("-log p of every byte by a loop over prefixes")
def test_a_word_tells_the_information_of_its_bytes(model):
    found = PromptCompressor(keep=0.4, digits=False).compress(model, TEXT)
    ids, wanted = list(TEXT.encode()), []
    for i, byte in enumerate(ids):
        with torch.no_grad():
            logits = model.module(torch.tensor([ids[:i]])).logits[0, -1] if i else torch.zeros(1)
        p = float(logits.double().softmax(0)[byte]) if i else 1 / model.module.config.vocab_size
        wanted.append(-math.log(p))
    sums = torch.tensor([sum(wanted[a:b]) for a, b in found.words])
    torch.testing.assert_close(found.scores.float(), sums, rtol=1e-4, atol=1e-3)
    n = round(0.4 * len(found.words))
    assert sorted(sums.topk(n).indices.tolist()) == found.kept.nonzero().flatten().tolist()


def test_whole_words_stay_in_order_and_forced_ones_always(model):
    few = PromptCompressor(keep=0.1, force=("zebra", "return")).compress(model, TEXT)
    words = few.text.split()
    assert {"zebra", "return", "42"} <= set(words)
    positions = [TEXT.split().index(w) for w in words]
    assert positions == sorted(positions)
    assert PromptCompressor(keep=1.0).compress(model, TEXT).text == TEXT
    assert PromptCompressor().compress(model, "  ").text == "  "


@pytest.mark.truth("means of the information of each sentence's bytes, from the words' sums")
def test_sentences_stay_whole_by_their_mean_information(model):
    text = "import os. qzv xkj wq! return the 7 names. The end is near and nothing is left"
    found = PromptCompressor(keep=0.4, unit="sentence", digits=False).compress(model, text)
    parts = [text[a:b] for a, b in found.words]
    assert [len(part.split()) for part in parts] == [2, 3, 4, 8]
    words = PromptCompressor(digits=False).compress(model, text).scores.split([2, 3, 4, 8])
    means = [float(own.sum()) / len(part) for own, part in zip(words, parts, strict=True)]
    torch.testing.assert_close(found.scores, torch.tensor(means).double())
    best = sorted(sorted(range(4), key=lambda i: -means[i])[:2])
    assert found.text == "".join(parts[i] for i in best)


@pytest.mark.truth("windows: a text longer than two windows scores its end as the last window does")
def test_a_long_text_is_read_in_windows(model):
    text = (TEXT + " ") * 5
    whole = PromptCompressor(window=128).compress(model, text)
    assert len(whole.kept) == len(text.split())
    tail = PromptCompressor(window=512).compress(model, text[: len(text) // 2])
    n = 8  # words of the first window agree whatever follows
    torch.testing.assert_close(whole.scores[:n], tail.scores[:n], rtol=1e-5, atol=1e-5)


@pytest.mark.truth("planted: a reader that heeds one letter alone")
def test_a_probe_learns_what_the_reader_needs():
    class Reader(torch.nn.Module):
        """Says 1 after a text that held a 'q', else 0; its state is the letter itself."""

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, ids, output_hidden_states=False):
            seen = (ids == ord("q")).cumsum(1).clamp(max=1).float()
            logits = torch.zeros(*ids.shape, 256)
            logits[..., 49] = 8 * seen * self.scale
            states = torch.nn.functional.one_hot(ids, 256).float()
            return SimpleNamespace(logits=logits, hidden_states=(states,))

    shipped = sonde.load("sonde:stdlib", device="cpu")
    reader = Model(Reader(), processor=shipped.processor, task="causal")
    draw = random.Random(0)
    texts = []
    for n in range(12):
        words = ["".join(draw.choices("abcdefghijklmnop", k=3)) for _ in range(6)]
        words[n % 5] = f"q{words[n % 5][1:]}"
        texts.append(" ".join(words))
    probe = PromptCompressor().learn(reader, texts, progress=False)
    found = PromptCompressor(keep=0.2, digits=False).compress(reader, "ack bep dqa fgo hkl", probe)
    assert found.text.strip() == "dqa"
    assert probe.n == sum(len(t.split()) - 1 for t in texts)
    # ranks from 0 to 1 have a mean of a half, and so has what a fit with a bias says of its rows
    said = [PromptCompressor().compress(reader, t, probe).scores[:-1] for t in texts]
    assert float(torch.cat(said).mean()) == pytest.approx(0.5, abs=1e-6)


def words_of(*texts):
    """Return a tokenizer of whole words that puts [CLS] before a text and [SEP] behind it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    known = ["[UNK]", "[CLS]", "[SEP]", *sorted({w for t in texts for w in t.split()})]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [("[CLS]", 1), ("[SEP]", 2)]
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=special
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]")


@pytest.fixture
def encoder():
    """Return a bidirectional encoder of the words of two texts."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    tokenizer = words_of(TEXT, "one other end")
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(tokenizer), intermediate_size=24, **shape)
    return Model(BertModel(config).eval(), processor=tokenizer)


@pytest.mark.truth("states of the encoder, called by hand")
def test_a_probe_of_an_encoder_reads_what_follows(model, encoder):
    one = PromptCompressor(digits=False)
    probe = one.learn(model, ["import sys and raise"], 8, progress=False, encoder=encoder)
    assert len(probe.weight) == 16

    def scores(text):
        ids = encoder.processor(text, return_tensors="pt")
        with torch.no_grad():
            states = encoder.module(**ids).last_hidden_state[0, 1:-1].double()
        return states @ probe.weight + probe.bias

    found = one.compress(model, TEXT, probe, encoder)
    torch.testing.assert_close(found.scores, scores(TEXT), rtol=1e-5, atol=1e-6)
    causal = KeepProbe(torch.linspace(-1, 1, 192).double(), 0.0, 1)
    other = TEXT.replace("raise zebra errors.", "one other end")
    same = [
        torch.allclose(*(one.compress(model, t, p, e).scores[:-3] for t in (TEXT, other)))
        for p, e in ((probe, encoder), (causal, None))
    ]
    assert same == [False, True]


@pytest.mark.truth("the tokens of the whole text, and their places in its windows")
def test_every_token_of_a_long_text_is_read_once_and_not_at_an_edge():
    class Places(torch.nn.Module):
        """Its states are the token and the distance to the nearer end of the window."""

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, ids, attention_mask, output_hidden_states):
            place = torch.arange(ids.shape[1])
            edge = torch.minimum(place, place.flip(0))
            states = torch.stack([ids[0], edge], 1)[None] * self.scale
            return SimpleNamespace(hidden_states=(states,))

    text = " ".join(f"w{i}" for i in range(41))
    reader = Model(Places(), processor=words_of(text))
    for window in (4, 11, 12, 43, 60):
        said = []
        for weight in ([1.0, 0.0], [0.0, 1.0]):
            probe = KeepProbe(torch.tensor(weight).double(), 0.0, 1)
            one = PromptCompressor(window=window, digits=False)
            said.append(one.compress(reader, text, probe, reader).scores.tolist())
        assert said[0] == reader.processor(text, add_special_tokens=False)["input_ids"]
        inner = said[1][window // 2 : -window // 2]
        assert min(inner, default=window) >= (window - 2) // 4


def test_what_is_refused(model, encoder):
    one = PromptCompressor()
    with pytest.raises(InputError, match="expected a probe of the encoder's states"):
        one.compress(model, TEXT, encoder=encoder)
    probe = KeepProbe(torch.ones(16).double(), 0.0, 1)
    with pytest.raises(InputError, match="states of width 16, got 192"):
        one.compress(model, TEXT, probe)
    one.compress(model, TEXT, probe, encoder)
    next(encoder.module.parameters()).data[4] = math.nan  # of "and"
    with pytest.raises(InputError, match=r"finite scores, got 18 of 18 that are not"):
        one.compress(model, TEXT, probe, encoder)
    with pytest.raises(InputError, match="finite states and answers"):
        one.learn(model, ["import sys and raise"], 4, progress=False, encoder=encoder)
    with pytest.raises(InputError, match="an encoder with a fast tokenizer, got"):
        one.compress(model, TEXT, probe, Model(encoder.module))
    with pytest.raises(InputError, match=r"keep in \(0, 1\]"):
        PromptCompressor(keep=0.0)
    with pytest.raises(InputError, match="a causal language model with a fast tokenizer"):
        PromptCompressor().compress(sonde.load("sonde:digits"), "a b")
    with pytest.raises(InputError, match="texts of several words"):
        PromptCompressor().learn(model, ["one"], progress=False)


@pytest.mark.truth("-log p of the last bytes, prompts cut by hand")
def test_a_judge_compares_with_the_last_words_and_says_which_to_use(model):
    texts = [f"{TEXT} {TEXT[: 30 + 7 * i]}" for i in range(2)]
    found = PromptCompressor(keep=0.5, digits=False).judge(model, texts, horizon=8, progress=False)
    wanted = {"whole": [], "last words": []}
    for text in texts:
        prompt, after = text[:-8], text[-8:]
        words = [f"{a}{b}" for a, b in re.findall(r"(\s*)(\S+)", prompt)]
        last = "".join(words[-round(0.5 * len(words)) :])
        for name, given in (("whole", prompt), ("last words", last)):
            with torch.no_grad():
                logits = model.module(torch.tensor([list((given + after).encode())])).logits[0]
            rows = logits[-9:-1].double().log_softmax(-1)
            own = [float(row[byte]) for row, byte in zip(rows, after.encode(), strict=True)]
            wanted[name].append(-sum(own) / 8)
    for name, each in wanted.items():
        assert found.loss_nats[name] == pytest.approx(sum(each) / 2, abs=1e-4)
    assert found.verdict.startswith(f"Keep the {found.best_plain}: the compressor is ")
    with pytest.raises(InputError, match="expected at least two texts of more than 301 tokens"):
        PromptCompressor().judge(model, texts, horizon=300, progress=False)


def test_the_verdict_of_a_report_follows_its_differences():
    plain = {"first words": 3.0, "last words": 2.5, "random words": 2.8}
    losses = {"whole": 1.0, "compressed": 2.0, **plain, "nothing": 4.0}
    gains = {name: loss - 2.0 for name, loss in plain.items()}
    clear, unclear = (
        PromptReport(losses, gains, dict.fromkeys(plain, se), n=9) for se in (0.1, 0.4)
    )
    assert clear.verdict.startswith("Use the compressor: 2 nats per token against 2.5")
    assert "is not clearly better" in unclear.verdict
    assert unclear.best_plain == "last words"
