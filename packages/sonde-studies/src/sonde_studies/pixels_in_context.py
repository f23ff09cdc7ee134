"""Pictures before each picture that a pretrained language model codes, pixel by pixel.

Digits in ten grey levels, a figure for each pixel. The model has learned from texts alone.
"""

from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from sonde import Model
from sonde.compress import SequenceCoder
from sonde_studies._help_pages import language_model
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick

LEVELS, PIXELS, EXAMPLES, CODED = 10, 64, 3, 5


@final
class PixelsInContextStudy(Study):
    """A language model that codes pictures of one digit after examples, or after none."""

    name = "pixels-in-context"
    title = "do examples in context save bits of a language model that codes pixels?"
    paper = "chen2024nextpixel"
    fidelity = "three examples and a newline after each; no fine-tuning, no colours"
    data = "digits in ten grey levels: five pictures of one digit to code in each seed"
    place = "smollm2"
    seconds = 60.0
    claims = (
        Claim("examples", "After three pictures of the same digit a picture takes fewer bits than "
              "after none.",
              "share of the bits that is saved, with four times the passes of tokens",
              arms=("same digit", "none")),
        Claim("kind", "After pictures of the same digit it takes fewer bits than after pictures "
              "of three others.",
              "share of the bits that is saved", arms=("same digit", "other digits")),
        Claim("counts", "After pictures of the same digit it takes fewer bits than by counts of "
              "the levels at and beside each pixel in these pictures.",
              "share of the bits that is saved, against counts"),
    )  # fmt: skip
    null = Claim("back", "From the stream and the examples alone the model gives back every pixel.",
                 "share of the pixels of a picture that are others")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Code the same pictures after each kind of example."""
        model = language_model("smollm2", tiny)
        x, label = shuffled_digits(seed)
        x = (x * (LEVELS - 0.01)).long()
        n = 1 if tiny else CODED
        digit = seed % 10
        own = x[label == digit]
        others = [x[label == (digit + k) % 10][0] for k in (2, 5, 8)]
        few = EXAMPLES - tiny  # the shipped model has a short context
        coded, near, others = own[EXAMPLES : EXAMPLES + n], own[:few], others[:few]
        arms = {
            "none": [],
            "same digit": [*near],
            "other digits": others,
        }
        bits = dict[str, float]()
        for arm, examples in arms.items():
            tick(arm)
            coder = _coder(model, examples)
            size = len(coder.encode(ids_of(model, coded))) - len(coder.encode(_nothing()))
            bits[arm] = 8 * size / coded.numel()
            note_for(arm, rows=n, passes=n * PIXELS * (1 + len(examples)))
        tick("back")
        counted = counted_bits(near, coded)
        return {
            "examples": 1 - bits["same digit"] / bits["none"],
            "kind": 1 - bits["same digit"] / bits["other digits"],
            "counts": 1 - bits["same digit"] / counted,
            "back": share_lost(model, [*near], coded[:1]),
            **{f"bits a pixel | {arm}": v for arm, v in bits.items()},
            "bits a pixel | counts": counted,
        }


def ids_of(model: Model, x: Int[Tensor, "*pixel"]) -> Int[Tensor, "pixels"]:
    """Return the token id of each pixel, with all pictures joined into one line."""
    return torch.tensor(_tokens(model))[x].flatten()


def _tokens(model: Model) -> list[int]:
    """Return the token ids of the ten figures."""
    found = [model.processor(str(level))["input_ids"][-1:] for level in range(LEVELS)]
    return [int(i) for ids in found for i in ids]


def _nothing() -> Tensor:
    return torch.zeros(0, dtype=torch.long)


def _coder(model: Model, examples: list[Tensor]) -> SequenceCoder:
    line = model.processor("\n")["input_ids"][-1:]
    before = [i for picture in examples for i in (*ids_of(model, picture).tolist(), *line)]
    return SequenceCoder(
        model, window=PIXELS, rows=CODED, before=tuple(before), allowed=tuple(_tokens(model))
    )


def share_lost(model: Model, examples: list[Tensor], pictures: Tensor) -> float:
    """Return the share of pixels that are others in what the stream gives back."""
    coder, ids = _coder(model, examples), ids_of(model, pictures)
    back = torch.as_tensor(coder.decode(coder.encode(ids)))
    return float((back != ids).double().mean())


def _moved(by: int) -> slice:
    return slice(max(0, by), 8 + min(0, by))


def counted_bits(near: Int[Tensor, "example pixel"], x: Int[Tensor, "row pixel"]) -> float:
    """Return the bits a pixel by counts of levels within a pixel's distance in the examples.

    Each pixel of the examples, and each of its eight neighbours with half of the weight, votes for
    its level and for the two beside it, with half of the weight again; every level has a tenth.
    """
    votes = torch.full((8, 8, LEVELS), 0.1, dtype=torch.float64)
    spread = torch.eye(LEVELS, dtype=torch.float64)
    spread = spread + 0.5 * (spread.roll(1, 0).tril() + spread.roll(-1, 0).triu())
    told = spread[near.reshape(-1, 8, 8)].sum(0)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            weight = 1.0 if down == right == 0 else 0.5
            rows = slice(max(0, down), 8 + min(0, down)), slice(max(0, -down), 8 + min(0, -down))
            cols = (
                slice(max(0, right), 8 + min(0, right)),
                slice(max(0, -right), 8 + min(0, -right)),
            )
            votes[rows[0], cols[0]] += weight * told[rows[1], cols[1]]
    p = (votes / votes.sum(-1, keepdim=True)).reshape(64, LEVELS)
    return -float(p.log2().expand(len(x), -1, -1).gather(2, x[..., None]).mean())
