"""What it costs to read hidden states while a model generates, beyond plain generation."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.nets import VOCABULARY
from benchmarks.protocol import AGAIN, PLAIN, interleaved, ratio_of
from benchmarks.rows import Row
from benchmarks.size import Size
from sonde.core.hashing import bytes_key
from sonde.core.inputs import InputBatch, Inputs, Model
from sonde.tap import live_stream, replay
from sonde.tap.streams.live import LiveStream

BUDGET = 1.15
SHORTEST, LONGEST = 8, 64
N_BEAMS = 4
READ, FORWARD = "read", "one more forward"


class Prompts(Inputs):
    """Random prompts of different lengths in one batch, padded on the left."""

    def __init__(self, n: int) -> None:
        self.n = n
        generator = torch.Generator().manual_seed(0)
        lengths = torch.linspace(SHORTEST, LONGEST, n).long().tolist()
        self.items = [torch.randint(1, VOCABULARY, (k,), generator=generator) for k in lengths]

    @property
    def group_keys(self) -> Sequence[bytes]:
        """One key for each prompt."""
        return self._keys

    @cached_property
    def _keys(self) -> list[bytes]:
        return [bytes_key(f"prompt {i}".encode()) for i in range(self.n)]

    @property
    def grouped(self) -> bool:
        """There are no groups."""
        return False

    @cached_property
    def padded(self) -> tuple[Tensor, Tensor]:
        """Ids and mask of all prompts."""
        ids = torch.zeros(self.n, LONGEST, dtype=torch.int64)
        for row, item in zip(ids, self.items, strict=True):
            row[LONGEST - len(item) :] = item
        return ids, ids > 0

    def batches(self, start: int, stop: int) -> Iterator[InputBatch]:
        """Yield one batch."""
        ids, mask = (x[start:stop] for x in self.padded)
        order = torch.arange(start, min(stop, self.n))
        keys = self.group_keys[start:stop]
        yield InputBatch(
            args=(),
            kwargs={"input_ids": ids, "attention_mask": mask.long()},
            ids=[f"prompt {i}" for i in order.tolist()],
            keys=keys,
            order=order,
            occurrence=torch.zeros_like(order),
            group_keys=keys,
            label=torch.full_like(order, -1),
            mask=mask,
        )

    def identity(self) -> dict[str, Any]:
        """Return what names the prompts."""
        return {"random prompts": self.n}


class OneMoreForward(LiveStream):
    """The stream as it is read where rows cannot be taken while the model generates."""

    def _records(self, inputs: Inputs, prompts: InputBatch) -> bool:
        return False


def generation_time(size: Size) -> list[Row]:
    """Time of generating and reading all blocks at every token, against plain generation.

    Rounds are fewer where one takes longer: beams run four times the rows, and move their cache.
    """
    depth, width, new = size.pick((4, 256, 128), (2, 64, 8))
    net, n = language_model(depth, width), size.pick(64, 4)
    what = f"{n} prompts of {SHORTEST} to {LONGEST} tokens, {new} new ones, all blocks"
    greedy = {"max_new_tokens": new, "do_sample": False}
    taken = _taken(net, n, min(7, size.rounds), greedy, by_forward=True)
    sampled = _taken(net, n, min(5, size.rounds), greedy | {"do_sample": True})
    beams = _taken(net, n, min(3, size.rounds), greedy | {"num_beams": N_BEAMS})
    return [
        _row(taken, READ, f"read while generating, greedy: {what}"),
        _row(taken, FORWARD, f"read while generating, greedy, by one more forward: {what}", None),
        _row(sampled, READ, f"the same for {n} prompts, sampled"),
        _row(beams, READ, f"the same for {n} prompts, {N_BEAMS} beams, by one more forward"),
    ]


def language_model(depth: int, width: int) -> nn.Module:
    """Return a random language model of this depth and width."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=depth,
        n_embd=width,
        n_head=max(1, width // 64),
        vocab_size=VOCABULARY,
        n_positions=256,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return GPT2LMHeadModel(config).eval()


def _plain(net: Any, prompts: Prompts, **settings: Any) -> Callable[[], Any]:
    ids, mask = prompts.padded

    def run() -> Any:
        with torch.no_grad():
            return net.generate(input_ids=ids, attention_mask=mask.long(), **settings)

    return run


def _stream(net: nn.Module, prompts: Prompts, **settings: Any) -> LiveStream:
    model = Model(net, config=net.config, name="random", task="causal")
    return live_stream(model, replay(model, prompts, **settings), "blocks", "tokens", logits=False)


def _taken(
    net: nn.Module, n: int, rounds: int, settings: dict[str, Any], by_forward: bool = False
) -> dict[str, list[float]]:
    """Return seconds of plain generation and of reading it, in turns; two tokens warm both up."""
    prompts = Prompts(n)
    short = settings | {"max_new_tokens": 2}
    interleaved(_arms(net, prompts, short, by_forward), rounds=0, warm_ups=1)
    return interleaved(_arms(net, prompts, settings, by_forward), rounds, warm_ups=0)


def _arms(
    net: nn.Module, prompts: Prompts, settings: dict[str, Any], by_forward: bool
) -> dict[str, Callable[[], Any]]:
    plain, stream = _plain(net, prompts, **settings), _stream(net, prompts, **settings)
    _ = stream.schema
    arms = {PLAIN: plain, READ: lambda: list(stream.batches(0, prompts.n)), AGAIN: plain}
    if by_forward:
        slow = OneMoreForward(**{f: getattr(stream, f) for f in LiveStream.__dataclass_fields__})
        _ = slow.schema
        arms[FORWARD] = lambda: list(slow.batches(0, prompts.n))
    return arms


def _row(taken: dict[str, list[float]], arm: str, words: str, budget: float | None = BUDGET) -> Row:
    ratio = ratio_of(taken, arm)
    return Row(
        "generate",
        words,
        ratio.median,
        budget=budget,
        spread=ratio.spread,
        rounds=ratio.rounds,
        note=ratio.noise,
    )
