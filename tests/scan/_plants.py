"""One fault and its healthy twin for every code, each a whole scan of a live model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

import sonde
from findings import _counting as counter
from findings import _evidence as arrays
from findings import _nets as nets
from findings import _texts as padding
from findings import test_snd001 as snd001
from findings import test_snd004 as snd004
from findings import test_snd005 as snd005
from findings import test_snd006 as snd006
from findings import test_snd010 as snd010
from findings import test_snd011 as snd011
from findings import test_snd013 as snd013
from findings import test_snd016 as snd016
from findings import test_snd017 as snd017
from findings import test_snd018 as snd018
from findings import test_snd024 as snd024
from findings import test_snd025 as snd025
from findings import test_snd027 as snd027
from findings import test_snd032 as snd032
from models import VOCABULARY
from scan._zoo import Items, quiet
from sonde.core.inputs import Model
from sonde.report import Report

Scan = Callable[[], Report]


@dataclass(frozen=True)
class Plant:
    """A fault, the level at which it must be raised, and the neighbour that must stay clear.

    Parameters
    ----------
    code, level : str
    fault, twin : callables
        Whole scans.
    folds : mapping of code to code
        Consequences that must be raised and folded under their cause.
    voids : tuple of str
        Codes that must be withheld because of this one.
    """

    code: str
    level: str
    fault: Scan
    twin: Scan
    folds: Mapping[str, str] = field(default_factory=dict)
    voids: tuple[str, ...] = ()


def rows(x: Tensor, label: Any = None) -> Items:
    """Return the rows of a tensor as items."""
    if label is None:
        return [{"x": row} for row in x]
    return [{"x": row, "label": int(k)} for row, k in zip(x, label, strict=True)]


def scan(module: Any, x: Tensor, label: Any = None, **options: Any) -> Report:
    """Scan a net over the rows of a tensor."""
    return sonde.scan(module, rows(x, label), settings=quiet(), **options)


def texts(lengths: list[int], label: Any = None, seed: int = 0, vocabulary: int = 61) -> Items:
    """Return random token lists as items."""
    draw = np.random.default_rng(seed)
    items: Items = [{"input_ids": draw.integers(3, vocabulary, n).tolist()} for n in lengths]
    for item, k in zip(items, [] if label is None else label, strict=False):
        item["label"] = int(k)
    return items


@cache
def tokenizer(side: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of words ``0`` to ``60`` that pads with word 0."""
    words = Tokenizer(WordLevel({str(i): i for i in range(VOCABULARY)}, unk_token="2"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", padding_side=side)


def read_texts(module: nn.Module, items: Items, *, side: str = "right", **options: Any) -> Report:
    """Scan a language model over token lists, padded by a processor."""
    processor = tokenizer(side)
    task = options.pop("task", "encoder")
    config = getattr(module, "config", None)
    model = Model(module, processor, config, type(module).__name__, task)
    return sonde.scan(model, items, settings=quiet(), **options)


def changed(module: nn.Module, change: Callable[[Any], object]) -> nn.Module:
    """Return a module after a change to its parameters."""
    with torch.no_grad():
        change(module)
    return module.eval()


class BothBranches(snd010.Branched):
    """Calls the spare branch too."""

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.spare(x)


def infinite(module: Any) -> None:
    """Make one weight of the third layer infinite."""
    module[2].weight[4, 2] = torch.inf


def silence(module: Any) -> None:
    """Take the inputs of 60 of 100 units away, and leave them below zero."""
    module[0].weight[:60] = 0.0
    module[0].bias[:60] = -1.0


def copied_units(module: Any) -> None:
    """Copy half of the units of the first layer."""
    module[0].weight[16:] = module[0].weight[:16]
    module[0].bias[16:] = module[0].bias[:16]


def rank_one(module: Any) -> None:
    """Leave the best part of rank one of the third layer's weight."""
    u, s, v = torch.linalg.svd(module[2].weight)
    module[2].weight.copy_(s[0] * torch.outer(u[:, 0], v[0]))


def two_layers(width: int, activation: nn.Module) -> nn.Sequential:
    """Return two layers with activations."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, width), activation, nn.Linear(width, width), nn.Tanh()).eval()


def batch_norm(in_training: bool) -> nn.Module:
    """Return a net whose batch norm follows the batch, or not."""
    module = snd005.net()
    module[1].train(in_training)
    return module


def quantised(rounding: nn.Module) -> nn.Module:
    """Return a layer, an activation and a rounding of it."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), rounding).eval()


def patches(module: nn.Module, n: int = 64, tokens: int = 6) -> Report:
    """Scan a stack of blocks over white tokens."""
    return scan(module.eval(), nets.noise(n * tokens, 16).reshape(n, tokens, 16))


def counting(amounts: tuple[float, ...]) -> Report:
    """Scan a model that counts, over texts that count."""
    inputs: Any = counter.counting(counter.Counter(amounts)).inputs
    items = [{"input_ids": item} for item in inputs.items]
    return read_texts(counter.Counter(amounts).eval(), items, task="causal")


@cache
def deep(gain: float | None, **options: Any) -> Report:
    """Scan twenty plain layers."""
    return scan(nets.deep_relu(20, 64, gain), nets.noise(300, 64), **options)


DIGITS = 1_000


def digits() -> tuple[Tensor, Tensor]:
    """Return digits in random order, with their labels."""
    x, label = arrays.digits()
    order = arrays.shuffled(len(x), 7)[:DIGITS]
    return x[order], label[order]


def net() -> nn.Sequential:
    """Return a net trained on digits."""
    return arrays.net(trained=True)


def last_turned(project: bool) -> Report:
    """Scan the trained net with a last layer that loses directions between classes, or none."""
    x, label = digits()
    body = net()[:6]
    with torch.no_grad():
        last = body(x)
        means = torch.stack([last[label == k].mean(0) for k in range(10)])
        gone = torch.linalg.svd(means - means.mean(0), full_matrices=False)[2][2:9]
        layer = nn.Linear(64, 64, bias=False)
        turn = torch.linalg.qr(nets.noise(64, 64, seed=1))[0]
        layer.weight.copy_(torch.eye(64) - gone.T @ gone if project else turn)
    return scan(nn.Sequential(*body.children(), layer).eval(), x, label)


def collapsed(noise: float) -> Report:
    """Scan one layer over class means with noise."""
    torch.manual_seed(0)
    x, label = snd032.points(noise)
    return scan(nn.Sequential(nn.Linear(64, 64)).eval(), x[:DIGITS].float(), label[:DIGITS])


@cache
def relabelled(change: Callable[[Tensor, np.random.Generator], Tensor]) -> Report:
    """Scan the trained net over digits with other labels."""
    x, label = digits()
    return scan(net(), x, change(label.clone(), np.random.default_rng(0)))


def true(label: Tensor, _: np.random.Generator) -> Tensor:
    """Return the labels as they are."""
    return label


def mixed(label: Tensor, draw: np.random.Generator) -> Tensor:
    """Return labels of which 3 and 8 are drawn at random."""
    both = (label == 3) | (label == 8)
    coin = torch.from_numpy(draw.integers(0, 2, int(both.sum())))
    label[both] = torch.where(coin == 0, 3, 8)
    return label


def flipped(label: Tensor, draw: np.random.Generator) -> Tensor:
    """Return labels of which one in twenty is wrong."""
    at = torch.from_numpy(draw.choice(len(label), len(label) // 20, replace=False))
    label[at] = (label[at] + torch.from_numpy(draw.integers(1, 10, len(at)))) % 10
    return label


def paired(label: Tensor, _: np.random.Generator) -> Tensor:
    """Return labels that join two classes each under the number of another one."""
    return 2 * label % 10


def permuted(label: Tensor, draw: np.random.Generator) -> Tensor:
    """Return shuffled labels."""
    return label[torch.from_numpy(draw.permutation(len(label)))]


def shipped(low: float, high: float) -> Report:
    """Scan the shipped digits model, trained on pixels in -1..1, over digits of another range."""
    x, label = digits()
    pictures = low + (high - low) * x.reshape(-1, 1, 8, 8)
    return scan(sonde.load("sonde:digits").module, pictures, label)


def long_class(shuffle: bool) -> Report:
    """Scan a text model over five classes, one of which has texts of double length."""
    draw = np.random.default_rng(0)
    label = draw.integers(0, 5, 400)
    lengths = draw.lognormal(2.0, 0.3, 400) * np.where(label == 3, 2, 1)
    lengths = lengths[draw.permutation(400)] if shuffle else lengths
    items = texts([max(3, int(n)) for n in lengths], label)
    for item in items:
        item["input_ids"][:2] = [3 + item["label"]] * 2
    return read_texts(padding.Forgetful(True).eval(), items)


def copies(count: int, noise: float) -> Report:
    """Scan the trained net over digits of which some occur twice, the copies with noise."""
    x, label = digits()
    extra = x[:count] + noise * nets.noise(count, 64)
    order = arrays.shuffled(DIGITS + count, 1)
    return scan(net(), torch.cat([x, extra])[order], torch.cat([label, label[:count]])[order])


def cut(longest: int) -> Report:
    """Scan a text model whose context is 16 tokens."""
    items = texts([longest] * 64)
    return read_texts(padding.Forgetful(True).eval(), items, max_length=16, long="truncate")


def stepped(in_order: bool) -> Report:
    """Scan the trained net over digits whose brightness steps every 40 rows, in order or not."""
    x, label = digits()
    x = x + 0.3 * (torch.arange(DIGITS) // 40 % 2)[:, None]
    order = torch.arange(DIGITS) if in_order else arrays.shuffled(DIGITS, 5)
    return scan(net(), x[order], label[order])


@cache
def against(change: Callable[[Tensor, Tensor], Tensor], n: int = 700) -> Report:
    """Scan the trained net over some digits against others, those changed."""
    x, _ = arrays.digits()
    order = arrays.shuffled(len(x), 11)
    data, other = x[order[:n]], x[order[n : 2 * n]].clone()
    return sonde.scan(net(), rows(data), rows(change(data, other)), settings=quiet())


def same(_: Tensor, other: Tensor) -> Tensor:
    """Return OTHER as it is."""
    return other


def shifted(_: Tensor, other: Tensor) -> Tensor:
    """Return images moved by one pixel."""
    return other.reshape(-1, 8, 8).roll(1, dims=2).reshape(-1, 64)


def tenth_noise(_: Tensor, other: Tensor) -> Tensor:
    """Return images of which one in ten is uniform noise."""
    count = len(other) // 10
    other[:count] = torch.rand(count, 64, generator=torch.Generator().manual_seed(0))
    return other


def leaked(data: Tensor, other: Tensor) -> Tensor:
    """Return images of which one in a hundred stands in DATA too."""
    count = len(other) // 100
    other[:count] = data[:count]
    return other


def half_range(value: float) -> Report:
    """Scan a float16 net with one large entry."""
    x = nets.noise(100, 8).half()
    x[5, 3] = value
    module = changed(
        nn.Sequential(nn.Linear(8, 8, bias=False)), lambda m: m[0].weight.copy_(torch.eye(8))
    )
    return scan(module.half(), x)


def few(n: int) -> Report:
    """Scan a small net over so many rows."""
    return scan(snd011.net(), nets.noise(n, 8))


LENGTHS = padding.LENGTHS
FIRST = snd017.LENGTHS
LAYERS = ("1", "19", "39")

PLANTS = (
    Plant(
        "SND001",
        "error",
        lambda: scan(changed(snd001.net(nn.Linear(8, 8)), infinite), nets.noise(300, 6)),
        lambda: scan(snd001.net(nn.Linear(8, 8)), nets.noise(300, 6)),
    ),
    Plant("SND002", "warning", lambda: half_range(30_000.0), lambda: half_range(300.0)),
    Plant(
        "SND004",
        "error",
        lambda: scan(snd004.Dropping(True).eval(), nets.noise(300, 16)),
        lambda: scan(snd004.Dropping(False).eval(), nets.noise(300, 16)),
        voids=("SND042",),
    ),
    Plant(
        "SND005",
        "error",
        lambda: scan(batch_norm(True), nets.noise(300, 8)),
        lambda: scan(batch_norm(False), nets.noise(300, 8)),
        folds={"SND006": "SND005"},
        voids=("SND042",),
    ),
    Plant(
        "SND006",
        "error",
        lambda: scan(snd006.Company(True).eval(), nets.noise(300, 8)),
        lambda: scan(snd006.Company(False).eval(), nets.noise(300, 8)),
        voids=("SND042",),
    ),
    Plant(
        "SND007",
        "error",
        lambda: read_texts(padding.Forgetful(False).eval(), texts(LENGTHS * 10)),
        lambda: read_texts(padding.Forgetful(True).eval(), texts(LENGTHS * 10)),
        voids=("SND042",),
    ),
    Plant(
        "SND008",
        "error",
        lambda: read_texts(padding.gpt2(), texts(LENGTHS * 10), side="left", task="causal"),
        lambda: read_texts(padding.llama(), texts(LENGTHS * 10), side="left", task="causal"),
        folds={"SND007": "SND008"},
    ),
    Plant("SND009", "warning", lambda: few(20), lambda: few(2_000)),
    Plant(
        "SND010",
        "warning",
        lambda: scan(snd010.Branched(32).eval(), nets.noise(300, 8)),
        lambda: scan(BothBranches(32).eval(), nets.noise(300, 8)),
    ),
    Plant(
        "SND011",
        "warning",
        lambda: scan(changed(snd011.net(), silence), nets.noise(300, 8)),
        lambda: scan(snd011.net(), nets.noise(300, 8)),
    ),
    Plant(
        "SND013",
        "warning",
        lambda: scan(snd013.net(100.0, nn.Tanh()), nets.noise(300, 8)),
        lambda: scan(snd013.net(1.0, nn.Tanh()), nets.noise(300, 8)),
    ),
    Plant(
        "SND014",
        "warning",
        lambda: scan(changed(two_layers(32, nn.ReLU())[:2], copied_units), nets.noise(400, 8)),
        lambda: scan(two_layers(32, nn.ReLU())[:2], nets.noise(400, 8)),
    ),
    Plant(
        "SND016",
        "note",
        lambda: patches(snd016.Spiked(3000.0, False)),
        lambda: patches(snd016.Spiked(0.0, False)),
        folds={"SND021": "SND016"},
    ),
    Plant(
        "SND017",
        "warning",
        lambda: read_texts(
            snd017.Reader(200.0).eval(), texts(FIRST * 4), reducer="mean", sinks="keep"
        ),
        lambda: read_texts(snd017.Reader(0.0).eval(), texts(FIRST * 4), reducer="mean"),
    ),
    Plant(
        "SND018",
        "note",
        lambda: scan(quantised(snd018.FakeQuantised(8)), 2 * nets.noise(600, 8)),
        lambda: scan(quantised(nn.ReLU()).bfloat16(), 2 * nets.noise(600, 8).bfloat16()),
    ),
    Plant(
        "SND021",
        "warning",
        lambda: deep(4.0, sites=LAYERS),
        lambda: deep(2**0.5, sites=LAYERS),
    ),
    Plant(
        "SND022",
        "error",
        lambda: scan(changed(two_layers(30, nn.Tanh()), rank_one), nets.noise(300, 8)),
        lambda: scan(two_layers(30, nn.Tanh()), nets.noise(300, 8)),
        folds={"SND014": "SND022"},
    ),
    Plant(
        "SND023",
        "error",
        lambda: deep(None, sites=LAYERS),
        lambda: deep(2**0.5, sites=LAYERS),
        folds={"SND011": "SND023"},
    ),
    Plant(
        "SND024",
        "warning",
        lambda: scan(nets.Patches(depth=8, skip=False).eval(), snd024.inputs()),
        lambda: scan(nets.Patches(depth=8).eval(), snd024.inputs()),
    ),
    Plant(
        "SND025",
        "warning",
        lambda: patches(snd025.net(0.0)),
        lambda: patches(snd025.net(None)),
    ),
    Plant(
        "SND026",
        "warning",
        lambda: counting((1.5, 1.5, 1.0, -2.0)),
        lambda: counting((1.0, 1.0, 1.0, 1.0)),
    ),
    Plant(
        "SND027",
        "note",
        lambda: scan(snd027.net(12), 2 * nets.noise(300, 8)),
        lambda: scan(snd027.net(None, (24, 40, 64)), 2 * nets.noise(300, 8)),
    ),
    Plant("SND031", "note", lambda: last_turned(True), lambda: last_turned(False)),
    Plant("SND032", "note", lambda: collapsed(0.01), lambda: collapsed(0.7)),
    Plant("SND033", "warning", lambda: relabelled(mixed), lambda: relabelled(true)),
    Plant("SND034", "warning", lambda: relabelled(flipped), lambda: relabelled(true)),
    Plant("SND035", "note", lambda: long_class(False), lambda: long_class(True)),
    Plant(
        "SND036",
        "warning",
        lambda: relabelled(permuted),
        lambda: relabelled(true),
        voids=("SND031", "SND032", "SND033", "SND034"),
    ),
    Plant("SND037", "error", lambda: relabelled(paired), lambda: shipped(-1.0, 1.0)),
    Plant("SND041", "warning", lambda: copies(20, 0.0), lambda: relabelled(true)),
    Plant("SND042", "warning", lambda: copies(20, 0.002), lambda: copies(20, 0.1)),
    Plant("SND043", "warning", lambda: cut(48), lambda: cut(16)),
    Plant("SND044", "note", lambda: stepped(True), lambda: stepped(False)),
    Plant("SND051", "warning", lambda: against(shifted), lambda: against(same)),
    Plant("SND052", "warning", lambda: against(tenth_noise), lambda: against(same)),
    Plant("SND053", "warning", lambda: against(leaked), lambda: against(same)),
)
