"""A language model of pixel values as an image coder, against coders without a model."""

import io
import lzma
import zlib
from collections import defaultdict
from typing import Any, final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from sonde.compress import SequenceCoder
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

LEVELS, SIDE, TRAIN, TEST, STEPS, BATCH, WIDTH = 17, 8, 1_400, 300, 220, 24, 32


@final
class NextPixelStudy(Study):
    """Two small transformers on digits, with one token per value or per decimal figure."""

    name = "next-pixel"
    title = "does a language model of pixel values code pictures in fewer bytes?"
    paper = "chen2024nextpixel"
    fidelity = "small models of pixels trained from nothing; no language model, no task prompt"
    data = "digits: 17 grey levels, 64 in a picture; 1,400 to learn from, 300 to code"
    claims = (
        Claim("files", "It takes fewer bytes than PNG, WebP, zlib and xz.",
              "share of the best coder's bytes that is saved"),
        Claim("context", "It takes fewer bits than counts of the two neighbours.",
              "share of the bits that is saved"),
        Claim("values", "A token for each value takes fewer bits than one for each figure.",
              "share of the bits that is saved, at equal steps",
              arms=("values", "figures")),
        Claim("exact", "The stream is at most 1 % longer than the sum of what it tells.",
              "0.01 less the excess, without the header of an empty stream"),
        Claim("pays here", "The model's own bytes are saved, too.",
              "bytes saved on 300 pictures over bytes of the model, less 1",
              arms=("model", "coders without a model")),
    )  # fmt: skip
    null = Claim("back", "From the stream alone the model gives back every pixel.",
                 "share of the pixels of twenty pictures that are others")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train both models, and encode the same test images with all coders."""
        x = (16 * shuffled_digits(seed)[0]).long()
        train, fresh = x[:TRAIN], x[TRAIN : TRAIN + (20 if tiny else TEST)]
        steps = 10 if tiny else STEPS
        tick("values")
        values = _trained(train, LEVELS, seed, steps)
        tick("figures")
        two = _trained(_figures(train), 10, seed, steps)
        sizes = _plain(fresh)
        coder = _coder(values, LEVELS, 64)
        ours, header = (len(coder.encode(part)) for part in (fresh.flatten(), fresh.flatten()[:0]))
        n_pixels = fresh.numel()
        counted = _counted(train, fresh)
        ideal = _ideal(values, fresh)
        own = sum(p.numel() * 4 for p in values.parameters())
        best = min(sizes.values())
        note_for("model", bytes=own)
        note_for("coders without a model", bytes=0)
        figures = len(_coder(two, 10, 128).encode(_figures(fresh).flatten()))
        return {
            "files": 1 - ours / best,
            "context": 1 - 8 * ours / counted,
            "values": 1 - ours / figures,
            "exact": 0.01 - (8 * (ours - header) / ideal - 1),
            "pays here": (best - ours) / own - 1,
            "back": share_lost(coder, fresh[:20], fresh[:20]),
            "bits a pixel | model of values": 8 * ours / n_pixels,
            "bits a pixel | model of figures": 8 * figures / n_pixels,
            "bits a pixel | two neighbours": counted / n_pixels,
            **{f"bits a pixel | {name}": 8 * size / n_pixels for name, size in sizes.items()},
        }


def share_lost(coder: SequenceCoder, x: Tensor, coded: Tensor) -> float:
    """Return the share of pixels that are others in what a stream of coded pictures gives back."""
    back = torch.as_tensor(coder.decode(coder.encode(coded.flatten())))
    return float((back.flatten() != x.flatten()).double().mean())


def _figures(x: Tensor) -> Tensor:
    """Return the two decimal figures of each value in turn."""
    return torch.stack([x // 10, x % 10], -1).flatten(1)


def _trained(ids: Tensor, n_tokens: int, seed: int, steps: int) -> Any:
    """Return a causal transformer of images, whose last token is the start token."""
    config = LlamaConfig(
        vocab_size=n_tokens + 1, hidden_size=WIDTH, intermediate_size=2 * WIDTH,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=ids.shape[1] + 1, bos_token_id=n_tokens, eos_token_id=n_tokens,
    )  # fmt: skip
    net: Any = drawn(lambda: LlamaForCausalLM(config), seed)
    fed = torch.cat([torch.full_like(ids[:, :1], n_tokens), ids], 1)

    def loss(rows: Tensor) -> Tensor:
        return net(fed[rows], labels=fed[rows]).loss

    net.train()
    minimise(loss, net.parameters(), len(ids), steps=steps, seed=seed, batch=BATCH)
    return net.eval()


def _coder(net: Any, n_tokens: int, window: int) -> SequenceCoder:
    return SequenceCoder(net, window=window, rows=512, n_tokens=n_tokens)


@torch.no_grad()
def _ideal(net: Any, x: Tensor) -> float:
    """Return the bits by the model's own loss, from one forward pass per image."""
    fed = torch.cat([torch.full_like(x[:, :1], LEVELS), x], 1)
    log_p = net(fed).logits[:, :-1, :LEVELS].double().log_softmax(-1)
    return -float(log_p.gather(2, x[..., None]).sum()) / np.log(2)


def _plain(x: Tensor) -> dict[str, int]:
    """Return the bytes of all images side by side, by coders without a model."""
    strip = x.reshape(-1, SIDE, SIDE).movedim(0, 1).reshape(SIDE, -1).numpy().astype(np.uint8)
    found: dict[str, int] = {}
    for form in ("PNG", "WebP"):
        out = io.BytesIO()
        picture = Image.fromarray(strip, "L")
        picture.save(out, form, lossless=True, **({"optimize": True} if form == "PNG" else {}))
        found[form] = len(out.getvalue())
    raw = x.numpy().astype(np.uint8).tobytes()
    found["zlib"] = len(zlib.compress(raw, 9))
    return found | {"xz": len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))}


def _counted(train: Tensor, fresh: Tensor) -> float:
    """Return the bits by adaptive counts of each value given its left and upper neighbours."""
    counts: defaultdict[tuple[int, int], np.ndarray] = defaultdict(lambda: np.full(LEVELS, 0.1))
    bits = 0.0
    for pictures, told in ((train, False), (fresh, True)):
        for picture in pictures.reshape(-1, SIDE, SIDE).numpy():
            wide = np.pad(picture, ((1, 0), (1, 0)))
            for i in range(SIDE):
                for j in range(SIDE):
                    mine = counts[int(wide[i, j + 1]), int(wide[i + 1, j])]
                    if told:
                        bits -= float(np.log2(mine[picture[i, j]] / mine.sum()))
                    mine[picture[i, j]] += 1
    return bits
