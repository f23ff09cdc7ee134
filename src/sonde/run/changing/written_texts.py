"""Texts that a language model writes before and after a change, and what they tell of it."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.inputs import Model
from sonde.run.changing.judge import Act, stays
from sonde.tap.hooks.holding import in_eval

REQUESTS = (
    "Write two sentences about the sea.",
    "Explain how rain forms.",
    "What is two plus three? Explain each step.",
    "Name three animals that live in a forest.",
    "Describe a small town in the morning.",
    "How do I boil an egg?",
    "Give me advice for a first day at work.",
    "Tell me a short story about a lost key.",
)
"""Harmless requests to a model with a chat template; the start of texts for one without."""
REFUSALS = (
    "sorry", "i cannot", "i can't", "i can’t", "i am not able", "i'm not able", "i am unable",
    "i'm unable", "as an ai", "i won't", "i must decline",
)  # fmt: skip
"""Phrases in lower case; a text that holds one near its beginning is a refusal."""
REFUSED_IN = 60
"""Characters of a text in which a refusal begins."""
WRITTEN = 40
"""Tokens of a written text."""


@dataclass(frozen=True)
class WrittenTexts:
    """Measures of the texts that a model writes, before and after a change.

    Parameters
    ----------
    entropy : tuple of float
        Mean entropy of the pairs and triples of tokens of a text, in nats.
    loss : tuple of float
        Cross-entropy of the unchanged model on the texts, in nats per token.
    refusals : tuple of float
        Fraction of the texts that begin with a refusal.
    kept : float
        Fraction of the unchanged model's confident next tokens, on the texts that it wrote, that
        the changed model keeps; NaN without one.
    n : int
        Number of texts.
    """

    entropy: tuple[float, float]
    loss: tuple[float, float]
    refusals: tuple[float, float]
    kept: float
    n: int


def prompts_of(model: Model) -> list[str]:
    """Return the requests as the model expects them: in its chat template, if it has one."""
    tokenizer = model.processor
    if not getattr(tokenizer, "chat_template", None):
        return list(REQUESTS)
    return [
        str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": request}], tokenize=False, add_generation_prompt=True
            )
        )
        for request in REQUESTS
    ]


Text = tuple[Tensor, int]
"""Token ids, (pos,), and the length of the prompt among them."""


@dataclass(frozen=True, eq=False)
class PlainTexts:
    """Texts that an unchanged model writes, for the judgement of one change or of several.

    Parameters
    ----------
    model : Model
        Unchanged, with its tokenizer.
    prompts : tuple of list of int
        Token ids of the texts that are continued.
    texts : tuple of (Int[Tensor, "pos"], int)
        Each prompt with its continuation, and the length of the prompt.
    log_p : tuple of Float[Tensor, "pos token"]
        Log-probabilities of the unchanged model after each token of a continuation.
    n_tokens : int
        Most tokens of a continuation.
    """

    model: Model
    prompts: tuple[list[int], ...]
    texts: tuple[Text, ...]
    log_p: tuple[Tensor, ...]
    n_tokens: int

    @classmethod
    def write(cls, model: Model, starts: Sequence[str], *, n_tokens: int = WRITTEN) -> "PlainTexts":
        """Return the texts that a model writes after some starts.

        Parameters
        ----------
        model : Model
            Unchanged, with its tokenizer.
        starts : sequence of str
            Texts that are continued.
        n_tokens : int, default=40
            Most tokens of a continuation.
        """
        asked = tuple(_encoded(model, start) for start in starts)
        texts = tuple(_written(model, model.module, asked, n_tokens))
        return cls(
            model, asked, texts, tuple(log_p(model.module, *text) for text in texts), n_tokens
        )


def measure_writing(plain: PlainTexts, act: Act) -> WrittenTexts:
    """Return the measures of what a model writes before and after a change.

    Parameters
    ----------
    plain : PlainTexts
        Texts that the unchanged model writes.
    act : callable
        Opens the changed model.
    """
    model, old = plain.model, plain.texts
    with act() as module:
        new = _written(model, module, plain.prompts, plain.n_tokens)
        moved = [log_p(module, *text) for text in old]
    stay = torch.cat([stays(one, other) for one, other in zip(plain.log_p, moved, strict=True)])
    return WrittenTexts(
        entropy=(_entropy(old), _entropy(new)),
        loss=(
            _loss(plain.log_p, old),
            _loss([log_p(model.module, *text) for text in new], new),
        ),
        refusals=(_refusals(model, old), _refusals(model, new)),
        kept=float(stay.double().mean()),
        n=len(old),
    )


def _encoded(model: Model, text: str) -> list[int]:
    has_template = bool(getattr(model.processor, "chat_template", None))
    bare = has_template and text in prompts_of(model)  # a template writes its own start token
    how: dict[str, Any] = {"add_special_tokens": False} if bare else {}
    return list(model.processor(text, **how)["input_ids"])


def _written(model: Model, module: Any, asked: Sequence[list[int]], n: int) -> list[Text]:
    """Return what a model writes after each prompt; the prompts are padded on the left."""
    device = next(model.module.parameters()).device
    longest = max(map(len, asked))
    ids = torch.tensor([[0] * (longest - len(a)) + a for a in asked], device=device)
    mask = torch.tensor([[0] * (longest - len(a)) + [1] * len(a) for a in asked], device=device)
    ends = _end_ids(module)
    with torch.no_grad(), in_eval(module):
        out = module.generate(
            ids, attention_mask=mask, max_new_tokens=n, do_sample=False, pad_token_id=0
        )
    texts: list[Text] = []
    for row, prompt in zip(out, asked, strict=True):
        new = row[longest:].tolist()
        stop = next((i + 1 for i, token in enumerate(new) if token in ends), len(new))
        texts.append((torch.tensor(prompt + new[:stop], device=device), len(prompt)))
    return texts


def _end_ids(module: Any) -> frozenset[int]:
    """Return the tokens that end a text."""
    configured = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in ids if i is not None)


def log_p(module: nn.Module, ids: Tensor, n: int) -> Tensor:
    """Return the log-probabilities of the tokens after the first ``n``, (pos, token)."""
    run: Any = module
    with torch.no_grad(), in_eval(module):
        logits = run(input_ids=ids[None], use_cache=False).logits[0]
    return logits[n - 1 : -1].float().log_softmax(1).cpu()


def _loss(chances: Sequence[Tensor], texts: Sequence[Text]) -> float:
    """Return the cross-entropy of the written tokens, in nats per token."""
    parts = [
        p.gather(1, ids[n:, None].cpu())[:, 0] for p, (ids, n) in zip(chances, texts, strict=True)
    ]
    return -float(torch.cat(parts).double().mean())


def _entropy(texts: Sequence[Text]) -> float:
    return sum(ngram_entropy(ids[n:].tolist()) for ids, n in texts) / len(texts)


def _refusals(model: Model, texts: Sequence[Text]) -> float:
    decoded = [str(model.processor.decode(ids[n:].tolist())) for ids, n in texts]
    return sum(map(is_refusal, decoded)) / len(decoded)


def is_refusal(text: str) -> bool:
    """Return whether a text begins with one of the usual phrases of a refusal.

    Examples
    --------
    >>> is_refusal("I'm sorry, but I cannot do this."), is_refusal("The sea is blue.")
    (True, False)
    """
    begin = text[:REFUSED_IN].lower()
    return any(phrase in begin for phrase in REFUSALS)


def ngram_entropy(tokens: Sequence[int]) -> float:
    """Return the mean entropy of the pairs and triples of tokens, in nats.

    Examples
    --------
    >>> round(ngram_entropy([1, 2, 1, 2, 1, 2]), 3), round(ngram_entropy([1, 2, 3, 4, 5, 6]), 3)
    (0.683, 1.498)
    """
    total = 0.0
    for n in (2, 3):
        counts = Counter(zip(*(tokens[i:] for i in range(n)), strict=False))
        shares = [count / counts.total() for count in counts.values()]
        total -= sum(p * math.log(p) for p in shares) / 2
    return total
