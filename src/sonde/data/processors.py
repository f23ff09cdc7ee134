"""Tokenizers and image processors of a checkpoint, and an image recipe without torchvision."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.data._checkpoints import FACTORY, json_object
from sonde.data._versions import has_pillow_backend, pillow_options
from sonde.data.encoder import forward_names

IMAGE_FLAGS = (
    "Pass image_size=, image_mean= and image_std= (--image-size --image-mean --image-std)."
)
RECIPE = (
    "Pass --image-size --image-mean --image-std as in training, e.g. --image-size 224 "
    "--image-mean 0.5 --image-std 0.5 (image_size=224, image_mean=0.5, image_std=0.5); "
    "--image-mean 0 --image-std 1 leaves pixels in 0..1, and without --image-size images keep "
    "their size. Or pass processor= with a function of one image in Python; "
    f"{FACTORY}."
)
BILINEAR = 2
AUDIO_INPUTS = ("input_values", "input_features")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
)
_UNDERSTOOD = {
    "do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor",
    "do_normalize", "image_mean", "image_std", "crop_pct", "do_convert_rgb",
}  # fmt: skip
_LEFT_ALONE = {"image_processor_type", "feature_extractor_type", "processor_class", "data_format"}


@final
@dataclass(frozen=True)
class PillowProcessor:
    """Images to pixel values by Pillow and numpy: resize, crop, rescale, normalise.

    Parameters
    ----------
    size : (int, int), int or None
        Height and width, or the length of the shortest edge; None leaves images as they are.
    crop : (int, int) or None
        Height and width of the centre that is kept.
    scale : float
        Factor of the 8-bit values.
    mean, std : tuple of float
        For each channel, after scaling.
    resample : int
        Pillow's number of the resampling filter: 2 is bilinear, 3 is bicubic.
    """

    size: tuple[int, int] | int | None
    crop: tuple[int, int] | None = None
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    resample: int = BILINEAR

    @classmethod
    def from_config(cls, written: Mapping[str, Any]) -> "PillowProcessor":
        """Return the processor that ``preprocessor_config.json`` describes.

        Raises
        ------
        InputError
            If it asks for a step that is not one of resize, crop, rescale, normalise.
        """
        strange = sorted(
            k for k, v in written.items() if v and k.startswith("do_") and k not in _UNDERSTOOD
        )
        if strange:
            raise InputError(
                f"load: preprocessor_config.json asks for {', '.join(strange)}. {IMAGE_FLAGS}"
            )
        size = _size(written.get("size")) if written.get("do_resize", True) else None
        crop = None
        if written.get("do_center_crop", False):
            crop = _pair(_size(written.get("crop_size", written.get("size"))))
        if written.get("crop_pct") is not None and isinstance(size, int):
            size, crop = _by_share(size, float(written["crop_pct"]))
        normal = written.get("do_normalize", True)
        return cls(
            size=size,
            crop=crop,
            scale=float(written.get("rescale_factor", 1 / 255))
            if written.get("do_rescale", True)
            else 1.0,
            mean=_numbers(written.get("image_mean", 0.5)) if normal else (0.0,),
            std=_numbers(written.get("image_std", 0.5)) if normal else (1.0,),
            resample=int(written.get("resample", BILINEAR)),
        )

    def __call__(self, images: Sequence[Any]) -> Float[Tensor, "row channel height width"]:
        """Return the pixel values of images that are already grey or RGB."""
        arrays = [self._array(image) for image in images]
        if len({a.shape for a in arrays}) > 1:
            raise InputError(
                f"images: expected one size, got {sorted({a.shape[1:] for a in arrays})}. "
                "Pass image_size= (--image-size), which resizes them to one size."
            )
        return torch.from_numpy(np.stack(arrays))

    def _array(self, image: Any) -> np.ndarray:
        if self.size is not None:
            height, width = _target(self.size, image.height, image.width)
            if (height, width) != (image.height, image.width):
                image = image.resize((width, height), resample=self.resample)
        x = np.asarray(image)
        x = x[None] if x.ndim == 2 else x.transpose(2, 0, 1)
        x = _centre(x, self.crop) if self.crop is not None else x
        mean, std = (np.asarray(v, dtype=np.float32)[:, None, None] for v in (self.mean, self.std))
        return (x.astype(np.float32) * np.float32(self.scale) - mean) / std


def load_processor(directory: Path, module: nn.Module, config: Any, trust_remote_code: bool) -> Any:
    """Return the checkpoint's tokenizer or image processor, or None if it has neither."""
    main = getattr(module, "main_input_name", "input_ids")
    if {"input_ids", "pixel_values"} <= forward_names(module):
        return _joint_processor(directory, trust_remote_code)
    if main == "pixel_values":
        return _image_processor(directory)
    if main in AUDIO_INPUTS:
        return _feature_extractor(directory)
    if not any((directory / name).exists() for name in TOKENIZER_FILES):
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise InputError(
            f"load: the tokenizer in {directory} does not load: {type(error).__name__}: {error}. "
            f"Fix its files, or pass processor= with a tokenizer in Python; {FACTORY}."
        ) from error


def _feature_extractor(directory: Path) -> Any:
    if not any(
        (directory / n).exists() for n in ("preprocessor_config.json", "processor_config.json")
    ):
        return None
    from transformers import AutoFeatureExtractor

    try:
        return AutoFeatureExtractor.from_pretrained(directory)
    except Exception as error:
        raise InputError(
            f"load: the feature extractor in {directory} does not load: "
            f"{type(error).__name__}: {error}. Fix preprocessor_config.json, or pass processor= "
            f"with a feature extractor in Python; {FACTORY}."
        ) from error


def _joint_processor(directory: Path, trust_remote_code: bool) -> Any:
    """Return the joint processor of images and texts, with its image part on Pillow."""
    names = ("preprocessor_config.json", "processor_config.json")
    if not any((directory / name).exists() for name in names):
        return None
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(
            directory, trust_remote_code=trust_remote_code, **pillow_options()
        )
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"load: the processor of images and texts in {directory} does not load: "
            f"{type(error).__name__}: {reason}. Some need torchvision (those that read videos "
            f"too); install it, or pass processor= with the processor in Python; {FACTORY}."
        ) from error


def _image_processor(directory: Path) -> Any:
    paths = (directory / "preprocessor_config.json", directory / "processor_config.json")
    path = next((p for p in paths if p.exists()), None)
    if path is None:
        return None
    written = json_object(path)
    if has_pillow_backend():
        # `transformers.AutoImageProcessor` needs torchvision in versions 5.4 to 5.16: this does not
        from transformers.models.auto.image_processing_auto import AutoImageProcessor

        with suppress(Exception):
            return AutoImageProcessor.from_pretrained(directory, **pillow_options())
    return PillowProcessor.from_config(written.get("image_processor", written))


def no_recipe(model: str, missing: Sequence[str]) -> InputError:
    """Return the error for a model that does not say how to preprocess images."""
    flags = " and ".join(f"--image-{name}" for name in missing)
    return InputError(
        f"{model} does not say how to preprocess images (preprocessor_config.json): {flags} "
        f"missing. {RECIPE}"
    )


def is_tokenizer(processor: Any) -> bool:
    """Return whether a processor is a transformers tokenizer."""
    return _is_a(processor, "PreTrainedTokenizerBase")


def is_joint_processor(processor: Any) -> bool:
    """Return whether a processor turns images and texts together into a model's input."""
    return (
        _is_a(processor, "ProcessorMixin")
        and is_image_processor(getattr(processor, "image_processor", None))
        and is_tokenizer(getattr(processor, "tokenizer", None))
    )


def is_image_processor(processor: Any) -> bool:
    """Return whether a processor turns images into pixel values."""
    return isinstance(processor, PillowProcessor) or _is_a(processor, "BaseImageProcessor")


def is_feature_extractor(processor: Any) -> bool:
    """Return whether a processor turns recordings into a model's input."""
    return _is_a(processor, "SequenceFeatureExtractor")


def _is_a(processor: Any, name: str) -> bool:
    """Return whether an object is an instance of a transformers class.

    The test is by name: to import the class takes two seconds, which a user's own model need not
    spend.
    """
    kinds = type(processor).__mro__
    return any(k.__name__ == name and k.__module__.startswith("transformers.") for k in kinds)


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(float(v) for v in value) if isinstance(value, list | tuple) else (float(value),)


def _size(value: Any) -> tuple[int, int] | int:
    if isinstance(value, int):
        return (value, value)
    if isinstance(value, Mapping) and "height" in value and "width" in value:
        return int(value["height"]), int(value["width"])
    if isinstance(value, Mapping) and set(value) == {"shortest_edge"}:
        return int(value["shortest_edge"])
    raise InputError(f"load: preprocessor_config.json has an unknown size {value!r}. {IMAGE_FLAGS}")


def _pair(size: tuple[int, int] | int) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


LARGEST_CROPPED: Literal[384] = 384


def _by_share(edge: int, share: float) -> tuple[tuple[int, int] | int, tuple[int, int] | None]:
    if edge >= LARGEST_CROPPED:
        return (edge, edge), None
    return int(edge / share), (edge, edge)


def _target(size: tuple[int, int] | int, height: int, width: int) -> tuple[int, int]:
    if not isinstance(size, int):
        return size
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def _centre(x: np.ndarray, crop: tuple[int, int]) -> np.ndarray:
    height, width = crop
    pad_h, pad_w = max(0, height - x.shape[1]), max(0, width - x.shape[2])
    if pad_h or pad_w:
        top, left = -(-pad_h // 2), -(-pad_w // 2)
        x = np.pad(x, ((0, 0), (top, pad_h - top), (left, pad_w - left)))
    top, left = (x.shape[1] - height) // 2, (x.shape[2] - width) // 2
    return x[:, top : top + height, left : left + width]
