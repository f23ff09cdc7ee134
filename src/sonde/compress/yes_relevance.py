"""Relevance of segments by a language model's answer, and a question's parts in its words.

For a model that follows instructions; without such a model ``segment_relevance`` compares
embeddings and ``question_parts`` counts words.
"""

import re
from collections.abc import Sequence
from numbers import Integral
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.inputs import InputBatch, Model
from sonde.data import open_inputs
from sonde.data.text_encoding import context_of
from sonde.tap import place_of
from sonde.tap.hooks.holding import in_eval
from sonde.tap.rows.padding import right_padded

PART, SEGMENT = "{part}", "{segment}"


def yes_relevance(
    model: Model,
    segments: Sequence[Any],
    parts: Sequence[str],
    template: str,
    answers: tuple[str, str] = (" yes", " no"),
    combine: Literal["max", "mean"] = "max",
    batch_size: int | str = "auto",
) -> Float[Tensor, "segment"]:
    """Return how probable it is that the model answers yes for a segment.

    The model reads each segment with each part of the question. Its next token after the prompt is
    compared: ``p(yes) / (p(yes) + p(no))``, the largest or the mean over parts.

    Range        [0, 1]; ``token_budget`` takes it as the relevance.
    Cost         a forward for each pair of a segment and a part, in batches.
    Assumes      a causal language model with a tokenizer, or with a processor if segments are
                 images; answers that begin with different tokens.

    Parameters
    ----------
    model : Model
        Language model, as ``sonde.load`` returns it.
    segments : sequence of str, or of images
        What ``open_inputs`` takes as texts or as images.
    parts : sequence of str
        Things that the question asks for, or the question itself as the only one.
    template : str
        The prompt. ``{part}`` stands for a part and, if segments are texts, ``{segment}`` for the
        segment; other braces, such as those of JSON or of ``{x}``, stay as they are. Images come
        before the text, by the processor's chat template; a template that holds the model's image
        token is taken as the whole prompt.
    answers : (str, str), default=(" yes", " no")
        The answers with the blank before them, if the prompt ends without one. Of each the first
        token counts.
    combine : {"max", "mean"}, default="max"
        Take the largest probability over the parts, or their mean.
    batch_size : int or "auto"
        Number of segments in a batch; ``auto`` is chosen by the size of the model.

    Raises
    ------
    InputError
        If the model is not what ``sonde.load`` returns or not causal, the template lacks a place,
        segments are one text, texts among images, or images while the model reads texts alone,
        parts are not texts, the answers are not two texts, an answer has no token or is unknown to
        the tokenizer, both answers begin with the same token, a prompt is empty or longer than the
        context, ``combine`` is another word, or a probability is not finite.

    References
    ----------
    luo2025quota
    """
    _check(model, segments, parts, template, combine)
    tokens = _first_tokens(model, answers)
    rows = [_row(segment, part, template) for segment in segments for part in parts]
    if not all(row["text"] for row in rows):
        raise InputError("yes_relevance: expected prompts with a text, got an empty one.")
    logits = torch.zeros(len(rows), 2, dtype=torch.float64)
    try:
        inputs = open_inputs(model, rows, batch_size=batch_size, long="error")
        for batch in map(right_padded, inputs.batches(0, len(rows))):
            logits[batch.order] = _logits(model, batch)[:, tokens].double().cpu()
    except InputError:
        _refuse_long(model, rows, len(parts))
        raise
    _check_finite("yes_relevance", logits)
    chance = logits.softmax(1)[:, 0].unflatten(0, (len(segments), len(parts)))
    return (chance.amax(1) if combine == "max" else chance.mean(1)).float()


@torch.no_grad()
def asked_parts(model: Model, question: str, template: str, new_tokens: int = 64) -> list[str]:
    """Return the things that a question asks for, as a language model writes them.

    The model continues the prompt by its likeliest tokens; the first line of its answer is split at
    commas and semicolons.

    Cost         a forward for each new token.
    Assumes      a causal language model with a tokenizer, which answers in one line.

    Parameters
    ----------
    model : Model
        Language model, as ``sonde.load`` returns it.
    question : str
        Question in plain text.
    template : str
        The prompt; ``{question}`` stands for the question, other braces stay as they are.
    new_tokens : int, default=64
        At most, 1 or more. The context must have room for them behind the prompt.

    Returns
    -------
    list of str
        In the model's order; the question itself if the answer is empty.

    Raises
    ------
    InputError
        If the model is not what ``sonde.load`` returns or not causal, the question is no text, the
        template lacks its place, ``new_tokens`` is no whole number of 1 or more, the prompt is
        empty or leaves no room for the new tokens in the context, or the logits are not finite.

    References
    ----------
    luo2025quota
    """
    _check_asked(model, question, template, new_tokens)
    tokenizer, module = _tokenizer(model), model.module
    tokens = tokenizer(template.replace("{question}", question), verbose=False)["input_ids"]
    while len(tokens) > 1 and tokens[-1] == tokenizer.eos_token_id:
        tokens.pop()  # the answer would begin behind the end
    most = context_of(model)
    if not tokens:
        raise InputError(
            f"asked_parts: expected a prompt of 1 token or more, got none from {question!r}. Write "
            "a question or a template with words."
        )
    if most is not None and len(tokens) + new_tokens > most:
        raise InputError(
            f"asked_parts: expected a prompt that fits with {new_tokens} new tokens into what the "
            f"model reads, {most} tokens, got {len(tokens)}. Shorten the question or the template, "
            "or pass fewer new_tokens."
        )
    ids = torch.tensor([tokens], device=next(module.parameters()).device)
    with in_eval(module):
        out: Any = module.generate(  # pyright: ignore[reportCallIssue]
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id or 0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    _check_finite("asked_parts", torch.stack(out.logits))
    written = out.sequences[0, ids.shape[1] :]
    answer = tokenizer.decode(written, skip_special_tokens=True).strip()
    line = answer.splitlines()[0] if answer else ""
    return [part.strip() for part in re.split("[,;]", line) if part.strip()] or [question]


def _check(model: Any, segments: Any, parts: Any, template: Any, combine: Any) -> None:
    name = "yes_relevance"
    _check_model(name, model)
    if combine not in ("max", "mean"):
        raise InputError(f"{name}: expected combine as 'max' or 'mean', got {combine!r}.")
    if isinstance(segments, str) or len(segments) == 0:
        got = "one text" if isinstance(segments, str) else "0 segments"
        raise InputError(f"{name}: expected a list of segments, got {got}. Pass [text] for one.")
    if isinstance(parts, str) or len(parts) == 0 or not all(isinstance(p, str) for p in parts):
        raise InputError(
            f"{name}: expected a list of parts as texts, got {parts!r}. Pass [question] to ask "
            "about the question as a whole."
        )
    strange = [segment for segment in segments if not isinstance(segment, str)]
    if strange and not hasattr(model.processor, "image_processor"):
        raise InputError(
            f"{name}: expected segments as texts, for a model without an image processor, got "
            f"{type(strange[0]).__name__}."
        )
    if 0 < len(strange) < len(segments):
        raise InputError(
            f"{name}: expected segments as texts alone or as images alone, got {len(strange)} "
            f"images among {len(segments)}. Ask about each kind in a call of its own."
        )
    _check_template(name, template, (PART,) if strange else (PART, SEGMENT))


def _check_asked(model: Any, question: Any, template: Any, new_tokens: Any) -> None:
    _check_model("asked_parts", model)
    if not isinstance(question, str):
        raise InputError(
            f"asked_parts: expected a question as a text, got {type(question).__name__}. Call "
            "asked_parts for each question."
        )
    _check_template("asked_parts", template, ("{question}",))
    if not isinstance(new_tokens, Integral) or isinstance(new_tokens, bool) or int(new_tokens) < 1:
        raise InputError(
            f"asked_parts: expected new_tokens as a whole number of 1 or more, got {new_tokens!r}."
        )


def _check_model(name: str, model: Any) -> None:
    if not isinstance(model, Model):
        got = repr(model) if isinstance(model, str) else type(model).__name__
        raise InputError(
            f"{name}: expected a loaded model, got {got}. Pass what sonde.load returns."
        )
    if model.task != "causal" or model.processor is None:
        raise InputError(
            f"{name}: expected a causal language model with its tokenizer or processor, got "
            f"{model!r}."
        )


def _check_template(name: str, template: Any, places: Sequence[str]) -> None:
    for place in places:
        if not isinstance(template, str) or place not in template:
            raise InputError(f"{name}: expected {place} in the template, got {template!r}.")


def _check_finite(name: str, logits: Tensor) -> None:
    if bool(logits.isnan().any() | logits.isposinf().any()):
        raise InputError(
            f"{name}: expected finite logits, got NaN or infinity. Check the model's weights."
        )


def _row(segment: Any, part: str, template: str) -> dict[str, Any]:
    """Return a prompt; places that a part or a segment happens to hold are left alone."""
    if not isinstance(segment, str):
        return {"image": segment, "text": template.replace(PART, part)}
    filled = {PART: part, SEGMENT: segment}
    return {"text": re.sub("{part}|{segment}", lambda found: filled[found[0]], template)}


def _refuse_long(model: Model, rows: Sequence[dict[str, Any]], n_parts: int) -> None:
    """Raise if a prompt is longer than the context."""
    most = context_of(model)
    for i, row in enumerate(rows if most is not None else []):
        try:
            batch = next(open_inputs(model, [row], long="truncate").batches(0, 1))
        except InputError:
            continue
        cut = 0 if batch.truncated is None else int(batch.truncated.sum())
        n = batch.kwargs["input_ids"].shape[1] + cut
        if n > most:
            raise InputError(
                f"yes_relevance: expected prompts of at most {most} tokens, which the model reads, "
                f"got {n} for segment {i // n_parts} with part {i % n_parts} (counted from 0). Cut "
                "the segment into shorter ones."
            ) from None


def _first_tokens(model: Model, answers: Any) -> list[int]:
    """Return the first token of each answer."""
    pair = list(answers) if isinstance(answers, tuple | list) else []
    if len(pair) != 2 or not all(isinstance(answer, str) for answer in pair):
        raise InputError(
            "yes_relevance: expected a pair of answers as texts, yes before no, got "
            f"{answers!r}. Pass answers=(' yes', ' no')."
        )
    tokenizer = _tokenizer(model)
    firsts = [tokenizer(a, add_special_tokens=False)["input_ids"][:1] for a in pair]
    for answer, ids in zip(pair, firsts, strict=True):
        if not ids:
            raise InputError(
                f"yes_relevance: expected answers of a token or more, got {answer!r}, which has "
                "none."
            )
        if ids[0] == tokenizer.unk_token_id and answer.strip() != tokenizer.unk_token:
            raise InputError(
                f"yes_relevance: expected answers that the tokenizer knows, got {answer!r}."
            )
    if firsts[0] == firsts[1]:
        raise InputError(
            f"yes_relevance: expected answers that begin with different tokens, got {firsts} for "
            f"{answers}. Leave the blank before them out, or name other answers."
        )
    return [ids[0] for ids in firsts]


def _tokenizer(model: Model) -> Any:
    """Return the tokenizer, that of the processor if the model has one."""
    return getattr(model.processor, "tokenizer", model.processor)


@torch.no_grad()
def _logits(model: Model, batch: InputBatch) -> Float[Tensor, "prompt token"]:
    """Return the logits of the token that follows each prompt."""
    args, kwargs = place_of(model.module, batch).call(batch.args, batch.kwargs)
    with in_eval(model.module):
        logits = model.module(*args, **kwargs).logits
    last = _last(model, batch).to(logits.device)
    return logits[torch.arange(len(last), device=logits.device), last]


def _last(model: Model, batch: InputBatch) -> Int[Tensor, "prompt"]:
    """Return the position of each prompt's last token, an end of text left out."""
    ids = batch.kwargs["input_ids"].cpu()
    real = torch.ones_like(ids, dtype=torch.bool) if batch.mask is None else batch.mask.cpu()
    end = _tokenizer(model).eos_token_id
    if end is not None:
        after = (ids == end) | ~real
        real = real & ~after.flip(1).long().cumprod(1).flip(1).bool()
    return real.shape[1] - 1 - real.flip(1).long().argmax(1)
