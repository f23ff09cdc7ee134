"""A convolutional net of EfficientNet-lite0's shape with random weights: depthwise, 5 M weights."""

import torch
from torch import Tensor, nn

STAGES = (
    (16, 1, 1, 3, 1),
    (24, 2, 2, 3, 6),
    (40, 2, 2, 5, 6),
    (80, 3, 2, 3, 6),
    (112, 3, 1, 5, 6),
    (192, 4, 2, 5, 6),
    (320, 1, 1, 3, 6),
)
"""Channels, blocks, stride, kernel, expansion (Tan and Le, 2019, without squeeze and excite)."""


class Inverted(nn.Module):
    """An inverted residual block: wider, depthwise, narrower, and a shortcut if shapes agree."""

    def __init__(self, before: int, after: int, stride: int, kernel: int, wider: int) -> None:
        super().__init__()
        inner = before * wider
        parts: list[nn.Module] = []
        if wider != 1:
            parts += [nn.Conv2d(before, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU6()]
        parts += [
            nn.Conv2d(inner, inner, kernel, stride, kernel // 2, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            nn.Conv2d(inner, after, 1, bias=False),
            nn.BatchNorm2d(after),
        ]
        self.body = nn.Sequential(*parts)
        self.is_residual = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the block."""
        return x + self.body(x) if self.is_residual else self.body(x)


def mobile_net(n_classes: int = 1000, seed: int = 0) -> nn.Module:
    """Return the net; its first directions are strengthened, so that it does not look untrained."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = [
        nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6())
    ]
    width = 32
    for channels, n, stride, kernel, wider in STAGES:
        for i in range(n):
            layers.append(Inverted(width, channels, stride if i == 0 else 1, kernel, wider))
            width = channels
    layers.append(
        nn.Sequential(nn.Conv2d(width, 1280, 1, bias=False), nn.BatchNorm2d(1280), nn.ReLU6())
    )
    net = nn.Sequential(
        nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, n_classes)
    )
    return look_trained(net)


@torch.no_grad()
def look_trained(net: nn.Module) -> nn.Module:
    """Strengthen three directions of every weight matrix, as training does."""
    for weight in net.parameters():
        if weight.ndim >= 2 and min(weight.shape[0], weight[0].numel()) > 4:
            rows = weight.flatten(1)
            u, s, v = torch.linalg.svd(rows, full_matrices=False)
            s[:3] *= torch.tensor([3.0, 2.5, 2.0])
            weight.copy_((u * s @ v).view_as(weight) * 0.8)
    return net.eval()
