"""Turn model images back into viewable pictures."""

import base64
import io

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor


def as_bytes(
    pixels: Float[Tensor, "channel line column"], size: tuple[int, int]
) -> UInt8[np.ndarray, "_line _column 3"]:
    """Return pixels as bytes, scaled from the darkest to the brightest.

    Parameters
    ----------
    pixels : Float[Tensor, "channel line column"]
        One or three channels, any range.
    size : (int, int)
        Lines and columns of the picture; small images are enlarged in squares.
    """
    x = pixels.double().nan_to_num(0.0, 0.0, 0.0)
    low, high = float(x.min()), float(x.max())
    x = (x - low) / (high - low if high > low else 1.0)
    x = x.expand(3, -1, -1) if len(x) == 1 else x
    image = Image.fromarray((x * 255).round().byte().permute(1, 2, 0).numpy())
    small = image.width <= size[1]
    how = Image.Resampling.NEAREST if small else Image.Resampling.BILINEAR
    return np.asarray(image.resize((size[1], size[0]), how))


def as_png(values: UInt8[np.ndarray, "_line _column ..."]) -> str:
    """Return a picture as a ``data:`` URL.

    Examples
    --------
    >>> as_png(np.zeros((2, 2, 3), dtype=np.uint8))[:22]
    'data:image/png;base64,'
    """
    sink = io.BytesIO()
    Image.fromarray(values).save(sink, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(sink.getvalue()).decode()}"
