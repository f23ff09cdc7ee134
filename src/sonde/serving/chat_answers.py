"""Answers of the OpenAI protocol as JSON, with the field ``sonde`` beside the protocol's own."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from sonde.serving.chat_pieces import TokenProbability
from sonde.serving.chat_requests import ChatRequest
from sonde.serving.continuing import Continued, Continuing
from sonde.serving.verdicts import Verdict

LEAST = -9999.0
"""Log probability that stands for minus infinity, which JSON lacks."""


@final
@dataclass(frozen=True)
class ChatAnswers:
    """Makes the JSON of one request's answers.

    Parameters
    ----------
    name : str
        Id of the request.
    request : ChatRequest
    model : Continuing
    alpha : float
        False-alarm rate of the alarms.
    made : int
        Seconds since 1970.
    """

    name: str
    request: ChatRequest
    model: Continuing
    alpha: float
    made: int

    @classmethod
    def of(cls, name: str, request: ChatRequest, model: Continuing, alpha: float) -> "ChatAnswers":
        """Return the answers of a request that begins now."""
        prefix = "chatcmpl" if request.is_chat else "cmpl"
        return cls(f"{prefix}-{name}", request, model, alpha, int(time.time()))

    def whole(self, found: Sequence[Continued], lengths: Sequence[int]) -> dict[str, Any]:
        """Return the answer to a request that does not stream.

        Parameters
        ----------
        found : sequence of Continued
            The answers, those to one prompt beside one another.
        lengths : sequence of int
            Tokens of each prompt.
        """
        choices = [self._choice(i, one) for i, one in enumerate(found)]
        head = self._head("chat.completion" if self.request.is_chat else "text_completion")
        verdict = self.sonde(min(found, key=_least_p))
        rest = {"choices": choices, "usage": usage(found, lengths)}
        return head | rest | ({"sonde": verdict} if verdict else {})

    def piece(self, i: int, text: str, *, first: bool = False) -> dict[str, Any]:
        """Return one piece of a streamed answer."""
        if not self.request.is_chat:
            body: dict[str, Any] = {"text": text, "logprobs": None}
        else:
            delta = {"role": "assistant"} if first else {}
            body = {"delta": delta | {"content": text}, "logprobs": None}
        return self._piece_head() | {"choices": [{"index": i, **body, "finish_reason": None}]}

    def last_piece(self, i: int, one: Continued, reason: str) -> dict[str, Any]:
        """Return the piece that ends a streamed answer, with the verdicts."""
        body = {"delta": {}} if self.request.is_chat else {"text": ""}
        choice = {"index": i, **body, "logprobs": self._logprobs(one), "finish_reason": reason}
        verdict = {"sonde": sonde} if (sonde := self.sonde(one)) else {}
        return self._piece_head() | {"choices": [choice | verdict], **verdict}

    def usage_piece(self, found: Sequence[Continued], lengths: Sequence[int]) -> dict[str, Any]:
        """Return the piece that counts the tokens."""
        return self._piece_head() | {"choices": [], "usage": usage(found, lengths)}

    def sonde(self, one: Continued) -> dict[str, Any]:
        """Return what the detectors say of the prompt and of prompt and answer; empty if none."""
        parts = {"prompt": one.prompt, "answer": one.whole}
        verdicts = {name: verdict_json(v) for name, v in parts.items() if v is not None}
        return {"alarm_rate": self.alpha, **verdicts} if verdicts else {}

    def _choice(self, i: int, one: Continued) -> dict[str, Any]:
        text = one.pieces.text
        body = (
            {"message": {"role": "assistant", "content": text, "refusal": None}}
            if self.request.is_chat
            else {"text": text}
        )
        verdict = {"sonde": sonde} if (sonde := self.sonde(one)) else {}
        rest = {"logprobs": self._logprobs(one), "finish_reason": one.reason}
        return {"index": i, **body, **rest, **verdict}

    def _head(self, kind: str) -> dict[str, Any]:
        name = self.model.served.name
        return {"id": self.name, "object": kind, "created": self.made, "model": name}

    def _piece_head(self) -> dict[str, Any]:
        return self._head("chat.completion.chunk" if self.request.is_chat else "text_completion")

    def _logprobs(self, one: Continued) -> dict[str, Any] | None:
        if self.request.settings.logprobs is None:
            return None
        each, decode = one.pieces.probabilities, self.model.tokenizer.decode
        texts = [decode([p.token]) for p in each]
        if self.request.is_chat:
            content = [
                _entry(text, p.logprob)
                | {"top_logprobs": [_entry(decode([t]), x) for t, x in p.likely]}
                for text, p in zip(texts, each, strict=True)
            ]
            return {"content": content, "refusal": None}
        return {
            "tokens": texts,
            "token_logprobs": [_finite(p.logprob) for p in each],
            "top_logprobs": [_likely(p, decode) for p in each],
            "text_offset": [sum(map(len, texts[:i])) for i in range(len(texts))],
        }


def chat_paths() -> dict[str, Any]:
    """Return the addresses of the protocol for the OpenAPI description; OpenAI's has the rest."""
    body = {"content": {"application/json": {"schema": {"type": "object"}}}}
    codes = ("200", "400", "401", "403", "404", "408", "413", "429", "500", "503")
    answers = {code: {"description": "As the OpenAI protocol says.", **body} for code in codes}
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    got = {"summary": "OpenAI protocol: the model.", "responses": answers}
    posted = {"requestBody": {"required": True, **body}, "responses": answers}
    return {
        "/v1/models": {"get": got},
        "/v1/models/{name}": {"get": got | {"parameters": [name]}},
        "/v1/completions": {"post": {"summary": "OpenAI protocol: continue texts.", **posted}},
        "/v1/chat/completions": {"post": {"summary": "OpenAI protocol: answer a chat.", **posted}},
    }


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict: p-value, alarm, the loudest detector, and the p-value of each."""
    method, site = verdict.loudest or (None, None)
    each: dict[str, dict[str, float | None]] = {}
    for (detector, place), (_, p) in verdict.each.items():
        each.setdefault(detector, {})[place] = p
    return {
        "p": verdict.p,
        "alarm": verdict.alarm,
        "detector": method,
        "site": site,
        "p_each": each,
    }


def _least_p(one: Continued) -> float:
    """Return the least p-value that is known of prompt and answer."""
    p_values = [v.p for v in (one.prompt, one.whole) if v is not None and v.p is not None]
    return min(p_values, default=math.inf)


def usage(found: Sequence[Continued], lengths: Sequence[int]) -> dict[str, int]:
    """Return the count of tokens that were read and generated."""
    n_written = sum(len(one.pieces.ids) for one in found)
    return {
        "prompt_tokens": sum(lengths),
        "completion_tokens": n_written,
        "total_tokens": sum(lengths) + n_written,
    }


def _entry(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode())}


def _likely(one: TokenProbability, decode: Any) -> dict[str, float]:
    return {decode([token]): _finite(x) for token, x in one.likely}


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else LEAST
