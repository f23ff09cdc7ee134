"""Test whether an image classifier has a backdoor, for which class, and how to remove it.

A backdoor is a small *trigger* that turns any image into one class. Needs a hundred clean images
with labels. Triggers that cover the image, or bend it, are not found.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.core.inputs import InputBatch, Inputs, Model
from sonde.engine.progress import Bar
from sonde.engine.steps import Descent
from sonde.tap import place_of
from sonde.tap.hooks.holding import in_eval
from sonde.weights import RewritePlan, as_model
from sonde.weights.tuning import Trainee, check_positive, mean_loss, plan_of, tuned

AREA = 64.0
"""What the whole image weighs in the loss, whatever its resolution."""
RATE, BETAS = 0.15, (0.5, 0.9)
WEIGHT, GROWS, SHRINKS, LEAST, MOST = 0.01, 1.05, 0.93, 1e-4, 1.0
"""Of the size in the loss: at first, its factors where a patch works and where not, its bounds."""
AT_ONCE = 1024
"""Most images under patches in one forward."""


LIKELY = 1.2
N_CLEAN = 60
"""Number of clean nets tried; all stay below LIKELY (``python -m tools.figures backdoors``)."""
LEAST_CLASSES = 4
EVERY = 10**9


@dataclass(frozen=True, eq=False)
class BackdoorFinding:
    """Result of the search for a backdoor.

    Parameters
    ----------
    target : int
        The class with the smallest patch.
    ratio : float
        Size of the next smallest patch over the smallest, at least 1; 1 where none was found.
    size : Float[Tensor, "class"]
        Share of the image under the smallest patch for each class; 1 where none was found.
    success : float
        Share of the clean images of other classes that the recovered trigger turns into the target.
    mask, pattern : Float[Tensor, "height width"], Float[Tensor, "channel height width"]
        The recovered trigger, pixels as the model takes them.
    accuracy : float
        On the clean images.
    """

    target: int
    ratio: float
    size: Float[Tensor, "class"]
    success: float
    mask: Float[Tensor, "height width"]
    pattern: Float[Tensor, "channel height width"]
    accuracy: float

    @property
    def likely(self) -> bool:
        """True if a backdoor is likely: a ratio of at least 1.2, which 0 of 60 clean nets reached.

        So at most 6.0 % of clean nets like these, small ones of digits, are accused (95 %).
        """
        return self.ratio >= LIKELY

    def verdict(self, names: Mapping[int, str] | None = None) -> str:
        """Return the result of the search in words."""
        name = repr(str(self.target) if names is None else names.get(self.target, str(self.target)))
        smallest = f"{float(self.size.min()):.1%} of the image"
        figure = (
            f"a ratio of {self.ratio:.2f}; likely from {LIKELY:g}, which none of {N_CLEAN} small "
            "clean nets reached"
        )
        if self.likely:
            return (
                f"A backdoor is likely, for class {name}: a patch on {smallest} turns "
                f"{self.success:.0%} of the other images into it, and any other class needs a "
                f"larger one ({figure})."
            )
        return (
            f"No backdoor was found: no class has a patch much smaller than the next (the "
            f"smallest, on {smallest}, is of class {name}; {figure})."
        )

    def drawing(self, most: int = 16) -> list[str]:
        """Return the trigger as lines: ``#`` bright, ``o`` dark, ``.`` not covered.

        Parameters
        ----------
        most : int, default=16
            Lines and columns at most; larger images are averaged.
        """
        height, width = (min(n, most) for n in self.mask.shape)
        small = nn.functional.adaptive_avg_pool2d(self.mask[None], (height, width))[0]
        shade = nn.functional.adaptive_avg_pool2d(self.pattern.mean(0)[None], (height, width))[0]
        middle = float(self.pattern.min() + self.pattern.max()) / 2
        signs = [
            [("#" if s > middle else "o") if m > 0.5 else "." for m, s in zip(ms, ss, strict=True)]
            for ms, ss in zip(small.tolist(), shade.tolist(), strict=True)
        ]
        return ["".join(line) for line in signs]


def find_backdoor(
    model: Model | nn.Module,
    clean: Inputs,
    *,
    n_images: int = 80,
    wanted: float = 0.98,
    steps: int = 220,
    seed: int = 0,
    progress: bool = True,
) -> BackdoorFinding:
    """Search for a class that needs a much smaller patch than other classes. Changes nothing.

    A natural patch shows what images of its class show: it works on many images, and on nearly all
    images only if it is large. A trigger works on all images, at its own size. So the smallest
    patch that turns nearly all clean images is sought for each class, and the two smallest are
    compared.

    Parameters
    ----------
    model : Model or nn.Module
        An image classifier of at least four classes.
    clean : Inputs
        Images with their labels that nobody tampered with.
    n_images : int, default=80
        How many of them are read.
    wanted : float, default=0.98
        Share of the images of other classes that a patch must turn.
    steps : int
        Number of steps of Adam for each class.
    seed : int
        Seed of the initial patches and of the order of images.
    progress : bool, default=True
        Whether a progress bar is shown on stderr.

    Raises
    ------
    InputError
        If there are no labelled images, or fewer than four classes.

    References
    ----------
    wang2019neuralcleanse
    """
    check_positive("find_backdoor", n_images=n_images, steps=steps)
    if not 0 < wanted <= 1:
        raise InputError(f"find_backdoor: expected wanted in (0, 1], got {wanted}.")
    module = as_model(model).module
    with in_eval(module):
        pixels = Pixels(module, clean, n_images)
        if pixels.n_classes < LEAST_CLASSES:
            raise InputError(
                f"find_backdoor: expected at least {LEAST_CLASSES} classes to compare, got "
                f"{pixels.n_classes}."
            )
        with Bar("look for a trigger", pixels.n_classes, shown=progress) as bar:
            patches = smallest_patches(pixels, wanted=wanted, steps=steps, seed=seed, bar=bar)
        target = int(patches.size.argmin())
        first, second = patches.size.sort().values[:2].tolist()
        mask, pattern = patches.mask[target], patches.pattern[target]
        success = pixels.success(mask, pattern, target)
        accuracy = pixels.accuracy()
    return BackdoorFinding(target, second / first, patches.size, success, mask, pattern, accuracy)


class Triggered(Inputs):
    """Clean images with a recovered trigger, and their true labels.

    Parameters
    ----------
    clean : Inputs
        Clean images.
    finding : BackdoorFinding
        Recovered trigger.
    """

    def __init__(self, clean: Inputs, finding: BackdoorFinding) -> None:
        self._clean, self._finding = clean, finding

    @property
    def group_keys(self) -> Sequence[bytes]:
        """Group keys of the clean images."""
        return self._clean.group_keys

    @property
    def grouped(self) -> bool:
        """True if the clean images are grouped."""
        return self._clean.grouped

    def batches(self, start: int, stop: int) -> Iterator[InputBatch]:
        """Yield the batches with the trigger on every image."""
        for batch in self._clean.batches(start, stop):
            mask, pattern = self._finding.mask, self._finding.pattern
            yield with_images(batch, patched(image_of(batch), mask, pattern))

    def identity(self) -> dict[str, Any]:
        """Return the identity of the clean images, with the target of the trigger."""
        return {**self._clean.identity(), "trigger": self._finding.target}


def remove_backdoor(
    model: Model | nn.Module,
    clean: Inputs,
    finding: BackdoorFinding,
    *,
    rate: float = 1e-3,
    epochs: int = 20,
    seed: int = 0,
    progress: bool = True,
) -> RewritePlan:
    """Return the plan that trains a model to ignore a recovered trigger. Trained.

    Clean images keep their labels, with and without the trigger on them.

    Parameters
    ----------
    model : Model or nn.Module
        Unchanged.
    clean : Inputs
        Images with their labels.
    finding : BackdoorFinding
        Recovered trigger.
    rate : float, default=0.001
        Learning rate of Adam.
    epochs : int, default=20
        Number of passes over the examples.
    seed : int, default=0
        Seed of the order of examples.
    progress : bool, default=True
        Whether a progress bar is shown on stderr.

    References
    ----------
    wang2019neuralcleanse
    """
    check_positive("remove_backdoor", rate=rate, epochs=epochs)

    def objective(trainee: Trainee, batch: InputBatch) -> Tensor:
        images = patched(image_of(batch), finding.mask, finding.pattern)
        return mean_loss(trainee, batch) + mean_loss(trainee, with_images(batch, images))

    new = tuned(
        model,
        clean,
        objective,
        rate=rate,
        epochs=epochs,
        seed=seed,
        label="unlearn the trigger",
        progress=progress,
    )
    figures: dict[str, float] = {}
    for word, module in (("before", as_model(model).module), ("after", new)):
        pixels = Pixels(module, clean, EVERY)
        args: tuple[Any, ...] = (finding.mask, finding.pattern, finding.target)
        figures |= {f"success_{word}": pixels.success(*args), f"accuracy_{word}": pixels.accuracy()}
    return plan_of(model, new, f"remove_backdoor(target={finding.target})", **figures)


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
        "find_backdoor: expected images (example, channel, height, width), got none. The search "
        "for backdoors needs an image classifier."
    )


def with_images(batch: InputBatch, images: Tensor) -> InputBatch:
    """Return a batch with its images replaced."""
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
        if not batches:
            raise InputError("find_backdoor: expected at least one clean image, got none.")
        if not any(bool((b.label >= 0).any()) for b in batches):
            raise InputError(
                "find_backdoor: expected clean images with labels, got no labels. Name the "
                "column of the labels, or pass data that have labels."
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
        raw = output if isinstance(output, Tensor) else output.logits
        return raw.float().cpu()

    @torch.no_grad()
    def success(self, mask: Tensor, pattern: Tensor, target: int) -> float:
        """Return the fraction of images of other classes that a patch turns into the target."""
        other = self.label != target
        predicted = self.logits(patched(self.images, mask, pattern)).argmax(1)
        return float((predicted == target)[other].float().mean())

    @torch.no_grad()
    def accuracy(self) -> float:
        """Return the accuracy."""
        return float((self.logits(self.images).argmax(1) == self.label).float().mean())


def smallest_patches(pixels: Pixels, *, wanted: float, steps: int, seed: int, bar: Bar) -> Patches:
    """Return the smallest patch for each class that turns other images into it. Trained.

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
    """Return the patches of some classes, each optimised separately."""
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
        cost = ((loss * other).sum(1) / other.sum(1).clamp(min=1) + weight * AREA * size).sum()
        with torch.no_grad():
            hits = (logits.argmax(1) == truth).view(n, -1) * other
            works = hits.sum(1) / other.sum(1).clamp(min=1) >= wanted
            better = works & (size < best)
            best = torch.where(better, size, best)
            for held, new in zip(kept, (mask, pattern), strict=True):
                held[better] = new.detach()[better]
            weight = (weight * torch.where(works, GROWS, SHRINKS)).clamp(LEAST, MOST)
        return cost

    descent.run(total, range(steps))
    return Patches(*kept, best)
