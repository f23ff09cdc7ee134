"""A classifier's accuracy on pictures as JPEG, and on its own maps at eight bits."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sonde.compress import ScalarCodec
from sonde_studies._garments import garments
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies._split_classifier import Teacher


@torch.no_grad()
def sent_as_features(teacher: Teacher, x: Tensor, truth: Tensor) -> tuple[float, float]:
    """Return the bits of an image and the accuracy with the teacher's maps at eight bits."""
    early = teacher.early(x).movedim(1, -1)
    codec = ScalarCodec(8)
    stream = codec.encode(early)
    logits = teacher.named(codec.decode(stream).movedim(-1, 1))
    return 8 * len(stream) / len(x), right_on(logits, truth)


@torch.no_grad()
def sent_as_jpeg(teacher: Teacher, x: Tensor, truth: Tensor, quality: int) -> tuple[float, float]:
    """Return the JPEG bits above those of a blank image, and the accuracy after decoding."""
    n_bytes, back = 0, list[Tensor]()
    for picture in x[:, 0]:
        raw, values = _as_jpeg((255 * picture).numpy().astype(np.uint8), quality)
        n_bytes += raw
        back.append(values)
    flat, _ = _as_jpeg(np.zeros(x.shape[2:], np.uint8), quality)
    logits = teacher(torch.stack(back)[:, None])
    return 8 * (n_bytes / len(x) - flat + 1), right_on(logits, truth)


def _as_jpeg(picture: np.ndarray, quality: int) -> tuple[int, Tensor]:
    out = io.BytesIO()
    Image.fromarray(picture, "L").save(out, "JPEG", quality=quality, optimize=True)
    with Image.open(out) as back:
        return len(out.getvalue()), torch.from_numpy(np.asarray(back) / 255.0).float()


def right_on(logits: Tensor, truth: Tensor) -> float:
    """Return the accuracy of logits."""
    return float((logits.argmax(1) == truth).double().mean())


def pictures(seed: int, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training images (image, 1, 16, 16) with classes, and test images."""
    source = garments()
    if source is None:
        x, label = shuffled_digits(seed)
        x = x.reshape(-1, 1, 8, 8).repeat_interleave(2, 2).repeat_interleave(2, 3)
        n = min(n, 1_200)
    else:
        order = torch.randperm(len(source.x), generator=torch.Generator().manual_seed(seed))
        x, label = source.x[order].reshape(-1, 1, 16, 16), torch.from_numpy(source.kind)[order]
    return x[:n], label[:n], x[n : n + 500], label[n : n + 500]
