"""Ten colour pictures of scikit-learn and scikit-image, and the colour filter of a camera."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.datasets import load_sample_images  # pyright: ignore
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d

Picture = Float[Tensor, "3 high wide"]
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "stereo_motorcycle")
OTHERS = ("retina", "immunohistochemistry", "hubble_deep_field")
CROSS = ((0.0, 1.0, 0.0), (1.0, 4.0, 1.0), (0.0, 1.0, 0.0))
SQUARE = ((1.0, 2.0, 1.0), (2.0, 4.0, 2.0), (1.0, 2.0, 1.0))


def photographs() -> dict[str, Picture]:
    """Return the pictures by name, values in 0..1; of two that show one scene only the first."""
    from skimage import data  # pyright: ignore

    names = ("china", "flower")
    shown: dict[str, Any] = dict(zip(names, load_sample_images().images, strict=True))
    for name in PHOTOGRAPHS + OTHERS:
        found: Any = getattr(data, name)()
        shown[name] = found[0] if isinstance(found, tuple) else found
    return {
        name: torch.from_numpy(np.array(x)).permute(2, 0, 1).float() / 255
        for name, x in shown.items()
    }


def through_filter(picture: Picture) -> Picture:
    """Return a picture of half the size, as a camera that measures one colour per pixel makes it.

    The filter (red and green in one line, green and blue in the next) leaves one value for each
    pixel; the two others are the weighted mean of the nearest pixels of their colour.
    """
    x = avg_pool2d(picture, 2)
    seen = torch.zeros_like(x)
    seen[0, ::2, ::2] = seen[1, ::2, 1::2] = seen[1, 1::2, ::2] = seen[2, 1::2, 1::2] = 1.0
    weight = torch.tensor([SQUARE, CROSS, SQUARE])[:, None]
    total = conv2d((x * seen)[None], weight, padding=1, groups=3)
    return torch.where(seen > 0, x, (total / conv2d(seen[None], weight, padding=1, groups=3))[0])
