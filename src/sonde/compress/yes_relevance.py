"""Relevance of segments by a language model's answer, and a question's parts in its words.

For a model that follows instructions; without such a model ``segment_relevance`` compares
embeddings and ``question_parts`` counts words.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.inputs import InputBatch, Model
from sonde.data import open_inputs
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
        As ``sonde.load`` gives it.
    segments : sequence of str, or of images
        What ``open_inputs`` takes as texts or as images.
    parts : sequence of str
        Things that the question asks for, or the question itself as the only one.
    template : str
        The prompt. ``{part}`` stands for a part and, if segments are texts, ``{segment}`` for the
        segment. Images come before the text, by the processor's chat template; a template that
        holds the model's image token is taken as the whole prompt.
    answers : (str, str), default=(" yes", " no")
        The answers with the blank before them, if the prompt ends without one. Of each the first
        token counts.
    combine : {"max", "mean"}, default="max"
    batch_size : int or "auto"

    Raises
    ------
    InputError
        If the model is not causal, the template lacks a place, segments are images and the model
        reads texts alone, an answer is unknown to the tokenizer, both answers begin with the same
        token, a prompt is longer than the context, or a probability is not finite.

    References
    ----------
    luo2025quota
    """
    _check(model, segments, parts, template)
    rows = [_row(segment, template.replace(PART, part)) for segment in segments for part in parts]
    inputs = open_inputs(model, rows, batch_size=batch_size, long="error")
    tokens = _first_tokens(model, answers)
    found = torch.zeros(len(rows), 2, dtype=torch.float64)
    for batch in map(right_padded, inputs.batches(0, len(rows))):
        found[batch.order] = _logits(model, batch)[:, tokens].double().cpu()
    _check_finite("yes_relevance", found)
    chance = found.softmax(1)[:, 0].unflatten(0, (len(segments), len(parts)))
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
    question : str
    template : str
        The prompt; ``{question}`` stands for the question.
    new_tokens : int, default=64
        At most.

    Returns
    -------
    list of str
        In the model's order; the question itself if the answer is empty.

    Raises
    ------
    InputError
        If the template lacks the place of the question, or the logits are not finite.

    References
    ----------
    luo2025quota
    """
    if "{question}" not in template:
        raise InputError(f"asked_parts: expected {{question}} in the template, got {template!r}.")
    tokenizer, module = _tokenizer(model), model.module
    tokens = tokenizer(template.replace("{question}", question))["input_ids"]
    while len(tokens) > 1 and tokens[-1] == tokenizer.eos_token_id:
        tokens.pop()  # the answer would begin behind the end
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
    made = out.sequences[0, ids.shape[1] :]
    answer = tokenizer.decode(made, skip_special_tokens=True).strip()
    line = answer.splitlines()[0] if answer else ""
    return [part.strip() for part in re.split("[,;]", line) if part.strip()] or [question]


def _check(model: Model, segments: Sequence[Any], parts: Sequence[str], template: str) -> None:
    if model.task != "causal" or model.processor is None:
        raise InputError(
            "yes_relevance: expected a causal language model with its tokenizer or processor, got "
            f"{model!r}."
        )
    if len(segments) == 0 or isinstance(parts, str) or len(parts) == 0:
        raise InputError(
            f"yes_relevance: expected segments and a list of parts, got {len(segments)} segments "
            f"and {parts!r}. Pass [question] to ask about the question as a whole."
        )
    texts = any(isinstance(segment, str) for segment in segments)
    reads_images = hasattr(model.processor, "image_processor")
    if not reads_images and not all(isinstance(segment, str) for segment in segments):
        raise InputError(
            "yes_relevance: expected segments as texts, for a model without an image processor, "
            f"got {type(segments[0]).__name__}."
        )
    for place in (PART, SEGMENT) if texts else (PART,):
        if place not in template:
            raise InputError(f"yes_relevance: expected {place} in the template, got {template!r}.")


def _check_finite(name: str, logits: Tensor) -> None:
    if bool(logits.isnan().any() | logits.isposinf().any()):
        raise InputError(
            f"{name}: expected finite logits, got NaN or infinity. Check the model's weights."
        )


def _row(segment: Any, prompt: str) -> dict[str, Any]:
    if isinstance(segment, str):
        return {"text": prompt.replace(SEGMENT, segment)}
    return {"image": segment, "text": prompt}


def _first_tokens(model: Model, answers: tuple[str, str]) -> list[int]:
    """Return the first token of each answer."""
    tokenizer = _tokenizer(model)
    found = [tokenizer(a, add_special_tokens=False)["input_ids"][:1] for a in answers]
    for answer, ids in zip(answers, found, strict=True):
        if ids and ids[0] == tokenizer.unk_token_id and answer.strip() != tokenizer.unk_token:
            raise InputError(
                f"yes_relevance: expected answers that the tokenizer knows, got {answer!r}."
            )
    if not all(found) or found[0] == found[1]:
        raise InputError(
            f"yes_relevance: expected answers that begin with different tokens, got {found} for "
            f"{answers}. Leave the blank before them out, or name other answers."
        )
    return [ids[0] for ids in found]


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
