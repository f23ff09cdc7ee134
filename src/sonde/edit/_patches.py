"""Universal patches: an image model's input, and the smallest patch that yields each class."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.core.inputs import InputBatch, Inputs
from sonde.engine.progress import Bar
from sonde.engine.steps import Descent
from sonde.tap import place_of

AREA = 64.0
"""What the whole image weighs in the loss, whatever its resolution."""
RATE, BETAS = 0.15, (0.5, 0.9)
WEIGHT, GROWS, SHRINKS, LEAST, MOST = 0.01, 1.05, 0.93, 1e-4, 1.0
"""Of the size in the loss: at first, its factors where a patch works and where not, its bounds."""
AT_ONCE = 1024
"""Most images under patches in one forward."""


@dataclass(frozen=True, eq=False)
class Patches:
    """The smallest patch that was found for each class.

    Parameters
    ----------
    mask : Float[Tensor, "class height width"]
        How much of each pixel it covers, in [0, 1].
    pattern : Float[Tensor, "class channel height width"]
        Pixels as the model takes them.
    size : Float[Tensor, "class"]
        Share of the image that it covers; 1 where no patch was found.
    """

    mask: Float[Tensor, "class height width"]
    pattern: Float[Tensor, "class channel height width"]
    size: Float[Tensor, "class"]


def image_of(batch: InputBatch) -> Tensor:
    """Return the images of a batch.

    Raises
    ------
    InputError
        If the batch holds no images.
    """
    for value in (*batch.args, *batch.kwargs.values()):
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim == 4:
            return value
    raise InputError(
        "find_backdoor: expected images (example, channel, height, width), got none. Backdoors are "
        "looked for in image classifiers."
    )


def with_images(batch: InputBatch, images: Tensor) -> InputBatch:
    """Return a batch with other images."""
    old = image_of(batch)
    return replace(
        batch,
        args=tuple(images if x is old else x for x in batch.args),
        kwargs={name: images if x is old else x for name, x in batch.kwargs.items()},
    )


def patched(
    images: Float[Tensor, "*n channel height width"],
    mask: Float[Tensor, "height width"],
    pattern: Float[Tensor, "channel height width"],
) -> Float[Tensor, "*n channel height width"]:
    """Return images with a patch on them."""
    covered = mask.to(images)
    return images * (1 - covered) + pattern.to(images) * covered


class Pixels:
    """Runs a classifier on images.

    Parameters
    ----------
    module : nn.Module
    clean : Inputs
        Images with their labels.
    most : int
        The most images that are read.
    """

    def __init__(self, module: nn.Module, clean: Inputs, most: int) -> None:
        batches = list(clean.batches(0, min(most, len(clean))))
        if not batches or not any(bool((b.label >= 0).any()) for b in batches):
            raise InputError(
                "find_backdoor: expected clean images with labels, got none. Name the column of "
                "the labels, or pass data that have one."
            )
        args, kwargs = place_of(module, batches[0]).call(batches[0].args, batches[0].kwargs)
        self.module, self._fed = module, replace(batches[0], args=args, kwargs=kwargs)
        self.images = torch.cat([image_of(b) for b in batches])
        self.label = torch.cat([b.label for b in batches]).cpu()
        with torch.no_grad():
            self.n_classes = self.logits(self.images[:1]).shape[1]

    def logits(self, images: Float[Tensor, "row channel height width"]) -> Tensor:
        """Return the logits of some images."""
        batch = with_images(self._fed, images.to(image_of(self._fed)))
        output: Any = self.module(*batch.args, **batch.kwargs)
        found = output if isinstance(output, Tensor) else output.logits
        return found.float().cpu()

    @torch.no_grad()
    def success(self, mask: Tensor, pattern: Tensor, target: int) -> float:
        """Return the share of images of other classes that a patch turns into the target."""
        other = self.label != target
        said = self.logits(patched(self.images, mask, pattern)).argmax(1)
        return float((said == target)[other].float().mean())

    @torch.no_grad()
    def accuracy(self) -> float:
        """Return the share of right answers."""
        return float((self.logits(self.images).argmax(1) == self.label).float().mean())


def smallest_patches(pixels: Pixels, *, wanted: float, steps: int, seed: int, bar: Bar) -> Patches:
    """Return for each class the smallest patch that turns images of other classes into it. Trained.

    Minimises over a mask and a pattern ``CE(f((1 - m) x + m p), class) + w |m|`` by Adam on all
    images at once; ``w`` grows while the share of turned images is at least ``wanted``, and else
    shrinks. The smallest mask of all steps that reached ``wanted`` is kept, not the last.
    """
    at_once = max(1, AT_ONCE // len(pixels.images))
    groups = [
        range(n, min(n + at_once, pixels.n_classes)) for n in range(0, pixels.n_classes, at_once)
    ]
    parts: list[Patches] = []
    for group in groups:
        parts.append(_search(pixels, group, wanted, steps, seed))
        bar.advance(len(group))
    return Patches(
        *(torch.cat([getattr(p, f) for p in parts]) for f in ("mask", "pattern", "size"))
    )


def _search(
    pixels: Pixels, classes: Sequence[int], wanted: float, steps: int, seed: int
) -> Patches:
    """Return the patches of some classes, each searched on its own."""
    x, target = pixels.images.float().cpu(), torch.tensor(list(classes))
    n, shape = len(target), x.shape[1:]
    draw = torch.Generator().manual_seed(seed)
    raw_mask = (0.1 * torch.randn(n, *shape[1:], generator=draw)).requires_grad_()
    raw_pattern = torch.zeros(n, *shape).requires_grad_()
    adam = partial(torch.optim.Adam, betas=BETAS)
    descent = Descent("find_backdoor", [raw_mask, raw_pattern], RATE, adam)
    low, high = float(x.min()), float(x.max())
    other = (pixels.label[None] != target[:, None]).float()
    truth, weight = target.repeat_interleave(len(x)), torch.full((n,), WEIGHT)
    best = torch.ones(n)
    kept = torch.ones(n, *shape[1:]), torch.zeros(n, *shape)

    def total(_: int) -> Tensor:
        nonlocal best, weight
        mask = raw_mask.sigmoid()
        pattern = low + (high - low) * raw_pattern.sigmoid()
        every = x[None] * (1 - mask[:, None, None]) + (mask[:, None] * pattern)[:, None]
        logits = pixels.logits(every.flatten(0, 1))
        loss = nn.functional.cross_entropy(logits, truth, reduction="none").view(n, -1)
        size = mask.mean((1, 2))
        found = ((loss * other).sum(1) / other.sum(1).clamp(min=1) + weight * AREA * size).sum()
        with torch.no_grad():
            hits = (logits.argmax(1) == truth).view(n, -1) * other
            works = hits.sum(1) / other.sum(1).clamp(min=1) >= wanted
            better = works & (size < best)
            best = torch.where(better, size, best)
            for held, new in zip(kept, (mask, pattern), strict=True):
                held[better] = new.detach()[better]
            weight = (weight * torch.where(works, GROWS, SHRINKS)).clamp(LEAST, MOST)
        return found

    descent.run(total, range(steps))
    return Patches(*kept, best)
