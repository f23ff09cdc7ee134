"""Nets with random weights and inputs made from a seed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.hashing import bytes_key
from sonde.core.inputs import InputBatch, Inputs, Model

VOCABULARY = 1024
LONGEST = 64


def transformer(depth: int, width: int, seed: int = 0) -> nn.Module:
    """Return a decoder of GPT-2's shape without a head, so that nothing but blocks is timed."""
    from transformers import GPT2Model

    torch.manual_seed(seed)
    return GPT2Model(_config(depth, width)).eval()


def classifier(depth: int, width: int, seed: int = 0) -> nn.Module:
    """Return the same decoder with a linear layer that gives ten logits for each text."""
    from transformers import GPT2ForSequenceClassification

    torch.manual_seed(seed)
    config = _config(depth, width)
    config.num_labels, config.pad_token_id = 10, VOCABULARY
    return GPT2ForSequenceClassification(config).eval()


def _config(depth: int, width: int) -> Any:
    from transformers import GPT2Config

    return GPT2Config(
        n_layer=depth,
        n_embd=width,
        n_head=max(1, width // 64),
        vocab_size=VOCABULARY,
        n_positions=LONGEST,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both ways."""
        return self.relu(self.body(x) + self.shortcut(x))


def residual_net(width: int, seed: int = 0) -> nn.Sequential:
    """Return the 18-layer residual net of He et al. (2016); its blocks are named 4 to 11."""
    torch.manual_seed(seed)
    sizes = [(width, width, 1), (width, width, 1)]
    for k in (1, 2, 4):
        sizes += [(k * width, 2 * k * width, 2), (2 * k * width, 2 * k * width, 1)]
    return nn.Sequential(
        nn.Conv2d(3, width, 7, 2, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
        *(Block(*s) for s in sizes),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8 * width, 1000),
    ).eval()


def token_batch(n: int, length: int, seed: int = 0) -> dict[str, Any]:
    """Return the keyword arguments of a forward on random tokens, none of them padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (n, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class Tokens(Inputs):
    """Random token lists of one length, made batch by batch from their index."""

    def __init__(self, n: int, length: int, batch_size: int) -> None:
        self.n, self.length, self.batch_size = n, length, batch_size

    @property
    def group_keys(self) -> Sequence[bytes]:
        """One key for each list."""
        return self._keys

    @cached_property
    def _keys(self) -> list[bytes]:
        return [bytes_key(f"{self.length}|{i}".encode()) for i in range(self.n)]

    @property
    def grouped(self) -> bool:
        """There are no groups."""
        return False

    def batches(self, start: int, stop: int) -> Iterator[InputBatch]:
        """Yield the batches of a unit."""
        for first in range(start, stop, self.batch_size):
            yield self._batch(first, min(first + self.batch_size, stop))

    def _batch(self, first: int, end: int) -> InputBatch:
        order = torch.arange(first, end)
        kwargs = token_batch(end - first, self.length, seed=first)
        keys = self.group_keys[first:end]
        return InputBatch(
            args=(),
            kwargs=kwargs,
            ids=[f"text {i}" for i in range(first, end)],
            keys=keys,
            order=order,
            occurrence=torch.zeros_like(order),
            group_keys=keys,
            label=torch.full_like(order, -1),
            mask=kwargs["attention_mask"].bool(),
        )

    def identity(self) -> dict[str, Any]:
        """Return what names the data."""
        return {"random tokens": [self.n, self.length], "batch size": self.batch_size}


def encoder(module: nn.Module) -> Model:
    """Return a transformer as what a scan takes."""
    return Model(module, config=module.config, name="random", task="encoder")


def forward_of(module: nn.Module, *args: Any, **kwargs: Any) -> Callable[[], Any]:
    """Return a plain forward without gradients."""

    def run() -> Any:
        with torch.no_grad():
            return module(*args, **kwargs)

    return run


@contextmanager
def bare_hooks(module: nn.Module, sites: Sequence[str]) -> Iterator[list[Tensor]]:
    """Keep the mean over tokens of each site by a hook that does nothing else."""
    kept: list[Tensor] = []
    hooks = [
        module.get_submodule(site).register_forward_hook(lambda m, a, out: kept.append(out.mean(1)))
        for site in sites
    ]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()
