"""Whether an image classifier hides a backdoor, for which class, and how to take it out.

A backdoor is a small *trigger* that turns any image into one class. Needs a hundred clean images
with labels. Triggers that cover the image, or bend it, are not found.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.core.inputs import InputBatch, Inputs, Model
from sonde.edit._patches import Pixels, image_of, patched, smallest_patches, with_images
from sonde.engine.progress import Bar
from sonde.weights import RewritePlan, as_model
from sonde.weights.tuning import Trainee, check_positive, mean_loss, plan_of, tuned

LIKELY = 1.2
N_CLEAN = 60
"""Number of clean nets tried; all stay below LIKELY (``python -m tools.backdoor_table``)."""
LEAST_CLASSES = 4
EVERY = 10**9


@dataclass(frozen=True, eq=False)
class BackdoorFinding:
    """What was found out about a backdoor.

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
        """Whether a backdoor is likely: a ratio of at least 1.2, which 0 of 60 clean nets reached.

        So at most 6.0 % of clean nets like these, small ones of digits, are accused (95 %).
        """
        return self.ratio >= LIKELY

    def verdict(self, names: Mapping[int, str] | None = None) -> str:
        """Return in plain words what was found."""
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
    """Look for a class that needs a much smaller patch than any other class. Changes nothing.

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
    steps, seed : int
        Of Adam.
    progress : bool, default=True

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
    was_training = module.training
    module.eval()
    try:
        pixels = Pixels(module, clean, n_images)
        if pixels.n_classes < LEAST_CLASSES:
            raise InputError(
                f"find_backdoor: expected at least {LEAST_CLASSES} classes to compare, got "
                f"{pixels.n_classes}."
            )
        with Bar("look for a trigger", pixels.n_classes, shown=progress) as bar:
            found = smallest_patches(pixels, wanted=wanted, steps=steps, seed=seed, bar=bar)
        target = int(found.size.argmin())
        first, second = found.size.sort().values[:2].tolist()
        mask, pattern = found.mask[target], found.pattern[target]
        success = pixels.success(mask, pattern, target)
        accuracy = pixels.accuracy()
    finally:
        module.train(was_training)
    return BackdoorFinding(target, second / first, found.size, success, mask, pattern, accuracy)


class Triggered(Inputs):
    """Clean images with a recovered trigger on them, and their true labels.

    Parameters
    ----------
    clean : Inputs
    finding : BackdoorFinding
    """

    def __init__(self, clean: Inputs, finding: BackdoorFinding) -> None:
        self._clean, self._finding = clean, finding

    @property
    def group_keys(self) -> Sequence[bytes]:
        """Group keys of the clean images."""
        return self._clean.group_keys

    @property
    def grouped(self) -> bool:
        """Whether the clean images are grouped."""
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
    """Return the plan that teaches a model to ignore a recovered trigger. Trained.

    Clean images keep their labels, with and without the trigger on them.

    Parameters
    ----------
    model : Model or nn.Module
        Unchanged.
    clean : Inputs
        Images with their labels.
    finding : BackdoorFinding
    rate, epochs, seed
        Of Adam.
    progress : bool, default=True

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
