"""EfficientNet-lite0 in plain torch: inverted residuals of ReLU6, no squeeze-and-excitation."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip
"""Blocks, kernel size, stride of the first block, expansion and channels of each stage."""
STEM, LAST, KINDS = 32, 1280, 1000
MEAN, SPREAD = 127 / 255, 128 / 255
"""What the published net expects of pixels in [0, 1]: their mean, and what they are divided by."""


class Block(nn.Module):
    """Widen, filter each channel, narrow, and add the input where shapes agree.

    Parameters
    ----------
    width, out : int
        Channels of input and output.
    kernel, stride, expansion : int
    """

    def __init__(self, width: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = width * expansion
        wide = _filtered(width, inner, 1) if expansion > 1 else []
        deep = _filtered(inner, inner, kernel, stride, groups=inner)
        self.body = nn.Sequential(*wide, *deep, *_filtered(inner, out, 1)[:-1])
        self.added = stride == 1 and width == out

    def forward(self, x: Float[Tensor, "row width high wide"]) -> Float[Tensor, "row out h w"]:
        """Return the channels of the next block."""
        return x + self.body(x) if self.added else self.body(x)


class Lite0(nn.Module):
    """The net of 224 x 224 pixels; any even size that five halvings leave even will do.

    Parameters
    ----------
    n_classes : int, default=1000
    """

    def __init__(self, n_classes: int = KINDS) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_filtered(3, STEM, 3, 2))
        blocks, width = list[nn.Module](), STEM
        for n, kernel, stride, expansion, out in STAGES:
            for i in range(n):
                blocks.append(Block(width, out, kernel, 1 if i else stride, expansion))
                width = out
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(*_filtered(width, LAST, 1))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(LAST, n_classes)

    def forward(self, x: Float[Tensor, "row 3 high wide"]) -> Float[Tensor, "row class"]:
        """Return the logits of pictures with pixels as the net expects them."""
        return self.head(self.pool(self.last(self.blocks(self.stem(x)))))


class _Same(nn.ZeroPad2d):
    """TensorFlow's padding of an even side at stride two: one more at the end."""

    def __init__(self, kernel: int) -> None:
        first, second = (kernel - 2) // 2, (kernel - 1) // 2
        super().__init__((first, second, first, second))


def _filtered(
    width: int, out: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    padding = kernel // 2 if stride == 1 else 0
    conv = nn.Conv2d(width, out, kernel, stride, padding, groups=groups, bias=False)
    norm = nn.BatchNorm2d(out, eps=1e-3, momentum=0.01)
    before = [_Same(kernel)] if stride > 1 else []
    return [*before, conv, norm, nn.ReLU6()]


def named_as_here(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the published weights under the names of ``Lite0``.

    Both list convolutions and norms in the order in which a picture meets them.

    Parameters
    ----------
    published : mapping of str to Tensor
        The state dictionary of the package's net.

    Raises
    ------
    ValueError
        If a tensor has another shape than the one in its place.
    """
    with torch.device("meta"):
        here = Lite0().state_dict()
    found = dict(zip(here, published.values(), strict=True))
    for name, tensor in found.items():
        if tensor.shape != here[name].shape:
            raise ValueError(
                f"expected {name} of shape {tuple(here[name].shape)}, got {tuple(tensor.shape)}"
            )
    return found
