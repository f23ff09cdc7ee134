"""Refused requests: an HTTP status, and a sentence on what to do."""

from typing import final


@final
class Refusal(Exception):
    """A request that is refused.

    Parameters
    ----------
    status : int
        HTTP status.
    sentence : str
        What was expected and what to do; it repeats nothing of an input.
    headers : dict of str to str, optional
    """

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers or {}
