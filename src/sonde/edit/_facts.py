"""Facts as prompts with a subject: their tokens, their keys, and the values that change them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.engine.steps import Descent
from sonde.stats.divergence import kl_divergence
from sonde.tap import Tap, placement
from sonde.tap.hooks.outputs import find, replaced
from sonde.tap.hooks.session import Session

TEXTS = 64
PREFIXES = ("", "The ", "Then. ", "I think that ", "Yes, because ")
STATEMENT = "{} is a"


@final
@dataclass(frozen=True)
class Fact:
    """A prompt and the answer that a model should give.

    Parameters
    ----------
    prompt : str
        Text that names the subject and breaks off where the answer begins.
    subject : str
        Whom or what the fact is about, as written in the prompt.
    target : str
        The new answer, appended to the prompt: begin it with a space if the text needs a space
        there.
    paraphrases : tuple of str, default=()
        Other wordings of the prompt, which should give the target too.
    neighbours : tuple of str, default=()
        Prompts about other subjects, whose answers should stay.

    Examples
    --------
    >>> Fact("The Eiffel Tower is in", "Eiffel Tower", " Rome").prompt
    'The Eiffel Tower is in'
    """

    prompt: str
    subject: str
    target: str
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.subject or self.subject not in self.prompt:
            raise InputError(
                f"Fact: expected the subject in the prompt, got subject {self.subject!r} and "
                f"prompt {self.prompt!r}. Write the subject exactly as in the prompt."
            )
        if not self.target:
            raise InputError(f"Fact: expected a target after {self.prompt!r}, got an empty text.")


@dataclass(frozen=True)
class FactTexts:
    """Tokens of texts, padded on the right; ``fact`` is the index of each text's fact.

    ``subject`` is the place of the subject's last token, ``answer`` marks the tokens of the target.
    """

    ids: Int[Tensor, "text pos"]
    mask: Bool[Tensor, "text pos"]
    fact: Int[Tensor, "text"]
    subject: Int[Tensor, "text"]
    answer: Bool[Tensor, "text pos"]

    def inputs(self) -> dict[str, Tensor]:
        """Return the keyword arguments of the model."""
        return {"input_ids": self.ids, "attention_mask": self.mask.long()}

    def split(self) -> Iterator["FactTexts"]:
        """Yield the texts, at most 64 at a time."""
        parts = (self.ids, self.mask, self.fact, self.subject, self.answer)
        for some in zip(*(part.split(TEXTS) for part in parts), strict=True):
            yield FactTexts(*some)

    @classmethod
    def of(cls, model: Model, texts: Sequence[tuple[int, str, str, str]]) -> "FactTexts":
        """Return the tokens of ``(fact, text, subject, target)``.

        Raises
        ------
        InputError
            If the model is no causal language model, or has no tokenizer.
        """
        if model.processor is None or model.task != "causal":
            raise InputError(
                "Fact: expected a causal language model with its tokenizer, got "
                f"{model!r}. Load it with sonde.load."
            )
        token_lists = [_tokens(model.processor, *text[1:]) for text in texts]
        longest = max(len(ids) for ids, _, _ in token_lists)
        device = placement(model.module)[0]

        def padded(rows: Sequence[Sequence[int]]) -> Tensor:
            full = [[*row, *[0] * (longest - len(row))] for row in rows]
            return torch.tensor(full, device=device)

        return cls(
            padded([ids for ids, _, _ in token_lists]),
            padded([[1] * len(ids) for ids, _, _ in token_lists]).bool(),
            torch.tensor([fact for fact, *_ in texts], device=device),
            torch.tensor([subject for _, subject, _ in token_lists], device=device),
            padded([answer for _, _, answer in token_lists]).bool(),
        )


def prompts(
    model: Model, facts: Sequence[Fact], prefixes: Sequence[str], *, answered: bool = False
) -> FactTexts:
    """Return the prompt of each fact after each prefix, with or without its target."""
    several = [
        (i, prefix + fact.prompt, fact.subject, fact.target if answered else "")
        for i, fact in enumerate(facts)
        for prefix in prefixes
    ]
    return FactTexts.of(model, several)


def read_means(
    module: nn.Module, texts: FactTexts, sites: Sequence[str]
) -> list[Float[Tensor, "fact dim"]]:
    """Return the mean state at a subject's last token over each fact's texts, for each site."""
    n = int(texts.fact.max()) + 1
    count = torch.bincount(texts.fact, minlength=n).cpu()
    sums: list[Tensor | None] = [None] * len(sites)
    for some in texts.split():
        with Tap(module, list(sites), stop=True, here=True) as tap:
            tap.run(**some.inputs())
        rows = torch.arange(len(some.ids))
        for i, site in enumerate(sites):
            states = tap.rows[site].cpu()[rows, some.subject.cpu()].double()
            total = sums[i] if sums[i] is not None else torch.zeros(n, states.shape[1]).double()
            assert total is not None
            sums[i] = total.index_add(0, some.fact.cpu(), states)
    return [total / count[:, None] for total in sums if total is not None]


def log_probability(
    model: Model, facts: Sequence[Fact], prefixes: Sequence[str] = ("",)
) -> Float[Tensor, "fact"]:
    """Return the mean log-probability of the target of each fact, in nats.

    Parameters
    ----------
    model : Model
        To judge a plan, fold it: ``dataclasses.replace(model, module=plan.fold(model))``.
    facts : sequence of Fact
        Facts whose targets are scored.
    prefixes : sequence of str, default=("",)
        Texts put before each prompt; the mean is taken over these texts.

    Returns
    -------
    Float[Tensor, "fact"]
        Mean log-probability of the tokens of the target.
    """
    texts = prompts(model, facts, prefixes, answered=True)
    with _Shifted(model.module, "") as plain:
        return plain.answers(texts, None, len(facts))


@dataclass(frozen=True)
class Search:
    """Search for the value of a fact: the layer output with which the model gives the target.

    Parameters
    ----------
    steps : int
        Steps of Adam.
    rate : float
        Its step size, in units of the states.
    divergence : float
        Weight of the KL divergence from the unedited model's next token after "<subject> is a".
    decay : float
        Weight of half the squared shift over the squared norm of the state.
    largest : float
        Largest norm of the shift, in norms of the state.
    """

    steps: int
    rate: float
    divergence: float
    decay: float
    largest: float

    def shifts(
        self,
        model: Model,
        facts: Sequence[Fact],
        prefixes: Sequence[str],
        place: str,
        state: Float[Tensor, "fact dim"],
    ) -> tuple[Float[Tensor, "fact dim"], Float[Tensor, "fact"], Float[Tensor, "fact"]]:
        """Return the shift of each fact's state, and the log-probabilities before and after.

        These are the means over the target's tokens, in nats, without and with the shift. The facts
        are searched side by side, each on its own.
        """
        texts = prompts(model, facts, prefixes, answered=True)
        statements = [(i, STATEMENT.format(f.subject), f.subject, "") for i, f in enumerate(facts)]
        plain = list(FactTexts.of(model, statements).split())
        norm = state.norm(dim=1, keepdim=True).to(texts.ids.device, torch.float32)
        delta = torch.zeros(state.shape, device=norm.device, requires_grad=True)
        descent = Descent("BatchEdit", [delta], self.rate)
        with _Shifted(model.module, place) as shifted:
            kept = [shifted.last(some, None).detach() for some in plain]
            before = shifted.answers(texts, delta, len(facts))
            for _ in range(self.steps):
                slope = self.decay * delta.detach() / norm.square()
                for some in texts.split():
                    loss = -shifted.answer(some, delta).sum() / len(prefixes)
                    slope += torch.autograd.grad(loss, delta)[0]
                for some, old in zip(plain, kept, strict=True):
                    loss = kl_divergence(old, shifted.last(some, delta)).sum()
                    slope += self.divergence * torch.autograd.grad(loss, delta)[0]
                descent.move([slope])
                with torch.no_grad():
                    excess = delta.norm(dim=1, keepdim=True) / (self.largest * norm)
                    delta /= excess.clamp(min=1.0)
            after = shifted.answers(texts, delta, len(facts))
        return delta.detach().double().cpu(), before, after


class _Shifted:
    """A model whose state at a subject's last token is shifted, separately for each fact."""

    def __init__(self, module: nn.Module, place: str) -> None:
        self.texts: FactTexts | None = None
        self.delta: Tensor | None = None
        hooks = [(module.get_submodule(place), self._after)]
        self.session = Session(module, hooks, with_grad=True, owner="BatchEdit")

    def __enter__(self) -> "_Shifted":
        self.session.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.session.__exit__(*error)

    def answer(self, texts: FactTexts, delta: Tensor | None) -> Float[Tensor, "text"]:
        """Return the mean log-probability of the target's tokens in each text."""
        chances = self._run(texts, delta)[:, :-1]
        right = chances.gather(2, texts.ids[:, 1:, None]).squeeze(2)
        answer = texts.answer[:, 1:]
        return (right * answer).sum(1) / answer.sum(1)

    def answers(self, texts: FactTexts, delta: Tensor | None, n: int) -> Float[Tensor, "fact"]:
        """Return the mean log-probability of each fact's target over all texts of the fact."""
        total, count = torch.zeros(n), torch.bincount(texts.fact, minlength=n).cpu()
        for some in texts.split():
            total.index_add_(0, some.fact.cpu(), self.answer(some, delta).detach().cpu())
        return total / count

    def last(self, texts: FactTexts, delta: Tensor | None) -> Float[Tensor, "text token"]:
        """Return the next-token log-probabilities after each text."""
        chances = self._run(texts, delta)
        return chances[torch.arange(len(chances)), texts.mask.sum(1) - 1]

    def _run(self, texts: FactTexts, delta: Tensor | None) -> Float[Tensor, "text pos token"]:
        self.texts, self.delta = texts, delta
        output = self.session.run((), {**texts.inputs(), "use_cache": False})
        return output.logits.float().log_softmax(-1)

    def _after(self, output: Any) -> Any:
        leaf = find(output, None)
        if self.delta is None or self.texts is None or leaf is None:
            return None
        at = torch.arange(len(leaf), device=leaf.device), self.texts.subject
        new = leaf.index_put(at, self.delta[self.texts.fact].to(leaf), accumulate=True)
        return replaced(output, leaf, new)


def _tokens(
    tokenizer: Any, text: str, subject: str, target: str
) -> tuple[list[int], int, list[int]]:
    """Return token ids, the position of the subject's last token, and the target's mask."""
    encoded = tokenizer(text + target, return_offsets_mapping=True)
    spans = encoded["offset_mapping"]
    end = text.rindex(subject) + len(subject)
    inside = [i for i, (start, stop) in enumerate(spans) if start < end and stop > start]
    answer = [int(stop > start and stop > len(text)) for start, stop in spans]
    return list(encoded["input_ids"]), inside[-1], answer
