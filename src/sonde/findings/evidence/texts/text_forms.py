"""Loss of a language model on texts in other spellings: case, spaces, encoding.

Other ways to write a text have other numbers of tokens, so losses of whole texts are compared. If
another way shortens a text, its loss is raised by the ratio of characters, at most fourfold.
"""

import html
import re
import unicodedata
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.inputs import InputBatch
from sonde.data.text_encoding import context_of
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.texts.counted_tokens import ids_of
from sonde.findings.evidence.texts.lens import known_losses
from sonde.findings.evidence.texts.text_measures import BYTES
from sonde.findings.evidence.texts.vocabulary_words import LINES, vocabulary_forms
from sonde.findings.self_check import chosen_examples
from sonde.findings.trial import chooses_by_key
from sonde.findings.trial_budget import TrialBudget, counted
from sonde.tap import LiveStream
from sonde.tap.model.probe import find_logits
from sonde.tap.model.seeding import untouched
from sonde.tap.model.watch import watch
from sonde.tap.streams.small_batches import SmallBatches, small_batches

TEXTS, LONGEST, SHORTEST, LEAST = 32, 96, 32, 8
# Texts are cut before they are left out: a signed-rank test of nine texts cannot reach 0.1 %.
WHOLE, PART = 6, 0.5  # forward passes of all texts; part of the budget
JUDGED = 2.0  # budgets of all trials, for ways that lowered the loss of the first texts
SPELLINGS: Final = ("spelling of the texts", "spellings of the texts")
FIRST, FEWEST, MOST = 8, 3, 3  # texts on which a way is tried first; ways tried on all texts
HOPE: Final = 0.02
PLAIN: Final = 'He said, "They are here (both of them)." Then she left.'
"""A text that a way leaves as it is if it undoes a fault that few texts have."""
TOUCHED: Final = 0.3  # share of the texts that another way changes
Form = Callable[[str], str]


def _sentences(text: str) -> str:
    """Return a text in lower case, with a capital at the start of each sentence."""
    return re.sub(r"(^|[.!?]\s+|\n\s*)([a-z])", lambda m: m[1] + m[2].upper(), text.lower())


def _as_utf8(text: str) -> str:
    """Restore UTF-8 that was decoded as one character per byte."""
    encoding = "latin-1" if re.search("[\x80-\x9f]", text) else "cp1252"
    return BYTES.sub(lambda m: _decoded(m[0], encoding), text)


def _decoded(signs: str, encoding: str) -> str:
    try:
        return signs.encode(encoding).decode("utf-8")
    except UnicodeError:
        return signs


CONTROL: Final = re.compile(r"<[^<>\s]{1,30}>|\[[A-Z_]{1,30}\]")
"""A control token, or a tag: characters that are no content."""
MARKS: Final = re.compile(rf"((?:{CONTROL.pattern})[^<>\[\]]{{0,30}}?)\1+(?!\1)")
"""A control token, or a tag, with the few characters up to its repetition."""
JOINTS: Final = re.compile(r"(?<=\S)[,;|_+\t](?=\S)")
"""Signs that may stand for the spaces between words."""


def _marked_once(text: str) -> str:
    """Return a text with each run of equal control tokens, as of a doubled template, once."""
    return MARKS.sub(r"\1", text)


def _unjoined(text: str) -> str:
    """Return a text with spaces between its words; the same text if it has spaces."""
    return text if " " in text.strip() else JOINTS.sub(" ", text)


_STRAIGHT = str.maketrans({"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "–": "-", "—": "-"})

FORMS: Final[Mapping[str, tuple[str, Form]]] = {
    "in lower case": ("text = text.lower()", str.lower),
    "in upper case": ("text = text.upper()", str.upper),
    "in lower case but for the starts of sentences": (
        "capitalise the starts of sentences of text.lower()", _sentences,
    ),
    "with HTML entities as characters": ("text = html.unescape(text)", html.unescape),
    "with characters as HTML entities": ("text = html.escape(text)", html.escape),
    "with line ends \\n for \\r\\n": (
        "text = text.replace('\\r\\n', '\\n')", lambda t: t.replace("\r\n", "\n"),
    ),
    "with line ends \\r\\n for \\n": (
        "text = text.replace('\\n', '\\r\\n')", lambda t: t.replace("\n", "\r\n"),
    ),
    "with line breaks for \\n of two characters": (
        "text = text.replace('\\\\n', '\\n')", lambda t: t.replace("\\n", "\n"),
    ),
    "with four spaces for a tab": ("text = text.expandtabs(4)", lambda t: t.replace("\t", "    ")),
    "with a tab for four spaces": (
        "text = text.replace('    ', '\\t')", lambda t: t.replace("    ", "\t"),
    ),
    "with half of the spaces of each run": (
        "text = text.replace('  ', ' ')", lambda t: t.replace("  ", " "),
    ),
    "with ASCII quotation marks and dashes": (
        "replace “ ” ‘ ’ – — by \" ' -", lambda t: t.translate(_STRAIGHT),
    ),
    "with letters composed (NFC)": (
        "text = unicodedata.normalize('NFC', text)", lambda t: unicodedata.normalize("NFC", t),
    ),
    "with accents as separate characters (NFD)": (
        "text = unicodedata.normalize('NFD', text)", lambda t: unicodedata.normalize("NFD", t),
    ),
    "with full-width letters as ordinary ones (NFKC)": (
        "text = unicodedata.normalize('NFKC', text)", lambda t: unicodedata.normalize("NFKC", t),
    ),
    "read as UTF-8": ("text = text.encode('latin-1').decode('utf-8')", _as_utf8),
    "read as UTF-8, with ASCII quotation marks and dashes": (
        "text = text.encode('latin-1').decode('utf-8'), then replace “ ” ‘ ’ – — by \" ' -",
        lambda t: _as_utf8(t).translate(_STRAIGHT),
    ),
    "with % signs resolved as in URLs": (
        "text = urllib.parse.unquote(text)", urllib.parse.unquote,
    ),
    "with a leading space": ("text = ' ' + text", lambda t: " " + t),
    "without spaces at their ends": ("text = text.strip()", str.strip),
    "with repeated control tokens once": (
        "apply the chat template once, and let either the template or the tokenizer add the start "
        "token", _marked_once,
    ),
    "with spaces for the signs between words": (
        "text = re.sub(r'[,;|_+\\t]', ' ', text)", _unjoined,
    ),
}  # fmt: skip

FIXES: Final[Mapping[str, str]] = {**{words: line for words, (line, _) in FORMS.items()}, **LINES}
"""What to do if a form lowers the loss, by the words for the form."""


@dataclass(frozen=True, eq=False)
class TextForms:
    """Loss of each text unchanged and in other forms, in nats per token of the original.

    Parameters
    ----------
    given : Float[Tensor, "text"]
    losses : mapping of str to Float[Tensor, "text"]
        Keyed by the words for each form.
    rows : Int[Tensor, "text"]
        Their examples by planned order.
    chooses : Bool[Tensor, "text"]
        Which of them choose a form; the others judge it.
    """

    given: Float[Tensor, "text"]
    losses: Mapping[str, Tensor]
    rows: Int[Tensor, "text"]
    chooses: Bool[Tensor, "text"]


@dataclass(frozen=True, eq=False)
class _Given:
    """Texts of any length that their tokens spell exactly, and the inputs they came from."""

    small: SmallBatches
    texts: tuple[str, ...]
    singles: tuple[InputBatch, ...]
    n_targets: Int[Tensor, "text"]

    @property
    def order(self) -> Int[Tensor, "text"]:
        """Their examples by planned order."""
        return torch.cat([one.order for one in self.singles])

    @property
    def chooses(self) -> Bool[Tensor, "text"]:
        """Which of them choose a form."""
        return chooses_by_key([key for one in self.singles for key in one.group_keys])


@counted
def text_forms(stream: LiveStream, evidence: Evidence) -> TextForms | None:
    """Run a causal language model on a few texts in several spellings, within the budget."""
    own, budget = _given_texts(stream, evidence), evidence.budget
    if own is None:
        return None
    n, texts = own.n_targets, own.texts
    with untouched(stream.model.module), torch.no_grad():
        given = _losses_as_given(stream, evidence, own)
        if given is None:
            return None
        longest, ratios = int(n.max()), dict[str, float]()
        forms = {words: form for words, (_, form) in FORMS.items()}
        forms |= vocabulary_forms(stream.model.processor)
        changing = {words: touched for words, form in forms.items()
                    if (touched := _touching(texts, form))}  # fmt: skip
        changing = dict(sorted(changing.items(), key=lambda way: forms[way[0]](PLAIN) != PLAIN))
        one_each = len(changing) * budget.cost.of(FEWEST * longest)
        first = budget if budget.left(PART) >= one_each else budget.beside(PART)
        part = PART if first is budget else 1.0
        n_first = first.rows(FIRST * longest, FEWEST * longest, len(changing), part) // longest
        tried = first.affordable(changing, n_first * longest, SPELLINGS, part)
        for words, (changed, touched) in tried:
            few = touched[:n_first]
            with first.counting():
                loss = _as_given(stream, own, changed, few, first)
            ratio = 1.0 if loss is None else float(loss.mean() / given[few].mean())
            if ratio < 1.0 - HOPE:
                ratios[words] = ratio
        losses, every = dict[str, Tensor](), range(len(texts))
        more = budget.beside(JUDGED) if ratios else budget
        for words in sorted(ratios, key=lambda words: ratios[words])[:MOST]:
            payer = budget if budget.affords(len(texts) * longest) else more
            if not payer.affords(len(texts) * longest):
                budget.leave_out(SPELLINGS, 1)
                continue
            with payer.counting():
                loss = _as_given(stream, own, changing[words][0], every, payer)
            if loss is not None:
                losses[words] = loss
    return TextForms(given, losses, own.order, own.chooses)


def _given_texts(stream: LiveStream, evidence: Evidence) -> _Given | None:
    """Return the texts to respell, cut to a length that the budget and the context allow."""
    processor: Any = stream.model.processor
    decode = getattr(processor, "decode", None)
    if stream.model.task != "causal" or not callable(decode) or not callable(processor):
        return None
    able = evidence.budget.rows(TEXTS * LONGEST, TEXTS * SHORTEST, WHOLE, PART)
    chosen = chosen_examples(stream, TEXTS, evidence.data.seed)
    most = context_of(stream.model)
    # Half of the context: another way to write a text may take up to twice as many tokens.
    longest = able // TEXTS if most is None else min(able // TEXTS, most // 2)
    small = small_batches(stream.model, stream.inputs, chosen, longest, even=False)
    if len(small) < LEAST or small.length is None or small.singles[0].placeholder is not None:
        return None
    ids = [ids_of(one)[0].tolist() for one in small.singles]
    texts = [str(decode(row)) for row in ids]
    kept = [i for i, text in enumerate(texts) if tokens_of(processor, text) == ids[i]]
    if len(kept) < LEAST:
        return None
    n_targets = torch.tensor([len(ids[i]) - 1 for i in kept])
    singles = tuple(small.singles[i] for i in kept)
    return _Given(small, tuple(texts[i] for i in kept), singles, n_targets)


def _losses_as_given(
    stream: LiveStream, evidence: Evidence, own: _Given
) -> Float[Tensor, "text"] | None:
    """Return each text's mean loss, of an earlier forward pass if there was one."""
    pairs = zip(own.singles, own.n_targets.tolist(), strict=True)
    earlier = [known_losses(evidence, one.order, n) for one, n in pairs]
    read = [loss.mean() for loss in earlier if loss is not None]
    if len(read) == len(own.texts):
        return torch.stack(read)
    total = _losses(stream, own.small, own.texts, evidence.budget)
    return None if total is None else total / own.n_targets


def _touching(texts: Sequence[str], form: Form) -> tuple[list[str], list[int]] | None:
    """Return texts in a form, and the first that change; None if few change or one is empty."""
    changed = [form(t) for t in texts]
    touched = [i for i, t in enumerate(texts) if t != changed[i]]
    if len(touched) < TOUCHED * len(texts) or not all(changed):
        return None
    return changed, touched[:FIRST]


def _as_given(
    stream: LiveStream,
    own: _Given,
    changed: Sequence[str],
    which: Sequence[int],
    budget: TrialBudget,
) -> Float[Tensor, "text"] | None:
    """Return the loss of changed texts per token of the original.

    It is scaled up for texts that hold fewer characters beside control tokens.
    """
    loss = _losses(stream, own.small, [changed[i] for i in which], budget)
    if loss is None:
        return None
    n, left = (
        torch.tensor([max(1, len(CONTROL.sub("", some[i]))) for i in which])
        for some in (own.texts, changed)
    )
    return loss * (n / torch.minimum(left, n)).clamp(max=4) / own.n_targets[list(which)]


def tokens_of(processor: Any, text: str) -> list[int]:
    """Return the tokens of a text, without those that a tokenizer adds around texts."""
    return list(processor(text, add_special_tokens=False, verbose=False)["input_ids"])


def _losses(
    stream: LiveStream, small: SmallBatches, texts: Sequence[str], budget: TrialBudget
) -> Float[Tensor, "text"] | None:
    """Return the loss of each text after its first token; None if it is not known.

    It is not known of texts that are longer than the context of the model: the loss of their
    beginnings would be less than that of shorter texts, whatever they hold.
    """
    lists = [tokens_of(stream.model.processor, t) for t in texts]
    longest, most = max(map(len, lists)), context_of(stream.model)
    if min(map(len, lists)) < 2 or (most is not None and longest > most):
        return None
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in lists])
    ids = torch.tensor([ids + [small.pad_id] * (longest - len(ids)) for ids in lists])
    budget.note(ids.numel())  # the batch below has the order of one text
    try:
        output = watch(
            stream.model.module, batch_of(small, ids, mask), (), place=stream.probe.place
        ).output
    except (RuntimeError, IndexError, ValueError):  # e.g. more tokens than the model has places for
        return None
    logits = find_logits(output)
    if logits is None or logits.ndim != 3 or int(ids.max()) >= logits.shape[-1]:
        return None
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), ids[:, 1:].to(logits.device), reduction="none"
    )
    return (losses.double().cpu() * mask[:, 1:]).sum(1)


def batch_of(small: SmallBatches, ids: Tensor, mask: Tensor) -> InputBatch:
    """Return a batch of these tokens, in the form in which the model takes the examples."""
    first = small.singles[0]
    kwargs = {k: v for k, v in first.kwargs.items() if k not in ("input_ids", "position_ids")}
    if small.takes_mask:
        kwargs["attention_mask"] = mask
    args = first.args
    if "input_ids" in first.kwargs:
        kwargs["input_ids"] = ids
    else:
        args = (ids, *first.args[1:])
    return replace(first, args=args, kwargs=kwargs)
