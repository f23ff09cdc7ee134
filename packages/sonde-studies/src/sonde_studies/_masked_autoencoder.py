"""A masked autoencoder of digits in patches of 2 x 2, and a classifier on its encoder."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sonde.train import shared_mask
from sonde_studies.worlds.learning import minimise

SIDE, PATCH, PATCHES, HIDDEN = 2, 4, 16, 0.75
Patches = Float[Tensor, "image 16 4"]
Mask = Bool[Tensor, "image 16"]


class MaskedAutoencoder(nn.Module):
    """Encodes visible patches; a light decoder reconstructs all patches."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embed = nn.Linear(PATCH, width)
        self.places = nn.Parameter(torch.randn(PATCHES, width) / 8)
        self.blocks = nn.ModuleList(_block(width) for _ in range(depth))
        self.hidden = nn.Parameter(torch.zeros(width))
        self.decoder = nn.ModuleList(_block(width) for _ in range(2))
        self.out = nn.Linear(width, PATCH)

    def encoded(self, x: Patches, mask: Mask | None = None) -> Float[Tensor, "image patch dim"]:
        """Return the states of all patches, or of the visible patches in order."""
        state = self.embed(x) + self.places
        if mask is not None:
            state = state[~mask].reshape(len(x), -1, state.shape[-1])
        for block in self.blocks:
            state = block(state)
        return state

    def decoded(self, x: Patches, mask: Mask) -> tuple[Float[Tensor, "image 16 dim"], Patches]:
        """Return the decoder's middle states at all positions, and the reconstruction."""
        seen = self.encoded(x, mask)
        whole = self.hidden.expand(*mask.shape, -1).clone()
        whole[~mask] = seen.flatten(0, 1)
        middle = self.decoder[0](whole + self.places)
        return middle, self.out(self.decoder[1](middle))


def _block(width: int) -> nn.Module:
    return nn.TransformerEncoderLayer(
        width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True
    )


class Classifier(nn.Module):
    """A linear head on the mean of the encoder's states of all patches."""

    def __init__(self, net: MaskedAutoencoder, width: int) -> None:
        super().__init__()
        self.net, self.head = net, nn.Linear(width, 10)

    def forward(self, x: Patches) -> Float[Tensor, "image class"]:
        """Return the logits of images."""
        return self.head(self.net.encoded(x).mean(1))


def learn_pixels(net: MaskedAutoencoder, x: Patches, steps: int, seed: int) -> None:
    """Train to reconstruct the hidden patches from the visible ones."""

    def loss(rows: Tensor) -> Tensor:
        mask = shared_mask(len(rows), PATCHES, HIDDEN)
        return mse_loss(net.decoded(x[rows], mask)[1][mask], x[rows][mask])

    minimise(loss, net.parameters(), len(x), steps=steps, seed=seed, rate=2e-3)
