"""Readable text of each token, with bytes joined into characters."""

from typing import Any, Final

from torch import Tensor

from sonde.core.inputs import InputBatch

BROKEN: Final = "\ufffd"
LONGEST: Final = 8


def pieces_of(
    batch: InputBatch, tokenizer: Any, by_segment: bool = False, example: int = 0
) -> list[str]:
    """Return the text of each token or step of an example.

    A character that several tokens make stands with the last of them. Without a tokenizer a token
    is its id. Empty if a model reads no token ids, or if its decoder has other positions.

    Parameters
    ----------
    batch : InputBatch
        As the model reads it.
    tokenizer : tokenizer or None
    by_segment : bool, default=False
        Join the tokens of each step.
    example : int, default=0
        Which of the batch.
    """
    ids = _ids(batch)
    if ids is None or "decoder_input_ids" in batch.kwargs:
        return []
    row = ids[example]
    if batch.mask is not None:
        row = row[batch.mask[example].to(ids.device)]
    texts = texts_of(row.tolist(), tokenizer)
    if not by_segment or batch.segment is None:
        return texts
    segment = batch.segment[example].tolist()[: len(texts)]
    steps = [""] * (max(segment, default=-1) + 1)
    for place, text in zip(segment, texts, strict=True):
        if place >= 0:
            steps[place] += text
    return steps


def _ids(batch: InputBatch) -> Tensor | None:
    for value in (batch.kwargs.get("input_ids"), *batch.args[:1]):
        if isinstance(value, Tensor) and value.ndim == 2 and not value.is_floating_point():
            return value
    return None


def texts_of(ids: list[int], tokenizer: Any) -> list[str]:
    """Return the text of each token; a character of several tokens goes to the last one.

    Examples
    --------
    >>> texts_of([7, 8], None)
    ['7 ', '8 ']
    """
    if not hasattr(tokenizer, "decode"):
        return [f"{i} " for i in ids]
    out: list[str] = []
    before: list[int] = []
    waiting: list[int] = []
    for i in ids:
        waiting.append(i)
        text = _behind(tokenizer, before, waiting)
        if text.endswith(BROKEN) and len(waiting) < LONGEST:
            out.append("")
            continue
        out.append(text)
        before, waiting = waiting, []
    if waiting:
        out[-1] = _behind(tokenizer, before, waiting)
    return out


def _behind(tokenizer: Any, before: list[int], ids: list[int]) -> str:
    """Return the text of tokens, including the space before them."""
    whole, head = (
        tokenizer.decode(part, clean_up_tokenization_spaces=False)
        for part in ([*before, *ids], before or ids)
    )
    if before and whole.startswith(head):
        return whole[len(head) :]
    return whole if not before else tokenizer.decode(ids, clean_up_tokenization_spaces=False)
