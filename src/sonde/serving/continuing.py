"""A served language model that continues prompts, with the verdict on prompt and answer.

The states are taken while the model generates: the rows of the prompt after its forward pass, those
of the whole text at the end. Only detectors that need more than states cost a further forward pass.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from sonde.core.batch import Batch
from sonde.core.errors import StateError
from sonde.core.inputs import InputBatch
from sonde.data.processors import is_tokenizer
from sonde.data.text_encoding import context_of
from sonde.engines.vllm import given_states, shared_engine
from sonde.run.instruments.entries import Key
from sonde.run.reading.read import read
from sonde.run.scoring.batches import reduction_of, scored_rows
from sonde.run.scoring.opening import open_for
from sonde.serving.chat_pieces import StopWhenOver, TextPieces
from sonde.serving.chat_requests import MOST_NEW_TOKENS, ProtocolError, Settings
from sonde.serving.served import ServedModel, prompts_of
from sonde.serving.verdicts import Verdict
from sonde.tap import LiveStream
from sonde.tap.generating.replay import ReplayInputs
from sonde.tap.rows.padding import left_padded, right_padded

LONGEST_REASON = 200
ONE = {"max_new_tokens": 1}
"""Settings of the stream; each request brings its own."""


@final
@dataclass(frozen=True)
class Continued:
    """The answer to one prompt.

    Parameters
    ----------
    pieces : TextPieces
        Text, tokens and probabilities.
    prompt, whole : Verdict or None
        On the prompt, and on prompt and answer together; None without a probe.
    """

    pieces: TextPieces
    prompt: Verdict | None
    whole: Verdict | None

    @property
    def reason(self) -> str:
        """Why the answer ends, in the word of the protocol."""
        return "stop" if self.pieces.stopped else "length"


@final
class Continuing:
    """Continues prompts by a served model; ``run`` and verdicts belong in the model's thread.

    Parameters
    ----------
    served : ServedModel

    Raises
    ------
    ProtocolError
        If the model is no language model with a tokenizer.
    """

    def __init__(self, served: ServedModel) -> None:
        self.served, self.model = served, served.model
        can = callable(getattr(self.model.module, "generate", None))
        if not can or self.model.task != "causal" or not is_tokenizer(self.model.processor):
            raise ProtocolError(
                404,
                f"The model {served.name!r} does not continue texts. POST /predict reads its "
                "inputs.",
                "model",
                "model_not_found",
            )
        self.tokenizer: Any = self.model.processor
        self.engine = shared_engine(self.model.module)
        self.context = context_of(self.model)
        if self.engine is not None:  # states of the last token take a step more
            self.context = self.engine.room - (served.fitted is not None)
        self._opened_for: Any = None
        self._stream: LiveStream | None = None
        self._reader: Any = None

    def tokens(self, prompt: Any, is_chat: bool) -> list[int]:
        """Return the token ids of a prompt: a text, token ids, or messages of a chat.

        Raises
        ------
        ProtocolError
            If the model has no chat template, or the template rejects the messages.
        """
        if is_chat:
            if not getattr(self.tokenizer, "chat_template", None):
                raise ProtocolError(
                    400,
                    "The model has no chat template. POST /v1/completions with a text.",
                    "messages",
                )
            try:
                text = self.tokenizer.apply_chat_template(
                    prompt, tokenize=False, add_generation_prompt=True
                )
            except Exception as error:
                reason = str(error).strip().rstrip(".")[:LONGEST_REASON] or type(error).__name__
                raise ProtocolError(
                    400,
                    f"The model's chat template rejects these messages: {reason}. Check the roles "
                    "and their order.",
                    "messages",
                ) from None
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if isinstance(prompt, str):
            return list(self.tokenizer(prompt)["input_ids"])
        size = len(self.tokenizer)
        if min(prompt) < 0 or max(prompt) >= size:
            raise ProtocolError(400, f"Expected token ids from 0 to {size - 1}.", "prompt")
        return list(prompt)

    def room(self, ids: Sequence[int], settings: Settings) -> int:
        """Return how many tokens may be generated after a prompt.

        Raises
        ------
        ProtocolError
            If prompt and answer do not fit the model's context.
        """
        if not ids:
            raise ProtocolError(400, "Expected a prompt of at least one token.", "prompt")
        wanted = settings.new_tokens
        left = None if self.context is None else self.context - len(ids)
        if left is not None and left < (1 if wanted is None else wanted):
            raise ProtocolError(
                400,
                f"This model's context has {self.context} tokens. The prompt has {len(ids)} and "
                f"the answer may have {wanted or 1}. Shorten the prompt, or lower max_tokens.",
                "messages",
                "context_length_exceeded",
            )
        if wanted is not None:
            return wanted
        return MOST_NEW_TOKENS if left is None else min(left, MOST_NEW_TOKENS)

    def pieces(
        self, settings: Settings, on_piece: Callable[[str], None] | None = None
    ) -> TextPieces:
        """Return the text of an answer that is still empty."""
        return TextPieces(self.decode, self.ends(), settings.stop, settings.logprobs, on_piece)

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids, without special tokens."""
        return self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def run(
        self,
        ids: list[int],
        settings: Settings,
        pieces: TextPieces,
        on_prompt: Callable[[Verdict | None], bool] = lambda _: True,
    ) -> Continued:
        """Continue one prompt.

        Parameters
        ----------
        ids : list of int
        settings : Settings
        pieces : TextPieces
        on_prompt : callable
            Called with the verdict on the prompt before the first token is chosen; False ends the
            answer there.
        """
        stream = self._opened()
        prompts = self._batch(stream, ids)
        wanted = self.room(ids, settings)
        seen: list[Verdict | None] = []

        def judged(verdict: Verdict | None) -> None:
            seen.append(verdict)
            if not on_prompt(verdict):
                pieces.cancelled.set()

        chosen = settings.for_generate() | {
            "max_new_tokens": wanted,
            "eos_token_id": self.ends() or None,
            "streamer": pieces,
            "stopping_criteria": [StopWhenOver(pieces)],
        }
        inputs = self._inputs(stream, settings.seed, chosen)
        if self.served.fitted is None:
            chosen["logits_processor"] = [pieces]
            judged(None)
            if not pieces.is_over:
                inputs.continued(prompts)
            return Continued(pieces, None, None)
        reader = self._reader
        if not stream.records(inputs, prompts):
            judged(self._verdict(stream.read_batch(reader, prompts)))
            chosen["logits_processor"] = [pieces]
            if pieces.is_over:
                return Continued(pieces, seen[0], None)
            whole = self._verdict(stream.read_generated(reader, prompts, inputs))
            return Continued(pieces, seen[0], whole)
        recorder = stream.prompt_recorder(prompts)

        def at_first(_: Any, scores: Any) -> Any:
            if not seen:
                batch = stream.recorded(reader, recorder, prompts)
                batch = stream.read_batch(reader, prompts) if batch is None else batch
                recorder.aligns = False  # what follows is the answer
                judged(self._verdict(batch))
            return scores

        chosen["logits_processor"] = [at_first, pieces]
        with recorder.session:
            batch = stream.read_generated(reader, prompts, inputs)
        whole = None if pieces.cancelled.is_set() else self._verdict(batch)
        return Continued(pieces, seen[0] if seen else None, whole)

    def read_blocks(self) -> tuple[str, ...]:
        """Return the blocks whose states the detectors read."""
        sites = () if self.served.fitted is None else self._opened().schema
        return tuple(dict.fromkeys(one.site.path for one in sites))

    def verdict_of_states(
        self, ids: list[int], new: list[int], states: Mapping[str, Tensor]
    ) -> Verdict | None:
        """Return the verdict on a prompt and the tokens after it, whose states are known.

        Parameters
        ----------
        ids, new : list of int
        states : mapping of str to Tensor
            By block, for each token.
        """
        stream = self._opened()
        batch = self._batch(stream, ids)
        if new:
            chosen = {"max_new_tokens": len(new), "eos_token_id": self.ends() or None}
            generation = self._inputs(stream, 0, chosen).generation
            batch = generation.as_text(left_padded(batch), torch.tensor([[*ids, *new]]))
            batch = right_padded(batch)
        with given_states(dict(states)):
            return self._verdict(stream.read_batch(self._reader, batch))

    def _inputs(self, stream: LiveStream, seed: int, chosen: dict[str, Any]) -> ReplayInputs:
        inputs = stream.inputs
        assert isinstance(inputs, ReplayInputs)  # it was opened with ``generate``
        return ReplayInputs(self.model, inputs.prompts, seed, chosen)

    def _batch(self, stream: LiveStream, ids: list[int]) -> InputBatch:
        inputs = prompts_of(stream)
        assert inputs is not None
        item = inputs.encoder.prepare([{"input_ids": ids}], [(0, 0)])
        return inputs.collated(item, [bytes(16)])

    def _opened(self) -> LiveStream:
        """Return the stream of token ids that the detectors read; anew for a new calibration."""
        fitted = self.served.fitted
        if self._stream is None or self._opened_for is not fitted:
            row = [{"input_ids": [max(0, *self.ends(), 1)] * 4}]
            options = {"check": False, "batch_size": 1, "generate": dict(ONE)}
            if fitted is None:
                stream = read(self.model, row, **options)
            else:
                stream = open_for(fitted, self.model, row, **options)
            if not isinstance(stream, LiveStream):
                raise StateError(f"serve: expected a live model, got {stream!r}.")
            # a reader looks at all modules once, and a prompt is judged before its first token
            self._stream, self._reader, self._opened_for = stream, stream.reader(), fitted
        return self._stream

    def _verdict(self, batch: Batch) -> Verdict | None:
        fitted, verdicts = self.served.fitted, self.served.verdicts
        if fitted is None or verdicts is None:
            return None
        tasks = dict(zip(fitted.names, fitted.tasks, strict=True))
        scored: Mapping[Key, Any] = {
            name: scored_rows(batch, tasks[name], scorer, reduction_of(fitted, tasks[name], "auto"))
            for name, scorer in fitted.scorers.items()
        }
        return verdicts.of(scored, 1)[0]

    def ends(self) -> list[int]:
        """Return the tokens that end a text."""
        config = getattr(self.model.module, "generation_config", None)
        ends = getattr(config, "eos_token_id", None)
        ends = [ends] if isinstance(ends, int) else list(ends or ())
        own = self.tokenizer.eos_token_id
        return [*dict.fromkeys([*ends, *([own] if own is not None else [])])]
