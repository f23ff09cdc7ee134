"""Recipe by which a model reads images: size, mean and deviation, channels and patches."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from torch import nn

from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.data.columns import Layout
from sonde.data.encoder import dtype_of
from sonde.data.images import ImageEncoder
from sonde.data.processors import PillowProcessor, is_image_processor, no_recipe


@dataclass(frozen=True)
class ImageFlags:
    """Options of the user about images."""

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @classmethod
    def of(cls, size: Any, mean: Any, std: Any) -> "ImageFlags":
        """Return the flags with single numbers expanded to pairs or triples."""
        pair = (size,) if isinstance(size, int) else None if size is None else tuple(size)
        pair = pair * 2 if pair is not None and len(pair) == 1 else pair
        if pair is not None and (len(pair) != 2 or min(pair) < 1):
            raise InputError(
                "open_inputs: expected image_size as one or two numbers of at least 1, got "
                f"{size!r}."
            )
        numbers = [None if v is None else _numbers(v) for v in (mean, std)]
        return cls(pair, *numbers)

    @property
    def any(self) -> bool:
        """True if any flag was given."""
        return self != ImageFlags()


def _numbers(value: float | Sequence[float]) -> tuple[float, ...]:
    return (float(value),) if isinstance(value, int | float) else tuple(float(v) for v in value)


def image_encoder(
    model: Model, layout: Layout, base: Path, images: ImageFlags, names: frozenset[str]
) -> ImageEncoder:
    """Return the encoder of images for a model.

    Raises
    ------
    InputError
        If nothing says how images become numbers, or the model reads neither 1 nor 3 channels.
    """
    processor = _image_processor(model, images)
    return ImageEncoder(
        processor,
        layout.inputs[0],
        base,
        _channels(model, processor),
        names,
        patch_of(model.config),
        dtype_of(model.module),
        origin={"processor": _recipe(processor)},
    )


def _channels(model: Model, processor: Any) -> int:
    """Return the number of channels, as configured or of the first convolution."""
    name = model.name or "the model"
    means = len(processor.mean) if isinstance(processor, PillowProcessor) else 3
    channels = getattr(model.config, "num_channels", None) or _first_channels(model.module)
    channels = channels or means
    if channels not in (1, 3):
        raise InputError(
            f"{name} reads {channels} channels; images give 1 (grey) or 3 (RGB). "
            "Pass arrays 'x' instead."
        )
    if isinstance(processor, PillowProcessor) and means not in (1, channels):
        raise InputError(
            f"{name}: expected image_mean and image_std (--image-mean --image-std) with one number "
            f"or one for each of its {channels} channels, got {means}."
        )
    return channels


def _first_channels(module: nn.Module) -> int | None:
    convolution = next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)
    return None if convolution is None else convolution.in_channels


def _image_processor(model: Model, images: ImageFlags) -> Any:
    processor = model.processor if is_image_processor(model.processor) else None
    if processor is None:
        given = {"mean": images.mean, "std": images.std}
        missing = [name for name, value in given.items() if value is None]
        if images.mean is None or images.std is None:
            raise no_recipe(model.name or "the model", missing)
        size = getattr(model.config, "image_size", None)
        own = (size, size) if isinstance(size, int) else None
        return PillowProcessor(images.size or own, mean=images.mean, std=images.std)
    if not images.any:
        return processor
    if not isinstance(processor, PillowProcessor):
        processor = PillowProcessor.from_config(processor.to_dict())
    changes = {"mean": images.mean, "std": images.std}
    if images.size is not None:
        changes |= {"size": images.size, "crop": None}
    return replace(processor, **{k: v for k, v in changes.items() if v is not None or k == "crop"})


def _recipe(processor: Any) -> str:
    if isinstance(processor, PillowProcessor):
        return repr(processor)
    return blake2b(processor.to_json_string().encode(), digest_size=16).hexdigest()


def patch_of(config: Any) -> tuple[int, int] | None:
    """Return height and width of a patch, or None if a configuration has none."""
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, int):
        return patch, patch
    if isinstance(patch, list | tuple) and len(patch) == 2:
        return int(patch[0]), int(patch[1])
    return None
