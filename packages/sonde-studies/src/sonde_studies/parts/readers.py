"""A language model that answers questions about what a word names."""

from typing import Any, final

import torch
from torch import Tensor

from sonde import InputError, Model


@final
class SentenceReader:
    """Answers of a language model to a question about something that a word names.

    Parameters
    ----------
    reasoner : Model
    sentence : str
    answers : dict of str to list of str
        For each question, the answers to choose from.

    Raises
    ------
    InputError
        If the model is no causal language model or has no tokenizer, or the sentence has no ``{}``.
    """

    def __init__(self, reasoner: Model, sentence: str, answers: dict[str, list[str]]) -> None:
        if reasoner.processor is None or reasoner.task != "causal":
            raise InputError(
                "perception_in_words: expected a causal language model with its tokenizer as the "
                f"reasoner, got {reasoner!r}. Load it with sonde.load."
            )
        if "{}" not in sentence:
            raise InputError(
                "perception_in_words: expected a sentence with {} in place of the word, got "
                f"{sentence!r}: without it the reasoner would read no word."
            )
        self.reasoner, self.sentence, self.answers = reasoner, sentence, answers
        self._alone: dict[str, Tensor] = {}
        self._said: dict[tuple[str, str], str] = {}

    def __call__(self, word: str, question: str) -> str:
        """Return the answer whose log-probability the sentence raises most."""
        if (word, question) not in self._said:
            if question not in self._alone:
                self._alone[question] = self._log_p(question, question)
            told = self._log_p(f"{self.sentence.replace('{}', word)} {question}", question)
            best = int((told - self._alone[question]).argmax())
            self._said[word, question] = self.answers[question][best]
        return self._said[word, question]

    @torch.no_grad()
    def _log_p(self, prompt: str, question: str) -> Tensor:
        """Return the log-probability of each answer after a text."""
        tokenizer: Any = self.reasoner.processor
        device = next(iter(self.reasoner.module.parameters())).device  # pyright: ignore
        n = len(tokenizer(prompt)["input_ids"])
        found: list[Tensor] = []
        for answer in self.answers[question]:
            ids = torch.tensor([tokenizer(f"{prompt} {answer}")["input_ids"]], device=device)
            logits = self.reasoner.module(input_ids=ids, use_cache=False).logits[0, n - 1 : -1]  # pyright: ignore
            log_p = logits.float().log_softmax(1).gather(1, ids[0, n:, None])
            found.append(log_p.sum().cpu())
        return torch.stack(found)
