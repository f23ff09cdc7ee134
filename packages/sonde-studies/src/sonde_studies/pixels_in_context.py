"""A picture of the same kind before each window of a pixel coder, against one of any kind.

Digits in four rotations: the example shows which digit, turned in which way, is coming.
"""

from typing import Any, final

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from sonde.compress import SequenceCoder
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.arms import note_again
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

LEVELS, PIXELS, TURNS, TRAIN, PAIRS, EACH = 17, 64, 4, 1_400, 8_000, 20
STEPS, TINY, BATCH, WIDTH = 600, 4, 24, 32


@final
class PixelsInContextStudy(Study):
    """Two equal transformers that read a picture before each picture that they code."""

    name = "pixels-in-context"
    title = "does an example before each picture save bits of a pixel coder?"
    paper = "chen2024nextpixel"
    fidelity = "small models of pixels trained from nothing; one example, no task prompt"
    data = "digits of 17 grey levels in four rotations; 1,400 to learn from, ten kinds to code"
    seconds = 60.0
    claims = (
        Claim("kind", "With a picture of the same kind before it a picture takes fewer bits than "
              "with a picture of any kind, by models that each learned from such pairs.",
              "share of the bits that is saved", arms=("same kind", "any kind")),
        Claim("trusts", "With the picture of another kind before it the same model takes more bits "
              "than with one of its kind.",
              "share of the bits that is lost", arms=("same kind, other example", "same kind")),
    )  # fmt: skip
    null = Claim("back", "From the stream and the example alone the model gives back every pixel.",
                 "share of the pixels of a kind that are others")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train both models, and encode new pictures kind by kind."""
        x, label = shuffled_digits(seed)
        x = turned((16 * x).long())
        draw = torch.Generator().manual_seed(seed)
        bits, lost = dict[str, float](), 0.0
        same, free = pairs_of(x[:, :TRAIN], label[:TRAIN], PAIRS, draw)
        new, examples = kinds_of(x, label, 2 if tiny else EACH, draw)
        for arm, pairs in (("same kind", same), ("any kind", free)):
            tick(arm)
            net = _trained(pairs, seed, TINY if tiny else STEPS)
            others = [*examples[1:], examples[0]]
            bits[arm] = _bits(net, new, examples if arm == "same kind" else others)
            if arm == "same kind":
                lost = _share_lost(net, new[0], examples[0])
                bits[f"{arm}, other example"] = _bits(net, new, others)
                note_again(f"{arm}, other example", arm)
        return {
            "kind": 1 - bits["same kind"] / bits["any kind"],
            "trusts": bits["same kind, other example"] / bits["same kind"] - 1,
            "back": lost,
            **{f"bits a pixel | {arm}": v for arm, v in bits.items()},
        }


def turned(x: Int[Tensor, "picture pixel"]) -> Int[Tensor, "turn picture pixel"]:
    """Return the pictures in each of four rotations."""
    square = x.reshape(-1, 8, 8)
    return torch.stack([square.rot90(k, (1, 2)).flatten(1) for k in range(TURNS)])


def pairs_of(
    x: Int[Tensor, "turn picture pixel"],
    label: Int[Tensor, "picture"],
    n: int,
    draw: torch.Generator,
) -> tuple[Int[Tensor, "pair pixel2"], Int[Tensor, "pair pixel2"]]:
    """Return pictures after an example of the same digit and rotation, and after any picture.

    Parameters
    ----------
    x : Int[Tensor, "turn picture pixel"]
    label : Int[Tensor, "picture"]
    n : int
    draw : torch.Generator
    """
    picture, anyone = torch.randint(len(label), (2, n), generator=draw)
    turn, any_turn = torch.randint(TURNS, (2, n), generator=draw)
    example = torch.empty_like(picture)
    for digit in label.unique():
        fit, at = (label == digit).nonzero()[:, 0], label[picture] == digit
        example[at] = fit[torch.randint(len(fit), (int(at.sum()),), generator=draw)]
    target = x[turn, picture]
    return (
        torch.cat([x[turn, example], target], 1),
        torch.cat([x[any_turn, anyone], target], 1),
    )


def kinds_of(
    x: Int[Tensor, "turn picture pixel"],
    label: Int[Tensor, "picture"],
    each: int,
    draw: torch.Generator,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return new pictures of ten kinds, and an example of each kind from the pictures to learn."""
    turn = torch.randint(TURNS, (10,), generator=draw).tolist()
    new, examples = list[Tensor](), list[Tensor]()
    for digit, way in enumerate(turn):
        at = (label == digit).nonzero()[:, 0]
        new.append(x[way, at[at >= TRAIN][:each]])
        examples.append(x[way, at[0]])
    return new, examples


def _trained(pairs: Tensor, seed: int, steps: int) -> Any:
    """Return a causal transformer of two pictures, whose last token is the start token."""
    config = LlamaConfig(
        vocab_size=LEVELS + 1, hidden_size=WIDTH, intermediate_size=2 * WIDTH,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=2 * PIXELS + 1, bos_token_id=LEVELS, eos_token_id=LEVELS,
    )  # fmt: skip
    net: Any = drawn(lambda: LlamaForCausalLM(config), seed)
    fed = torch.cat([torch.full_like(pairs[:, :1], LEVELS), pairs], 1)

    def loss(rows: Tensor) -> Tensor:
        return net(fed[rows], labels=fed[rows]).loss

    net.train()
    minimise(loss, net.parameters(), len(pairs), steps=steps, seed=seed, batch=BATCH)
    return net.eval()


def _coder(net: Any, example: Tensor) -> SequenceCoder:
    return SequenceCoder(
        net, window=PIXELS, rows=512, n_tokens=LEVELS, before=tuple(example.tolist())
    )


def _bits(net: Any, new: list[Tensor], examples: list[Tensor]) -> float:
    """Return the bits of a pixel over all kinds, without the headers of empty streams."""
    size = 0
    for pictures, example in zip(new, examples, strict=True):
        coder = _coder(net, example)
        size += len(coder.encode(pictures.flatten())) - len(coder.encode(pictures.flatten()[:0]))
    return 8 * size / sum(pictures.numel() for pictures in new)


def _share_lost(net: Any, pictures: Tensor, example: Tensor) -> float:
    """Return the share of pixels that are others in what the stream gives back."""
    coder = _coder(net, example)
    back = torch.as_tensor(coder.decode(coder.encode(pictures.flatten())))
    return float((back != pictures.flatten()).double().mean())
