"""Faults that practitioners meet, each with its healthy twin, and what a scan says of both."""

import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import sonde
from findings import _nets as nets
from narrow import expect
from scan import _plants as states
from scan import _plants_answers as answers
from scan import _unnamed_nets as unnamed
from scan._plants import Plant, Scan, digits, net, read_texts, relabelled, rows, scan
from scan._zoo import SEEDS, PatchNet, digit_net, quiet
from sonde.report import Report

BY_CODE = {p.code: p for p in (*states.PLANTS, *answers.PLANTS)}


@dataclass(frozen=True)
class Fault:
    """A fault, the neighbour without it, and the codes that name it."""

    name: str
    codes: tuple[str, ...]
    fault: Scan
    twin: Scan


@dataclass(frozen=True)
class Outcome:
    """What a scan said of a fault and of its twin."""

    name: str
    found: str
    words: str
    false: tuple[str, ...]
    seconds: float

    def __str__(self) -> str:
        twin = "clear" if not self.false else " ".join(self.false)
        return f"{self.name:34s}{self.found or '-':9s}{twin:12s}{self.seconds:6.1f}  {self.words}"


HEADER = f"{'fault':34s}{'found':9s}{'twin':12s}{'wall':>6s}  words"


def outcome(fault: Fault) -> Outcome:
    """Scan a fault and its twin; found is the first finding of a code that names the fault.

    A twin is clear where it raises none of these codes and no error.
    """
    began = time.perf_counter()
    raised = [f for f in fault.fault().findings if f["code"] in fault.codes]
    raised.sort(key=lambda f: (f["because_of"] is not None, fault.codes.index(f["code"])))
    false = tuple(
        f["code"]
        for f in fault.twin().findings
        if f["code"] in fault.codes or f["level"] == "error"
    )
    first = raised[0] if raised else {"code": "", "sentence": ""}
    return Outcome(fault.name, first["code"], first["sentence"], false, time.perf_counter() - began)


def summary(found: Sequence[Outcome]) -> str:
    """Return the last line of the table: rates."""
    hits, clear = sum(bool(o.found) for o in found), sum(not o.false for o in found)
    seconds = sum(o.seconds for o in found)
    n = len(found)
    return (
        f"{hits} of {n} faults found ({hits / n:.0%}), {clear} of {n} twins clear; {seconds:.0f} s"
    )


def _of_plant(name: str, code: str, *more: str) -> Fault:
    plant: Plant = BY_CODE[code]
    return Fault(name, (code, *more), plant.fault, plant.twin)


@cache
def _patch_net() -> PatchNet:
    return expect(PatchNet, digit_net("patch-net", SEEDS[0], True)[0])


def _patches(change: Callable[[PatchNet], object]) -> Report:
    module = deepcopy(_patch_net()).requires_grad_(False)
    change(module)
    return scan(module.eval(), *digits())


def _without_skips(module: PatchNet) -> None:
    for block in module.blocks:
        expect(nets.Block, block).skip = False


def _block_anew(module: PatchNet) -> None:
    torch.manual_seed(0)
    for block in module.blocks[2:4]:
        for part in block.modules():
            if isinstance(part, nn.Linear | nn.LayerNorm):
                part.reset_parameters()


def _blocks_exchanged(module: PatchNet) -> None:
    order = [5, 1, 2, 3, 4, 0]
    module.blocks = nn.ModuleList([module.blocks[i] for i in order])


def _unchanged(_: PatchNet) -> None:
    return None


def _inputs(change: Callable[[Tensor], Tensor]) -> Report:
    x, label = digits()
    return scan(net(), change(x), label)


def _transposed(x: Tensor) -> Tensor:
    return x.reshape(-1, 8, 8).transpose(1, 2).reshape(-1, 64)


def _exchanged(label: Tensor, _: np.random.Generator) -> Tensor:
    found = label.clone()
    found[label == 3], found[label == 8] = 8, 3
    return found


def _head_rows(order: Sequence[int]) -> Report:
    module = deepcopy(net()).requires_grad_(False)
    head = expect(nn.Linear, module[6])
    head.weight.copy_(head.weight[list(order)])
    head.bias.copy_(head.bias[list(order)])
    return scan(module, *digits())


def _blank(share: float) -> Report:
    x, label = digits()
    x = x.clone()
    x[: int(share * len(x))] = 0.0
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))
    return scan(net(), x[order], label[order])


class _HalfNorm(nn.Module):
    """A layer norm written by hand in half precision, where 1e-8 is 0."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt()


def _half_norm(eps: float) -> Report:
    x = nets.noise(200, 8).half()
    x[17] = 1.0
    torch.manual_seed(0)
    return scan(nn.Sequential(nn.Identity(), _HalfNorm(eps), nn.Linear(8, 8)).half().eval(), x)


def _tinted(turned: bool) -> Report:
    """Scan a colour net over reddish digits against others, those with channels reversed."""
    x, _ = digits()
    tint = torch.tensor([1.0, 0.6, 0.3]).reshape(1, 3, 1, 1)
    pictures = x.reshape(-1, 1, 8, 8) * tint
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()).eval()
    other = pictures[500:].flip(1) if turned else pictures[500:]
    return sonde.scan(module, rows(pictures[:500]), rows(other), settings=quiet())


def _fewer_classes(whole: bool) -> Report:
    x, label = digits()
    other = x[500:] if whole else x[500:][label[500:] < 4]
    return sonde.scan(net(), rows(x[:500]), rows(other), settings=quiet())


@cache
@torch.enable_grad()
def _writer() -> GPT2LMHeadModel:
    """Return a small model with learned positions, trained on texts whose words hang on places."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    model = GPT2LMHeadModel(config)  # pyright: ignore[reportArgumentType]
    x = torch.tensor([item["input_ids"] for item in _placed_texts(512)])
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(150):
        batch = x[torch.arange(32) + 32 * (step % 16)]
        optimiser.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimiser.step()
    return model.eval()


def _placed_texts(n: int, seed: int = 0) -> list[dict[str, list[int]]]:
    draw = np.random.default_rng(seed)
    place = 3 + (7 * np.arange(24)) % 50
    texts = np.where(draw.random((n, 24)) < 0.3, draw.integers(3, 61, (n, 24)), place)
    return [{"input_ids": text.tolist()} for text in texts]


def _written(change: Callable[[GPT2LMHeadModel], object]) -> Report:
    module = deepcopy(_writer()).requires_grad_(False)
    change(module)
    return read_texts(module, _placed_texts(80, 1), task="causal")


def _places_moved(module: GPT2LMHeadModel) -> None:
    table = module.transformer.wpe.weight
    table.copy_(table.roll(1, 0))


def _embedding_anew(module: GPT2LMHeadModel) -> None:
    torch.manual_seed(1)
    embedding = nn.Embedding(61, 32)
    nn.init.normal_(embedding.weight, std=float(module.transformer.wte.weight.std()))
    module.transformer.wte = embedding


def _targets(change: Callable[[Tensor], Tensor]) -> Report:
    module, x, y = answers.regression()
    return sonde.scan(module, {"x": x, "label": change(y).tolist()}, settings=quiet())


def _fours_called_nines(label: Tensor, draw: np.random.Generator) -> Tensor:
    return torch.where((label == 4) & torch.from_numpy(draw.random(len(label)) < 0.35), 9, label)


def faults() -> Iterator[Fault]:
    """Yield every fault of the table."""
    yield _of_plant("labels off by one", "SND038")
    yield Fault(
        "two names exchanged", ("SND038",), lambda: relabelled(_exchanged),
        lambda: relabelled(states.true),
    )  # fmt: skip
    yield _of_plant("head not loaded", "SND003", "SND039")
    yield Fault(
        "positions off by one", ("SND028",), lambda: _written(_places_moved),
        lambda: _written(lambda _: None),
    )  # fmt: skip
    yield _of_plant("no normalisation", "SND015", "SND012")
    yield _of_plant("batch norm never moved", "SND012")
    yield Fault(
        "residual missing", ("SND024", "SND027", "SND037", "SND039"),
        lambda: _patches(_without_skips), lambda: _patches(_unchanged),
    )  # fmt: skip
    yield _of_plant("left padding without positions", "SND008")
    yield _of_plant("wrong tokenizer", "SND029")
    yield _of_plant("causal mask missing", "SND019")
    yield Fault("BGR for RGB in OTHER", ("SND051",), lambda: _tinted(True), lambda: _tinted(False))
    yield _of_plant("rows leaked", "SND053")
    yield Fault(
        "label shift in OTHER", ("SND051", "SND052"), lambda: _fewer_classes(False),
        lambda: _fewer_classes(True),
    )  # fmt: skip
    yield _of_plant("wrong labels", "SND034")
    yield Fault("blank inputs", ("SND041", "SND045"), lambda: _blank(0.05), lambda: _blank(0.0))
    yield _of_plant("dead ReLU", "SND011")
    yield Fault("eps underflow", ("SND001",), lambda: _half_norm(1e-8), lambda: _half_norm(1e-3))
    yield _of_plant("near overflow in half precision", "SND002")
    yield _of_plant("dropout always on", "SND004")
    yield _of_plant("batch norm left in training", "SND005")
    yield _of_plant("mask not handed on", "SND007")
    yield Fault(
        "blocks random", ("SND003",), lambda: _patches(_block_anew), lambda: _patches(_unchanged)
    )
    yield from _own()
    yield from _of_labels()


def _own() -> Iterator[Fault]:
    """Yield faults beyond the usual list."""
    yield Fault(
        "blocks in the wrong order", ("SND037", "SND039"), lambda: _patches(_blocks_exchanged),
        lambda: _patches(_unchanged),
    )  # fmt: skip
    yield Fault(
        "inverted pictures", ("SND015",), lambda: _inputs(lambda x: 1 - x),
        lambda: _inputs(lambda x: x),
    )  # fmt: skip
    yield Fault(
        "transposed pictures", ("SND015",), lambda: _inputs(_transposed),
        lambda: _inputs(lambda x: x),
    )  # fmt: skip
    yield Fault(
        "columns moved by one", ("SND015",), lambda: _inputs(lambda x: x.roll(1, 1)),
        lambda: _inputs(lambda x: x),
    )  # fmt: skip
    yield Fault(
        "head rows reversed", ("SND038",), lambda: _head_rows(range(9, -1, -1)),
        lambda: _head_rows(range(10)),
    )  # fmt: skip
    yield Fault(
        "embedding not loaded", ("SND029", "SND037", "SND003"), lambda: _written(_embedding_anew),
        lambda: _written(lambda _: None),
    )  # fmt: skip
    yield Fault(
        "brighter along the file", ("SND047",), lambda: answers.in_order(lambda x, _: x.sum(1)),
        lambda: answers.in_order(lambda x, _: torch.zeros(len(x))),
    )  # fmt: skip
    for name, code in (
        ("rare classes wrong", "SND062"),
        ("a sensor of a regression", "SND063"),
        ("texts of one source exchanged", "SND064"),
        ("rows sorted by label", "SND047"),
        ("file names that tell the label", "SND048"),
        ("blank at any brightness", "SND045"),
        ("a class never answered", "SND046"),
        ("head fallen back to one class", "SND039"),
        ("token numbers off by one", "SND028"),
        ("labels shuffled", "SND036"),
        ("two classes mixed", "SND033"),
        ("exact copies", "SND041"),
        ("near copies", "SND042"),
        ("texts cut", "SND043"),
        ("length tells the class", "SND035"),
        ("rows in order of sessions", "SND044"),
        ("infinite weight", "SND001"),
        ("branch never called", "SND010"),
        ("layer of rank one", "SND022"),
        ("norms explode", "SND021"),
        ("units copied", "SND014"),
        ("noise images in OTHER", "SND052"),
    ):
        yield _of_plant(name, code)


def _of_labels() -> Iterator[Fault]:
    """Yield faults of labels and targets."""
    yield Fault(
        "answers in logarithms", ("SND037",), lambda: _targets(lambda y: (3 * y).exp()),
        lambda: _targets(lambda y: y),
    )  # fmt: skip
    yield Fault(
        "a third of one class mislabelled", ("SND034",), lambda: relabelled(_fours_called_nines),
        lambda: relabelled(states.true),
    )  # fmt: skip
    yield Fault(
        "a tenth of the pictures in BGR", ("SND015",), lambda: _coloured(0.1), lambda: _coloured(0)
    )
    yield Fault("pictures at gamma 3", ("SND015",), lambda: _bent(3, 1), lambda: _bent(3, 0))
    yield Fault(
        "a third of the pictures at gamma 1/3", ("SND015",), lambda: _bent(1 / 3, 0.33),
        lambda: _bent(1 / 3, 0),
    )  # fmt: skip
    yield Fault(
        "a tenth of the pictures at gamma 3", ("SND015",), lambda: _bent(3, 0.12),
        lambda: _bent(3, 0),
    )  # fmt: skip
    yield Fault(
        "leaky activations for ReLU", ("SND068",), lambda: _perceptron(0.5), lambda: _perceptron(0)
    )


def _coloured(share: float) -> Report:
    x = unnamed.colours().x
    swapped = torch.rand(len(x), generator=torch.Generator().manual_seed(11)) < share
    return unnamed.colours().scan(x=torch.where(swapped[:, None, None, None], x.flip(1), x))


def _bent(power: float, share: float) -> Report:
    """Scan colour pictures, a share of them at another gamma."""
    x = unnamed.colours().x.clamp(0, 1)
    mine = torch.rand(len(x), generator=torch.Generator().manual_seed(12)) < share
    return unnamed.colours().scan(x=torch.where(mine[:, None, None, None], x**power, x))


def _perceptron(slope: float) -> Report:
    def change(module: nn.Module) -> None:
        for name, part in list(module.named_modules()):
            if isinstance(part, nn.ReLU):
                module.set_submodule(name, nn.LeakyReLU(slope))

    return unnamed.perceptron().scan(change if slope else None)
