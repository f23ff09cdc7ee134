"""Test whether adjacent layers' caches share directions and can share one basis."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from sonde.compress import CrossLayerCache
from sonde.core import CachePacking, PackedTokens
from sonde.measure import cka
from sonde_studies._cached import PROMPT, SmallerCaches, pieces
from sonde_studies.arms import note, note_for
from sonde_studies.study import Claim, Figures, Study, Tick

SHARES, GROUPS, TEXTS, ROWS = (0.2, 0.3, 0.4), (1, 2, 3), 8, 512
MIDDLE = 0.3


@final
class CrossLayerStudy(Study):
    """Caches of 1, 2 and 3 adjacent layers as low-rank matrices of equal size.

    Figures of a grid are nats of divergence behind a prompt of 192 bytes.
    """

    name = "cross-layer"
    title = "does one basis serve the caches of several layers?"
    paper = "chang2025xkv"
    fidelity = "the paper's singular value decomposition of the prompt; a model of seven layers"
    data = "eight pieces of the standard library in each seed, the shipped byte model"
    place = "byte-model"
    claims = (
        Claim(
            "two",
            "At 30 % of the bytes two layers side by side lose less than each alone.",
            "divergence of single layers less that of pairs, over that of single layers",
            arms=("2 layers, 30%", "1 layers, 30%"),
        ),
        Claim(
            "three",
            "Three layers lose less than pairs.",
            "divergence of pairs less that of triples, over that of pairs",
            arms=("3 layers, 30%", "2 layers, 30%"),
        ),
        Claim(
            "turned back",
            "Keys before their rotation lose less than keys behind it.",
            "divergence behind less that before, over that behind, pairs at 30 %",
            arms=("2 layers, 30%", "rotated keys"),
        ),
        Claim(
            "alignment",
            "Values of adjacent layers are more alike than those of layers three apart.",
            "difference of debiased CKA",
            arms=("adjacent layers", "layers three apart"),
        ),
    )
    null = Claim(
        "shuffled",
        "Values of two layers whose tokens are shuffled are not alike.",
        "debiased CKA",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Pack the caches of the same prompts in every way."""
        caches = SmallerCaches(pieces(2 if tiny else TEXTS, seed))
        found: dict[str, float] = {}
        for share in SHARES:
            for layers in GROUPS:
                tick(f"{layers} layers, {share:.0%}")
                form = CrossLayerCache(layers=layers, keep=share, chunk=PROMPT, recent=0)
                found[f"{layers} layers | {share:g}"], size = caches.lost(form)
                note(bytes=size)
        tick("rotated keys")
        pairs = CrossLayerCache(layers=2, keep=MIDDLE, chunk=PROMPT, recent=0)
        behind, size = caches.lost(Rotated(pairs))
        note(bytes=size)
        for name in ("adjacent layers", "layers three apart"):
            note_for(name, rows=ROWS)
        one, two, three = (found[f"{n} layers | {MIDDLE:g}"] for n in GROUPS)
        near, far, shuffled = _alignment(caches, seed)
        return {
            "two": (one - two) / one,
            "three": (two - three) / two,
            "turned back": (behind - two) / behind,
            "alignment": near - far,
            "shuffled": shuffled,
            "rotated keys, 2 layers | 0.3": behind,
            "adjacent, CKA": near,
            "three apart, CKA": far,
            **found,
        }


@final
@dataclass(frozen=True)
class Rotated(CachePacking):
    """Packs keys after rotary embedding.

    Parameters
    ----------
    inner : CrossLayerCache
    """

    inner: CrossLayerCache
    before_rotation: ClassVar[bool] = False

    @property
    def layers(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Layers per group of the inner packing."""
        return self.inner.layers

    @property
    def chunk(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Chunk size of the inner packing."""
        return self.inner.chunk

    @property
    def recent(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of newest tokens that the inner packing keeps."""
        return self.inner.recent

    @property
    def setting(self) -> str:
        """Setting of the inner packing."""
        return self.inner.setting

    def pack(self, keys: Tensor, values: Tensor, real: Tensor) -> PackedTokens:
        """Return the tokens as packed by the inner packing."""
        return self.inner.pack(keys, values, real)


def _alignment(caches: SmallerCaches, seed: int) -> tuple[float, float, float]:
    """Return the similarity of values: neighbouring layers, distant layers, shuffled tokens."""
    from transformers import DynamicCache

    plain = DynamicCache(config=caches.model.config)
    with torch.no_grad():
        caches.model.module(caches.texts, **{caches.name: plain})
    draw = torch.Generator().manual_seed(seed)
    every = [x.values.transpose(1, 2).flatten(2).flatten(0, 1) for x in plain.layers]  # pyright: ignore
    rows = torch.randperm(len(every[0]), generator=draw)[:ROWS]
    sides = [x[rows] for x in every]
    n = len(sides)
    near = [float(cka(sides[i], sides[i + 1]).value) for i in range(n - 1)]
    far = [float(cka(sides[i], sides[i + 3]).value) for i in range(n - 3)]
    mixed = sides[1][torch.randperm(len(rows), generator=draw)]
    shuffled = float(cka(sides[0], mixed).value)
    return sum(near) / len(near), sum(far) / len(far), shuffled
