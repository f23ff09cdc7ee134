"""Loss of a model after shortened prompts, beside the plain ways to shorten them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.engine.progress import Bar

SEED = 0
WORST, OWN = "nothing", "compressed"
CLEAR = 2.0
"""Standard errors beyond which two ways of shortening differ."""
PLAIN: Final = ("first words", "last words", "random words")


@dataclass(frozen=True)
class PromptReport:
    """Loss on what follows a prompt, for each way of shortening the prompt.

    Parameters
    ----------
    loss_nats : dict of str to float
        Cross-entropy of the continuation, nats per token, after the ``whole`` prompt, the
        ``compressed`` one, as many ``first words``, ``last words`` and ``random words``, and after
        ``nothing``.
    gain_nats, gain_se : dict of str to float
        Mean over texts of the loss of each plain way less that of the compressed prompt, and its
        standard error: above 0 if compressing is better.
    n : int
        Texts.
    """

    loss_nats: dict[str, float]
    gain_nats: dict[str, float]
    gain_se: dict[str, float]
    n: int

    @property
    def best_plain(self) -> str:
        """The plain way with the smallest loss."""
        return min(PLAIN, key=lambda name: self.loss_nats[name])

    @property
    def is_better(self) -> bool:
        """True if the compressed prompt is clearly better than every plain way."""
        return all(self.gain_nats[name] > CLEAR * self.gain_se[name] for name in PLAIN)

    @property
    def verdict(self) -> str:
        """Which way to use, in a sentence."""
        name = self.best_plain
        gain, se = self.gain_nats[name], self.gain_se[name]
        losses = f"{self.loss_nats[OWN]:.3g} nats per token against {self.loss_nats[name]:.3g}"
        if self.is_better:
            return (
                f"Use the compressor: {losses} after the {name} (difference {gain:.2g} ± {se:.1g})."
            )
        if gain < -CLEAR * se:
            why = "the compressor is worse"
        else:
            why = "the compressor is not clearly better"
        return (
            f"Keep the {name}: {why}, {losses} (difference {gain:.2g} ± {se:.1g}; {self.n} texts)."
        )


def report_prompts(
    model: Model,
    texts: Sequence[str],
    shorten: Callable[[str], Any],
    horizon: int,
    *,
    progress: bool,
) -> PromptReport:
    """Return the losses on the last ``horizon`` tokens of texts after their shortened beginnings.

    Parameters
    ----------
    model : Model
        A causal language model with a fast tokenizer.
    texts : sequence of str
    shorten : callable
        Returns the ``CompressedPrompt`` of a text.
    horizon : int
        Tokens of a continuation.
    progress : bool
    """
    tokenizer: Any = model.processor
    draw = torch.Generator().manual_seed(SEED)
    rows: list[dict[str, float]] = []
    with Bar("prompts", len(texts), progress) as bar:
        for text in texts:
            starts = [
                a
                for a, _ in tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)[
                    "offset_mapping"
                ]
            ]
            bar.advance(1)
            if len(starts) <= horizon + 1:
                continue
            cut = starts[-horizon]
            prompt, after = text[:cut], text[cut:]
            rows.append(_losses(model, prompt, after, shorten(prompt), draw))
    if len(rows) < 2:
        raise InputError(
            f"PromptCompressor.judge: expected at least two texts of more than {horizon + 1} "
            f"tokens, got {len(rows)}. Give longer texts, or a smaller horizon."
        )
    return _joined(rows)


def _joined(rows: Sequence[Mapping[str, float]]) -> PromptReport:
    columns = {name: torch.tensor([row[name] for row in rows]).double() for name in rows[0]}
    gains = {name: columns[name] - columns[OWN] for name in PLAIN}
    n = len(rows)
    return PromptReport(
        loss_nats={name: float(column.mean()) for name, column in columns.items()},
        gain_nats={name: float(gain.mean()) for name, gain in gains.items()},
        gain_se={name: float(gain.std()) / math.sqrt(n) for name, gain in gains.items()},
        n=n,
    )


def _losses(
    model: Model, prompt: str, after: str, short: Any, draw: torch.Generator
) -> dict[str, float]:
    """Return the loss of a continuation after each form of its prompt."""
    words = [prompt[a:b] for a, b in short.words]
    n = int(short.kept.sum())
    lot = torch.randperm(len(words), generator=draw)[:n].sort().values.tolist()
    forms = {
        "whole": prompt,
        OWN: short.text,
        "first words": "".join(words[:n]),
        "last words": "".join(words[len(words) - n :]),
        "random words": "".join(words[i] for i in lot),
        WORST: "",
    }
    return {name: _loss(model, form, after) for name, form in forms.items()}


@torch.no_grad()
def _loss(model: Model, prompt: str, after: str) -> float:
    """Return the cross-entropy of a continuation, in nats per token."""
    tokenizer: Any = model.processor
    given = list(tokenizer(prompt)["input_ids"])
    answer = list(tokenizer(after, add_special_tokens=False)["input_ids"])
    ids = torch.tensor([given + answer], device=next(model.module.parameters()).device)
    log_p = model.module(ids).logits[0].double().log_softmax(-1)
    own = slice(max(len(given), 1) - 1, -1)  # without a prompt, the first token is not predicted
    truth = ids[0, max(len(given), 1) :]
    return -float(log_p[own].gather(1, truth[:, None]).mean())
