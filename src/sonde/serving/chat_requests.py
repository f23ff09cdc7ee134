"""Requests of the OpenAI protocol: completions and chats, checked and with their defaults."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from sonde.serving.refusals import Refusal

MOST_CHOICES, MOST_STOPS, MOST_LOGPROBS = 8, 8, 20
MOST_NEW_TOKENS = 1024
"""New tokens of a chat that names no number, if the model's context has room for as many."""
COMPLETION_TOKENS = 16
"""New tokens of a completion that names no number: the default of the protocol."""
UNSUPPORTED: Mapping[str, Any] = {
    "tools": None,
    "functions": None,
    "response_format": {"type": "text"},
    "logit_bias": {},
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "best_of": 1,
    "echo": False,
    "suffix": None,
    "modalities": ["text"],
}
"""Options that are refused unless they have the value that changes nothing."""


class ProtocolError(Exception):
    """A request that is refused in the shape of the protocol.

    Parameters
    ----------
    status : int
        HTTP status.
    sentence : str
        What was expected and what to do.
    param : str or None
        The option of the request that the sentence is about.
    code : str or None
        Short word that programs read.
    headers : mapping of str to str
    """

    def __init__(
        self,
        status: int,
        sentence: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.param, self.code = status, sentence, param, code
        self.headers = dict(headers or {})

    @classmethod
    def of(cls, refusal: Refusal) -> "ProtocolError":
        """Return a refusal of the server in this shape."""
        return cls(refusal.status, refusal.sentence, headers=refusal.headers)

    def json(self) -> dict[str, Any]:
        """Return the body of the answer."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {
            "error": {
                "message": self.sentence,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


@final
@dataclass(frozen=True)
class Settings:
    """How a request wants its text to be chosen.

    Parameters
    ----------
    new_tokens : int or None
        Most new tokens; None takes the default of the kind of request.
    temperature, top_p : float
    top_k : int
        Most likely tokens among which one is drawn; 0 draws among all.
    seed : int
    stop : tuple of str
        Texts before which the answer ends.
    logprobs : int or None
        How many of the most likely tokens are told beside each token; None tells nothing.
    """

    new_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    seed: int
    stop: tuple[str, ...] = ()
    logprobs: int | None = None

    def for_generate(self) -> dict[str, Any]:
        """Return the settings of ``generate`` in transformers, without the number of tokens."""
        if self.temperature == 0:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return {
            "do_sample": True,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
        }


@final
@dataclass(frozen=True)
class ChatRequest:
    """A request for continuations.

    Parameters
    ----------
    prompts : sequence of str, list of int, or list of messages
        Texts or token ids of a completion; one list of messages of a chat.
    is_chat : bool
    settings : Settings
    n_choices : int
        Answers to each prompt.
    streams : bool
        Whether the answer comes in pieces.
    tells_usage : bool
        Whether the last piece counts the tokens.
    """

    prompts: Sequence[Any]
    is_chat: bool
    settings: Settings
    n_choices: int = 1
    streams: bool = False
    tells_usage: bool = False
    ignored: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def parse(cls, found: Mapping[str, Any], is_chat: bool, name: str) -> "ChatRequest":
        """Return the request in a JSON body.

        Raises
        ------
        ProtocolError
            With the option that is missing, of another type, or not supported.
        """
        model = found.get("model", name)
        if model != name:
            raise ProtocolError(
                404,
                f"The model {model!r} does not exist. This server has {name!r}.",
                "model",
                "model_not_found",
            )
        for option, harmless in UNSUPPORTED.items():
            if found.get(option, harmless) not in (harmless, None, [], {}, ""):
                raise ProtocolError(
                    400, f"This server does not support {option!r}. Leave it out.", option
                )
        streams = _typed(found, "stream", bool, False)
        stream_options = _typed(found, "stream_options", dict, {})
        return cls(
            _messages(found) if is_chat else _prompts(found),
            is_chat,
            _settings(found, is_chat),
            _whole(found, "n", 1, 1, MOST_CHOICES),
            streams,
            streams and bool(stream_options.get("include_usage")),
        )


def _settings(found: Mapping[str, Any], is_chat: bool) -> Settings:
    given = found.get("stop") or []
    stop = [given] if isinstance(given, str) else given
    are_texts = isinstance(stop, list) and all(isinstance(one, str) and one for one in stop)
    if not are_texts or len(stop) > MOST_STOPS:
        raise ProtocolError(
            400, f"Expected 'stop' to be a text, or a list of at most {MOST_STOPS} texts.", "stop"
        )
    limit = "max_completion_tokens" if "max_completion_tokens" in found else "max_tokens"
    new_tokens = None if found.get(limit) is None else _whole(found, limit, 1, 1, 2**20)
    seed = found.get("seed")
    if seed is not None and (type(seed) is not int or not -(2**63) <= seed < 2**63):
        raise ProtocolError(400, "Expected 'seed' to be a whole number.", "seed")
    return Settings(
        new_tokens if is_chat or new_tokens is not None else COMPLETION_TOKENS,
        _number(found, "temperature", 1.0, 0.0, 2.0),
        _number(found, "top_p", 1.0, 1e-6, 1.0),
        _whole(found, "top_k", 0, 0, 2**20),
        secrets.randbits(31) if seed is None else seed % 2**31,
        tuple(stop),
        _logprobs(found, is_chat),
    )


def _logprobs(found: Mapping[str, Any], is_chat: bool) -> int | None:
    """Return how many likely tokens are told; the two kinds of requests ask differently."""
    if not is_chat:
        value = found.get("logprobs")
        return None if value is None or value is False else _whole(found, "logprobs", 0, 0, 20)
    if not _typed(found, "logprobs", bool, False):
        return None
    return _whole(found, "top_logprobs", 0, 0, MOST_LOGPROBS)


def _messages(found: Mapping[str, Any]) -> list[list[dict[str, str]]]:
    """Return the chat, with contents as texts."""
    given = found.get("messages")
    if not isinstance(given, list) or not given:
        raise ProtocolError(400, "Expected 'messages', a list of messages.", "messages")
    return [[_message(one, i) for i, one in enumerate(given)]]


def _message(one: Any, i: int) -> dict[str, str]:
    wrong = ProtocolError(
        400,
        f"Expected message {i} to have a 'role' and a 'content' that is a text.",
        f"messages[{i}]",
    )
    if not isinstance(one, dict) or not isinstance(one.get("role"), str):
        raise wrong
    content = one.get("content")
    if isinstance(content, list):
        parts = [p.get("text") for p in content if isinstance(p, dict) and p.get("type") == "text"]
        if len(parts) != len(content) or not all(isinstance(p, str) for p in parts):
            raise wrong
        content = "".join(map(str, parts))
    if not isinstance(content, str):
        raise wrong
    return {"role": one["role"], "content": content}


def _prompts(found: Mapping[str, Any]) -> list[Any]:
    """Return the prompts: one or several texts or lists of token ids."""
    given = found.get("prompt")
    if isinstance(given, str) or _are_ids(given):
        return [given]
    if isinstance(given, list) and given and all(isinstance(p, str) or _are_ids(p) for p in given):
        return given
    raise ProtocolError(
        400, "Expected 'prompt', a text, a list of texts, or a list of token ids.", "prompt"
    )


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(i) is int for i in value)


def _typed(found: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = found.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise ProtocolError(400, f"Expected {name!r} to be of type {kind.__name__}.", name)
    return value


def _whole(found: Mapping[str, Any], name: str, default: int, low: int, high: int) -> int:
    value = found.get(name)
    if value is None:
        return default
    if type(value) is not int or not low <= value <= high:
        raise ProtocolError(
            400, f"Expected {name!r} to be a whole number from {low} to {high}.", name
        )
    return value


def _number(found: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = found.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ProtocolError(400, f"Expected {name!r} to be a number up to {high:g}.", name)
    return float(value)
