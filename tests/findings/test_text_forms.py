"""The shipped language model over its own kind of texts, written otherwise."""

import html
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import sonde
from findings._nets import evidence_of
from lm_twin_case import TEXTS, twin
from scan._unnamed_texts import shipped, source_texts
from sonde.findings.evidence.texts.text_forms import FORMS, JUDGED, LONGEST, TextForms, text_forms
from sonde.findings.evidence.texts.vocabulary_words import LOST_CAPITALS, LOST_SPACES
from sonde.findings.trial_budget import ForwardCost, TrialBudget
from sonde.tap import LiveStream


def found(words: Callable[[str], str]) -> TextForms:
    items = [{"text": words(text)} for text in source_texts()[:12]]
    stream = sonde.read(shipped(), items, max_length=LONGEST)
    assert isinstance(stream, LiveStream)
    forms = text_forms(stream, evidence_of(stream))
    assert forms is not None
    return forms


@torch.no_grad()
def loss_of(text: str) -> float:
    ids = shipped().processor(text, return_tensors="pt")["input_ids"]
    logits = shipped().module(input_ids=ids).logits[0, :-1]
    return float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))


@pytest.mark.slow
@pytest.mark.truth("one forward of the model for each text, without padding")
def test_the_loss_of_another_form_is_that_of_the_texts_alone() -> None:
    forms = found(str.upper)
    given = [text.upper()[:LONGEST] for text in source_texts()[:12]]
    mean = sum(map(loss_of, given)) / len(given) / (LONGEST - 1)
    lower = sum(loss_of(text.lower()) for text in given) / len(given) / (LONGEST - 1)
    assert float(forms.given.mean()) == pytest.approx(mean, rel=1e-3)
    assert float(forms.losses["in lower case"].mean()) == pytest.approx(lower, rel=1e-3)
    assert lower < 0.9 * mean


@pytest.mark.slow
def test_fewer_characters_are_no_gain_by_themselves_and_the_right_form_gains_most() -> None:
    assert min((float(x.mean()) for x in found(lambda t: t).losses.values()), default=9) > 0.9 * (
        float(found(lambda t: t).given.mean())
    )
    forms = found(lambda t: html.escape(t.replace(" ", " & ", 2)))
    best = min(forms.losses, key=lambda words: float(forms.losses[words].mean()))
    assert FORMS[best][0] == "text = html.unescape(text)"


@pytest.mark.truth("Python's own codecs, and a text that is as it should be")
def test_signs_whose_bytes_were_read_as_letters_are_mended_one_by_one() -> None:
    _, as_utf8 = FORMS["read as UTF-8"]
    text = "It’s a café – 漢, 𝄞 and ß… ‘so’."
    assert as_utf8(text.encode().decode("latin-1")) == text
    usual = "Zoë’s – naïve „weiß.“ costs €5…"
    assert as_utf8(usual.encode().decode("cp1252")) == usual
    assert as_utf8(usual) == usual
    cut = "it’s cut".encode().decode("latin-1") + "\xe2\x80"
    assert as_utf8(cut) == "it’s cut\xe2\x80"


@pytest.mark.parametrize(
    ("given", "once"),
    [
        ("<|im_start|><|im_start|>Hi there", "<|im_start|>Hi there"),
        (
            "<|im_start|>user\n<|im_start|>user\nHi<|im_end|>\n<|im_end|>\n",
            "<|im_start|>user\nHi<|im_end|>\n",
        ),
        ("<bos><bos><turn>user\nA<end>\n<turn>model\n", "<bos><turn>user\nA<end>\n<turn>model\n"),
        ("<s><s><s>[INST] [INST] Hi [/INST]", "<s>[INST] Hi [/INST]"),
        ("<p>a</p><p>a</p>, a < b < c", "<p>a</p><p>a</p>, a < b < c"),
    ],
)
def test_control_tokens_of_a_template_that_was_applied_twice_are_kept_once(
    given: str, once: str
) -> None:
    assert FORMS["with repeated control tokens once"][1](given) == once


PLANTED: dict[str, tuple[Callable[[str], str], str]] = {
    "template": (
        lambda t: f"<|im_start|>user\n<|im_start|>user\n{t}<|im_end|>\n<|im_end|>\n",
        "with repeated control tokens once",
    ),
    "commas": (lambda t: t.replace(" ", ","), "with spaces for the signs between words"),
    "no spaces": (lambda t: t.replace(" ", ""), LOST_SPACES),
    "lower case": (str.lower, LOST_CAPITALS),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", sorted(PLANTED))
def test_the_form_that_undoes_a_fault_has_the_lowest_loss_in_texts_of_any_length(
    fault: str,
) -> None:
    plant, words = PLANTED[fault]
    texts = [" ".join(TEXTS[i % 6 : i % 6 + 1 + i % 3]) + " " + TEXTS[i % 5] for i in range(18)]
    stream = sonde.read(twin(), [plant(text) for text in texts])
    assert isinstance(stream, LiveStream)
    forms = text_forms(stream, evidence_of(stream))
    assert forms is not None
    assert len(forms.given) == len(set(texts))
    best = min(forms.losses, key=lambda name: float(forms.losses[name].mean()))
    assert best == words
    assert float(forms.losses[best].mean()) < 0.8 * float(forms.given.mean())


@pytest.mark.truth("a text of more tokens than the model reads has no loss")
def test_a_form_that_does_not_fit_into_the_context_is_not_compared() -> None:
    words = ["ash", "brook", "cedar", "dune", "elm", "fern", "grove", "heath"]
    # Words in lower case are one token each, in upper case one token for each letter.
    letters = sorted(set("".join(words).upper()) | {" "})
    known = {token: i for i, token in enumerate(["?", *words, *letters])}
    tokens = Tokenizer(WordLevel(known, unk_token="?"))
    tokens.pre_tokenizer = Split(Regex(r"[a-z]+|."), "isolated")
    tokens.decoder = Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="?", unk_token="?")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": len(known), "n_positions": 24, "n_embd": 16}
    config = GPT2Config(**sizes, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    module = GPT2LMHeadModel(config).eval()
    with torch.no_grad():  # each letter is likelier than a word, but a text of letters is not
        way = torch.nn.functional.one_hot(torch.tensor(5), 16).float()
        module.transformer.ln_f.bias.copy_(2 * way)
        module.transformer.wte.weight[len(words) + 1 :] += way
    model = sonde.load(module, processor=fast)
    draw = random.Random(0)
    items = [{"text": " ".join(draw.choices(words, k=12))} for _ in range(20)]
    stream = sonde.read(model, items, max_length=24)
    assert isinstance(stream, LiveStream)
    forms = text_forms(stream, evidence_of(stream))
    assert forms is not None
    assert "in upper case" not in forms.losses


@pytest.mark.slow
@pytest.mark.truth("forward passes counted by hooks on the model, in tokens")
def test_spellings_of_texts_ask_the_budget_in_operations() -> None:
    texts = [{"text": text.upper().replace("\n", "\r\n")} for text in source_texts()[:40]]
    stream = sonde.read(shipped(), texts, max_length=LONGEST)
    assert isinstance(stream, LiveStream)
    evidence, spent, seen = evidence_of(stream), dict[float, int](), list[int]()
    module = stream.model.module
    for total in (3e4, 6e3):  # tokens
        budget = TrialBudget(lambda total=total: (ForwardCost(0.0, 1.0), total))
        seen.clear()
        handle = module.register_forward_hook(
            lambda _m, args, kwargs, _out: seen.append(
                next(x for x in (*args, *kwargs.values()) if isinstance(x, torch.Tensor)).numel()
            ),
            with_kwargs=True,
        )
        assert text_forms(stream, replace(evidence, budget=budget)) is not None
        handle.remove()
        spent[total] = sum(seen)
        assert budget.spent <= total
        if total > 6e3:
            assert budget.spent == pytest.approx(sum(seen), rel=0.1)
        assert sum(seen) <= total + (JUDGED * total if total <= 6e3 else 0)
        assert "spelling" in budget.text() or total > 6e3
    assert spent[6e3] < spent[3e4]


@pytest.mark.slow
def test_a_way_that_few_texts_need_is_tried_before_those_that_change_every_text() -> None:
    texts = [f"<|im_start|><|im_start|>{a} {b}" for a in TEXTS for b in TEXTS[:4]]
    stream = sonde.read(twin(), texts, max_length=32)
    assert isinstance(stream, LiveStream)
    budget = TrialBudget(lambda: (ForwardCost(0.0, 1.0), 400.0))  # for one way on a few texts
    forms = text_forms(stream, replace(evidence_of(stream), budget=budget))
    assert forms is not None
    loss = forms.losses["with repeated control tokens once"]
    assert float(loss.mean()) < float(forms.given.mean())
    assert "spellings of the texts" in budget.text()
