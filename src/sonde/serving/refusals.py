"""Refused requests: an HTTP status, and a sentence on what to do."""

import traceback
from typing import final


@final
class Refusal(Exception):
    """A request, or one input of it, that is refused.

    Parameters
    ----------
    status : int
        HTTP status.
    sentence : str
        What was expected and what to do; it repeats nothing of an input.
    headers : dict of str to str, optional
    column : str, default=""
        The column whose value is missing or wrong.
    """

    def __init__(
        self,
        status: int,
        sentence: str,
        headers: dict[str, str] | None = None,
        column: str = "",
    ) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers or {}
        self.column = column

    def of_input(self, number: int) -> "Refusal":
        """Return the refusal with the number of the input in its request, counted from 0."""
        if self.sentence.startswith("Input "):
            return self
        text = f"Input {number}: {self.sentence}"
        return Refusal(self.status, text, self.headers, self.column)


def frames_of(error: BaseException) -> str:
    """Return the calls that led to an error and to its cause, without their messages.

    A message of a model's code may repeat an input, and a log holds no inputs.
    """
    own = f"{''.join(traceback.format_tb(error.__traceback__))}{type(error).__name__}"
    cause = error.__cause__
    return own if cause is None else f"{frames_of(cause)}\nwhich led to:\n{own}"
