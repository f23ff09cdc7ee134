"""Nets of many kinds, small enough to be trained in a second or two each."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification

Make = Callable[[], nn.Module]


def mlp(
    widths: Sequence[int],
    activation: Make = nn.ReLU,
    *,
    norm: Callable[[int], nn.Module] | None = None,
    init: Callable[[Tensor], Any] | None = None,
    wrap: Callable[[nn.Linear], nn.Module] | None = None,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Return linear layers of these widths with what stands between them."""
    parts: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        layer = nn.Linear(a, b)
        if init is not None:
            init(layer.weight)
        parts.append(layer if wrap is None else wrap(layer))
        if i < len(widths) - 2:
            parts += [norm(b)] if norm else []
            parts += [activation()]
            parts += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*parts)


class Then(nn.Module):
    """A function between modules, or around one."""

    def __init__(self, function: Callable[..., Tensor], *parts: nn.Module) -> None:
        super().__init__()
        self.parts, self.function = nn.ModuleList(parts), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)


def skip(*parts: nn.Module) -> Then:
    """Return what is added to its input."""
    return Then(lambda x, f: x + f(x), nn.Sequential(*parts))


def dense_block(dim: int, growth: int) -> Then:
    """Return what is joined to its input."""
    part = nn.Sequential(nn.Linear(dim, growth), nn.ReLU())
    return Then(lambda x, f: torch.cat([x, f(x)], 1), part)


def highway(dim: int) -> Then:
    """Return a gate between a layer and its input (Srivastava et al. 2015)."""
    gate = nn.Linear(dim, dim)
    nn.init.constant_(gate.bias, -1.0)

    def run(x: Tensor, gate: nn.Module, layer: nn.Module) -> Tensor:
        share = gate(x).sigmoid()
        return share * layer(x).relu() + (1 - share) * x

    return Then(run, gate, nn.Linear(dim, dim))


def swiglu(dim: int, wide: int) -> Then:
    """Return a gated layer with a skip."""
    return Then(
        lambda x, n, a, b, c: x + c(functional.silu(a(n(x))) * b(n(x))),
        nn.LayerNorm(dim), nn.Linear(dim, wide), nn.Linear(dim, wide), nn.Linear(wide, dim),
    )  # fmt: skip


def maxout(a: int, b: int, k: int = 3) -> Then:
    """Return the largest of k layers."""
    return Then(lambda x, f: f(x).unflatten(1, (b, k)).amax(2), nn.Linear(a, b * k))


def conv(a: int, b: int, act: Make = nn.ReLU, norm: Any = nn.BatchNorm2d, **kw: Any) -> nn.Module:
    """Return a 3 x 3 convolution, a norm and an activation."""
    return nn.Sequential(nn.Conv2d(a, b, 3, padding=kw.pop("padding", 1), **kw), norm(b), act())


def pooled(*parts: nn.Module, width: int, classes: int = 10) -> nn.Sequential:
    """Return modules over images, their mean over places, and a head."""
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def separable(a: int, b: int) -> nn.Sequential:
    """Return a convolution of each channel, and one across them."""
    return nn.Sequential(
        nn.Conv2d(a, a, 3, padding=1, groups=a), nn.BatchNorm2d(a),
        nn.Conv2d(a, b, 1), nn.BatchNorm2d(b), nn.ReLU(),
    )  # fmt: skip


def squeeze_excite(dim: int) -> Then:
    """Return channels scaled by what their means say (Hu et al. 2018)."""
    gate = nn.Sequential(nn.Linear(dim, dim // 4), nn.ReLU(), nn.Linear(dim // 4, dim))
    return Then(lambda x, g: x * g(x.mean((2, 3))).sigmoid()[..., None, None], gate)


def inception(a: int, b: int) -> Then:
    """Return convolutions of three sizes side by side."""
    sizes = [nn.Conv2d(a, b, k, padding=k // 2) for k in (1, 3, 5)]
    return Then(lambda x, *f: torch.cat([g(x) for g in f], 1).relu(), *sizes)


def next_block(dim: int) -> Then:
    """Return a depthwise convolution, a norm and two layers (Liu et al. 2022)."""
    return skip(
        nn.Conv2d(dim, dim, 5, padding=2, groups=dim), nn.GroupNorm(1, dim),
        nn.Conv2d(dim, 3 * dim, 1), nn.GELU(), nn.Conv2d(3 * dim, dim, 1),
    )  # fmt: skip


class UNet(nn.Module):
    """Down, up and a skip between: which pixels of a noisy digit hold ink."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = conv(1, 12), conv(12, 24)
        self.up, self.last = nn.ConvTranspose2d(24, 12, 2, 2), conv(24, 12)
        self.head = nn.Conv2d(12, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.one(x)
        coarse = self.two(functional.max_pool2d(fine, 2))
        return self.head(self.last(torch.cat([fine, self.up(coarse)], 1)))


class VAE(nn.Module):
    """A mean and a width for each of eight numbers, and a decoder; no noise in eval mode."""

    def __init__(self, dim: int = 64, code: int = 8) -> None:
        super().__init__()
        self.encoder = mlp([dim, 64, 2 * code])
        self.decoder = mlp([code, 64, dim])

    def forward(self, x: Tensor) -> Tensor:
        mean, width = self.encoder(x).chunk(2, 1)
        noise = torch.randn_like(mean) * width.exp() if self.training else 0.0
        return self.decoder(mean + noise)


class Mixer(nn.Module):
    """Layers across patches and across units in turn (Tolstikhin et al. 2021)."""

    def __init__(self, dim: int = 32, depth: int = 3) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, dim, 2, 2)
        self.tokens = nn.ModuleList([mlp([16, 32, 16], nn.GELU) for _ in range(depth)])
        self.units = nn.ModuleList([mlp([dim, 64, dim], nn.GELU) for _ in range(depth)])
        self.norms = nn.ModuleList([nn.LayerNorm(dim) for _ in range(2 * depth)])
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x).flatten(2).transpose(1, 2)
        for i, (tokens, units) in enumerate(zip(self.tokens, self.units, strict=True)):
            h = h + tokens(self.norms[2 * i](h).transpose(1, 2)).transpose(1, 2)
            h = h + units(self.norms[2 * i + 1](h))
        return self.head(h.mean(1))


class Recurrent(nn.Module):
    """A digit read line by line."""

    def __init__(self, kind: Callable[..., nn.Module], width: int = 32, **options: Any) -> None:
        super().__init__()
        self.rnn = kind(8, width, batch_first=True, **options)
        self.head = nn.Linear(width * (1 + bool(options.get("bidirectional"))), 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Tagger(nn.Module):
    """An embedding, an LSTM in both directions and a class for each token."""

    def __init__(self, words: int = 40, width: int = 24, tags: int = 5) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, 16)
        self.rnn = nn.LSTM(16, width, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, tags)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.rnn(self.embed(input_ids))[0])


class TCN(nn.Module):
    """Causal convolutions of growing reach over the lines of a digit (Bai et al. 2018)."""

    def __init__(self, dim: int = 24) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Conv1d(8 if i == 0 else dim, dim, 3, dilation=2**i) for i in range(3)]
        )
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = x.transpose(1, 2)
        for i, layer in enumerate(self.layers):
            h = layer(functional.pad(h, (2 * 2**i, 0))).relu()
        return self.head(h[:, :, -1])


class Encoder(nn.Module):
    """Embedded tokens, places, blocks of attention; the mean over tokens, or each one of them."""

    def __init__(self, words: int, out: int, *, causal: bool = False, mean: bool = True) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(words, 32), nn.Parameter(torch.randn(64, 32) * 0.3)
        block = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, out)
        self.causal, self.mean = causal, mean

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        n = input_ids.shape[1]
        mask = torch.ones(n, n, dtype=torch.bool).triu(1) if self.causal else None
        pad = None if attention_mask is None else attention_mask == 0
        h = self.blocks(self.embed(input_ids) + self.place[:n], mask, pad)
        if self.mean:
            seen = torch.ones(input_ids.shape) if attention_mask is None else attention_mask
            h = (h * seen[..., None]).sum(1) / seen.sum(1, keepdim=True)
        return self.head(self.norm(h))


class TextCNN(nn.Module):
    """Convolutions of three widths over words and their maxima (Kim 2014)."""

    def __init__(self, words: int = 40) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, 16)
        self.convs = nn.ModuleList([nn.Conv1d(16, 16, k, padding=k - 1) for k in (2, 3, 4)])
        self.head = nn.Linear(48, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        h = self.embed(input_ids).transpose(1, 2)
        return self.head(torch.cat([c(h).relu().amax(2) for c in self.convs], 1))


class DeepSets(nn.Module):
    """A layer for each point, their sum or largest, and a net over it (Zaheer et al. 2017)."""

    def __init__(self, pool: Callable[[Tensor], Tensor], out: int = 3) -> None:
        super().__init__()
        self.each, self.rest, self.pool = mlp([2, 32, 32]), mlp([32, 32, out]), pool

    def forward(self, points: Tensor) -> Tensor:
        return self.rest(self.pool(self.each(points)))


class GraphNet(nn.Module):
    """Two rounds of means over neighbours (Kipf and Welling 2017), and the mean over nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(4, 32), nn.Linear(32, 32), nn.Linear(32, 2)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        near = edges + torch.eye(edges.shape[1])
        near = near / near.sum(2, keepdim=True)
        return self.head((near @ self.two((near @ self.one(nodes)).relu())).relu().mean(1))


class Tabular(nn.Module):
    """Numbers and categories: embedded, crossed or wide, into one answer."""

    def __init__(self, kind: str, out: int = 2) -> None:
        super().__init__()
        self.kind = kind
        self.embed = nn.ModuleList([nn.Embedding(12, 6) for _ in range(2)])
        self.deep = mlp([8 + 12, 48, 24, out])
        self.wide = nn.Linear(8, out) if kind == "wide" else None

    def forward(self, numbers: Tensor, first: Tensor, second: Tensor) -> Tensor:
        a, b = self.embed[0](first.long()), self.embed[1](second.long())
        answer = self.deep(torch.cat([numbers, a, b], 1))
        if self.wide is not None:
            answer = answer + self.wide(numbers)
        if self.kind == "factorised":
            answer = answer + (a * b).sum(1, keepdim=True) * torch.tensor([1.0, -1.0])
        return answer


class Siamese(nn.Module):
    """One encoder for two rows; whether they are of one class."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = mlp([64, 64, 24]), nn.Linear(24, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head((self.encoder(left) - self.encoder(right)).abs())


class MultiTask(nn.Module):
    """A trunk and two heads, the digit and where its ink lies."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(mlp([64, 64, 48]), nn.ReLU())
        self.digit, self.place = nn.Linear(48, 10), mlp([48, 16, 1])

    def forward(self, x: Tensor) -> Tensor:
        h = self.trunk(x)
        place = self.place(h)
        return torch.cat([self.digit(h), place], 1) if self.training else self.digit(h)


class Experts(nn.Module):
    """Four layers mixed by a gate (Jacobs et al. 1991)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(64, 4)
        self.experts = nn.ModuleList([mlp([64, 32, 32]) for _ in range(4)])
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        share = self.gate(x).softmax(1)
        answers = torch.stack([e(x) for e in self.experts], 2)
        return self.head((answers * share[:, None]).sum(2).relu())


class Fourier(nn.Module):
    """Sines and cosines of random directions of few numbers (Tancik et al. 2020)."""

    frequencies: Tensor

    def __init__(self, dim: int = 2, n: int = 24) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(dim, n))
        self.net = mlp([2 * n, 32, 1])

    def forward(self, x: Tensor) -> Tensor:
        angle = 2 * math.pi * x @ self.frequencies
        return self.net(torch.cat([angle.sin(), angle.cos()], 1))


class PatchEncoder(nn.Module):
    """A picture cut into patches, blocks of attention and a class token (Dosovitskiy 2021)."""

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, dim, 2, 2)
        self.first = nn.Parameter(torch.randn(1, 1, dim) * 0.1)
        self.place = nn.Parameter(torch.randn(17, dim) * 0.3)
        block = nn.TransformerEncoderLayer(dim, 4, 64, 0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.first.expand(len(h), -1, -1), h], 1) + self.place
        return self.head(self.norm(self.blocks(h)[:, 0]))


def bert() -> nn.Module:
    """Return a BERT of two layers and three classes."""
    config = BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64, initializer_range=0.1,
    )  # fmt: skip
    config.num_labels = 3
    return BertForSequenceClassification(config)


def quantised(net: nn.Module) -> nn.Module:
    """Return a net whose linear layers hold whole numbers and round their inputs."""
    return torch.ao.quantization.quantize_dynamic(net, {nn.Linear}, torch.qint8)


def conv_autoencoder() -> nn.Module:
    """Return two convolutions down and two up."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1), nn.LeakyReLU(), nn.Conv2d(16, 12, 3, 2, 1), nn.LeakyReLU(),
        nn.ConvTranspose2d(12, 16, 2, 2), nn.LeakyReLU(), nn.ConvTranspose2d(16, 1, 2, 2),
    )  # fmt: skip
