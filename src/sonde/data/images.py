"""Load images safely: rotated upright, on a white background, in the model's channels.

What white is follows from how an image is stored, never from its own brightest pixel.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from sonde.core.errors import InputError, no_file
from sonde.core.hashing import bytes_key, tensor_key
from sonde.data.encoder import Collated, Encoder, Prepared, called
from sonde.data.processors import PillowProcessor
from sonde.data.sources import Row

MAX_IMAGE_BYTES = 256 * 2**20
MAX_IMAGE_PIXELS = 100_000_000
SIXTEEN_BITS = ("PNG", "PPM")  # formats that Pillow opens as "I" where they hold 16 bits
PICTURE_COLUMNS = ("sharpness", "brightness", "contrast")
"""From what little else changes to what most faults change."""
VIA = {"La": "LA", "LAB": "RGB"}  # modes that Pillow brings to no other one


@final
@dataclass(frozen=True, eq=False)
class ImageEncoder(Encoder):
    """One image per row: a path, encoded bytes, or a Pillow image.

    Parameters
    ----------
    processor : PillowProcessor or image processor
    column : str
    base : Path
        Where relative paths start.
    channels : int
        1 (grey) or 3 (RGB).
    patch : (int, int) or None
        Height and width of a patch, if the model cuts images.
    dtype : torch.dtype or None
        Type of the model's weights, which pixel values are brought to.
    names : frozenset of str
        Parameters of the model's ``forward``.
    """

    processor: Any
    column: str
    base: Path
    channels: int
    names: frozenset[str]
    patch: tuple[int, int] | None = None
    dtype: torch.dtype | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    kind: str = "image"

    def key(self, row: Row) -> bytes:
        """Hash the bytes of the file, or type, shape and values of an image in memory."""
        value = stored(row, self.column, self.base)
        return bytes_key(value) if isinstance(value, bytes) else tensor_key(_pixels(value))

    def size(self, row: Row) -> int:
        """Return the bytes of the file or of the pixels."""
        value = row.get(self.column)
        if isinstance(value, str | Path):
            return _bytes_in(self.base / value)
        value = stored(row, self.column, self.base)
        return len(value) if isinstance(value, bytes) else _pixels(value).numel()

    def prepare(self, rows: Sequence[Row], wanted: Sequence[tuple[int, int]]) -> list[Prepared]:
        """Return images undecoded."""
        return [Prepared(rows[row]) for row, _ in wanted]

    def collate(self, items: Sequence[Prepared]) -> Collated:
        """Decode, process and stack; undecodable images are listed in ``bad``."""
        images, bad = [], {}
        for i, item in enumerate(items):
            try:
                picture = decode(stored(item.value, self.column, self.base))
                images.append(with_channels(picture, self.channels))
            except InputError as error:
                bad[i] = str(error)
        if not images:
            return Collated(bad=bad)
        pixels = processed(self.processor, images)
        pixels = pixels if self.dtype is None else pixels.to(self.dtype)
        args, kwargs = called("pixel_values", pixels, self.names)
        seen = picture_columns(images)
        return Collated(args, kwargs, grid=self._grid(pixels), columns=seen, bad=bad)

    def _grid(self, pixels: torch.Tensor) -> tuple[int, int] | None:
        if self.patch is None:
            return None
        return pixels.shape[-2] // self.patch[0], pixels.shape[-1] // self.patch[1]

    def identity(self) -> dict[str, Any]:
        """Return the column and the recipe as identity."""
        return {
            "kind": self.kind,
            "inputs": [self.column],
            "channels": self.channels,
            **self.origin,
        }


def stored(row: Row, column: str, base: Path) -> Any:
    """Return the stored form of an image: the bytes of a file, or a Pillow image.

    Raises
    ------
    InputError
        If there is no such file, or it is too large.
    """
    value = row.get(column)
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str | Path):
        path = base / value
        if _bytes_in(path) > MAX_IMAGE_BYTES:
            raise InputError(f"the image is larger than {MAX_IMAGE_BYTES >> 20} MiB")
        return path.read_bytes()
    if isinstance(value, bytes) or hasattr(value, "getexif"):
        return value
    raise InputError(
        f"expected an image or its path in column {column!r}, got {type(value).__name__}"
    )


def decode(found: Any) -> Any:
    """Return a decoded Pillow image, rotated by its EXIF data.

    Raises
    ------
    InputError
        If it is not an image, is cut off, or decodes to more pixels than is safe.
    """
    import warnings

    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(found)) if isinstance(found, bytes) else found
        if image.width * image.height > MAX_IMAGE_PIXELS:
            raise InputError(
                f"the image has {image.width} x {image.height} pixels, more than the safe limit"
            )
        image.load()
        if image.mode == "I" and image.format in SIXTEEN_BITS:
            image = image.convert("I;16")
        return ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise InputError("the file is not an image that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise InputError(f"the image has more pixels than the safe limit ({error})") from None
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"the image cannot be decoded, it may be cut off ({error})") from None


def with_channels(image: Any, channels: int) -> Any:
    """Return an image as grey (1) or RGB (3), on a white background.

    16 bits end at 65,535, floating-point numbers at 1.

    Raises
    ------
    InputError
        If it holds whole numbers of 32 bits, or floating-point numbers outside 0 to 1.
    """
    from PIL import Image

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bits(image)
    image = image.convert(VIA[image.mode]) if image.mode in VIA else image
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("L" if channels == 1 else "RGB")


def processed(processor: Any, images: Sequence[Any]) -> torch.Tensor:
    """Return pixel values; if the processor fails, name the relevant flags in the error."""
    if isinstance(processor, PillowProcessor):
        return processor(images)
    try:
        return processor(images=list(images), return_tensors="pt")["pixel_values"]
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"images: {type(processor).__name__} fails ({reason}). Pass image_size=, "
            "image_mean= and "
            "image_std= (--image-size --image-mean --image-std)."
        ) from error


def _bytes_in(path: Path) -> int:
    try:
        if path.is_file():
            return path.stat().st_size
    except (OSError, ValueError):
        pass
    raise InputError(no_file(path, "image file"))


def _eight_bits(image: Any) -> Any:
    from PIL import Image

    if image.mode == "I":
        raise InputError(
            "expected an image of 8 or 16 bits, or floating-point numbers from 0 to 1, got "
            "whole numbers of 32 bits, for which the value of white is unknown. Convert the "
            "image to 8 or 16 bits, or to floating-point numbers"
        )
    x = np.asarray(image, dtype=np.float64)
    if not np.isfinite(x).all():
        raise InputError(
            "expected finite pixels, got NaN or infinity in "
            f"{int((~np.isfinite(x)).sum())} of {x.size:,} pixels"
        )
    if image.mode == "F" and not (x.min(initial=0.0) >= 0.0 and x.max(initial=0.0) <= 1.0):
        raise InputError(
            "expected floating-point pixels from 0 to 1, got "
            f"{x.min():.4g} to {x.max():.4g}. Divide the pixels by the value of white in these "
            "images"
        )
    white = 1.0 if image.mode == "F" else 65535.0
    return Image.fromarray(np.rint(x * (255.0 / white)).astype(np.uint8))


def _pixels(image: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(image))


def picture_columns(images: Sequence[Any]) -> dict[str, torch.Tensor]:
    """Return sharpness, brightness and contrast of each image, in grey from 0 to 1.

    Brightness is the mean, contrast the standard deviation of the pixels. Sharpness is the root
    mean square difference of neighbours, over the one that independent pixels of this contrast
    would have: near 0 in a smooth picture, 1 in noise, 0 without contrast.
    """
    figures: list[tuple[float, float, float]] = []
    for image in images:
        x = np.asarray(image.convert("L"), dtype=np.float32) / 255
        mean = float(x.mean(dtype=np.float64))
        steps = [_mean_square(np.diff(x, axis=axis)) for axis in (0, 1) if x.shape[axis] > 1]
        contrast, rough = _mean_square(x - mean) ** 0.5, float(np.mean(steps)) if steps else 0.0
        sharp = (rough / 2) ** 0.5 / contrast if contrast else 0.0
        figures.append((sharp, mean, contrast))
    each = torch.tensor(figures).reshape(-1, len(PICTURE_COLUMNS)).unbind(1)
    return dict(zip(PICTURE_COLUMNS, each, strict=True))


def _mean_square(x: np.ndarray) -> float:
    return float(np.vdot(x, x)) / x.size
