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
from sonde.findings.self_check import chosen_examples
from sonde.findings.trial import chooses_by_key
from sonde.findings.trial_budget import TrialBudget, counted
from sonde.tap import LiveStream
from sonde.tap.model.probe import find_logits
from sonde.tap.model.seeding import untouched
from sonde.tap.model.watch import watch
from sonde.tap.streams.small_batches import SmallBatches, small_batches

TEXTS, LONGEST, LEAST = 48, 96, 8
# Texts are cut before they are left out: a signed-rank test of nine texts cannot reach 0.1 %.
FEWEST, SHORTEST = 32, 32  # texts, and tokens of one
WHOLE, PART = 6, 0.5  # forward passes of all texts; part of the budget
SPELLINGS: Final = ("spelling of the texts", "spellings of the texts")
FIRST: Final = 8  # texts on which a way must help before it is tried on all
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
}  # fmt: skip


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


@counted
def text_forms(stream: LiveStream, evidence: Evidence) -> TextForms | None:
    """Run a causal language model on a few texts in several spellings, within the budget."""
    processor: Any = stream.model.processor
    if stream.model.task != "causal" or not callable(getattr(processor, "decode", None)):
        return None
    budget, seed = evidence.budget, evidence.data.seed
    able = budget.rows(TEXTS * LONGEST, FEWEST * SHORTEST, WHOLE, PART)
    n = max(FEWEST, able // LONGEST)
    chosen = chosen_examples(stream, n, seed)
    most = context_of(stream.model)
    # Half of the context: another way to write a text may take up to twice as many tokens.
    longest = able // n if most is None else min(able // n, most // 2)
    small = small_batches(stream.model, stream.inputs, chosen, longest)
    if len(small) < LEAST or small.length is None or not callable(processor):
        return None
    ids = ids_of(small.together(range(len(small))))
    decode = getattr(processor, "decode", None)
    assert callable(decode)
    texts = [str(decode(row.tolist())) for row in ids]
    kept = [i for i, t in enumerate(texts) if _tokens(processor, t) == ids[i].tolist()]
    if len(kept) < LEAST or small.singles[0].placeholder is not None:
        return None
    texts = [texts[i] for i in kept]
    with untouched(stream.model.module), torch.no_grad():
        tokens, batch = ids.shape[1] - 1, small.together(kept)
        read = known_losses(evidence, batch.order, tokens)
        given = _losses(stream, small, texts, budget) if read is None else read.sum(1)
        if given is None:
            return None
        losses, every = dict[str, Tensor](), range(len(texts))
        changing = {words: touched for words, (_, form) in FORMS.items()
                    if (touched := _touching(texts, form))}  # fmt: skip
        for words, (changed, few) in budget.affordable(changing, FIRST * tokens, SPELLINGS, PART):
            loss = _as_given(stream, small, texts, changed, few, budget)
            if loss is None or loss.mean() >= given[few].mean():
                continue
            if not budget.affords(len(texts) * tokens):
                budget.leave_out(SPELLINGS, 1)
            else:
                loss = _as_given(stream, small, texts, changed, every, budget)
                if loss is not None:
                    losses[words] = loss / tokens
    return TextForms(given / tokens, losses, batch.order, chooses_by_key(batch.group_keys))


def _touching(texts: Sequence[str], form: Form) -> tuple[list[str], list[int]] | None:
    """Return texts in a form, and the first that change; None if few change or one is empty."""
    changed = [form(t) for t in texts]
    touched = [i for i, t in enumerate(texts) if t != changed[i]]
    if len(touched) < TOUCHED * len(texts) or not all(changed):
        return None
    return changed, touched[:FIRST]


def _as_given(
    stream: LiveStream,
    small: SmallBatches,
    texts: Sequence[str],
    changed: Sequence[str],
    which: Sequence[int],
    budget: TrialBudget,
) -> Float[Tensor, "text"] | None:
    """Return the loss of changed texts, scaled up if they hold fewer characters."""
    loss = _losses(stream, small, [changed[i] for i in which], budget)
    n, own = (torch.tensor([len(some[i]) for i in which]) for some in (texts, changed))
    return None if loss is None else loss * (n / torch.minimum(own, n)).clamp(max=4)


def _tokens(processor: Any, text: str) -> list[int]:
    return list(processor(text, add_special_tokens=False, verbose=False)["input_ids"])


def _losses(
    stream: LiveStream, small: SmallBatches, texts: Sequence[str], budget: TrialBudget
) -> Float[Tensor, "text"] | None:
    """Return the loss of each text after its first token; None if it is not known.

    It is not known of texts that are longer than the context of the model: the loss of their
    beginnings would be less than that of shorter texts, whatever they hold.
    """
    lists = [_tokens(stream.model.processor, t) for t in texts]
    longest, most = max(map(len, lists)), context_of(stream.model)
    if min(map(len, lists)) < 2 or (most is not None and longest > most):
        return None
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in lists])
    ids = torch.tensor([ids + [small.pad_id] * (longest - len(ids)) for ids in lists])
    budget.note(ids.numel())  # the batch below has the order of one text
    try:
        output = watch(
            stream.model.module, _given(small, ids, mask), (), place=stream.probe.place
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


def _given(small: SmallBatches, ids: Tensor, mask: Tensor) -> InputBatch:
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
