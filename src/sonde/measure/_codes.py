"""Low-dimensional codes of a site's rows: principal components, or an autoencoder.

Estimators by neighbours see little in many dimensions. The information in a code of the rows is a
lower bound on the information in the rows.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.engine.steps import Descent
from sonde.stats.normal_equations import GRAM_CUT

Compressor = Literal["pca", "autoencoder"]
COMPRESSORS: tuple[Compressor, ...] = get_args(Compressor)
WIDEST, HIDDEN = 64, 64
STEPS, RATE, BATCH = 600, 3e-3, 512


def code_of(
    x: Float[Tensor, "row dim"], k: int, compressor: Compressor, seed: int = 0
) -> tuple[Float[Tensor, "row code"], float]:
    """Return a code of the rows and the fraction of variance that it explains.

    The numbers of a code are uncorrelated and have deviation 1.

    Parameters
    ----------
    x : Float[Tensor, "row dim"]
    k : int
        Numbers of a code; fewer come back if fewer vary.
    compressor : {"pca", "autoencoder"}
        The autoencoder is a net of one hidden layer on either side of the code, trained on the
        leading 64 components.
    seed : int, default=0
        Seed of the autoencoder's weights and batches.
    """
    if compressor == "pca":
        return components(x, k)
    wide, kept = components(x, WIDEST, scaled=False)
    scale = wide.square().sum(1).mean().sqrt()
    rows = (wide / scale).float()
    code, unexplained = _trained_code(rows, k, seed)
    return components(code.double(), k)[0], kept * (1 - unexplained)


def components(
    x: Float[Tensor, "row dim"], k: int, scaled: bool = True
) -> tuple[Float[Tensor, "row component"], float]:
    """Return the leading principal components, and the fraction of variance they explain.

    Parameters
    ----------
    scaled : bool, default=True
        Whether each component has deviation 1.
    """
    z = x - x.mean(0)
    values, vectors = torch.linalg.eigh(z.T @ z / len(z))
    values, vectors = values.flip(0)[:k], vectors.flip(1)[:, :k]
    live = values > GRAM_CUT * values[0]
    whole = float(z.square().sum() / len(z))
    projected = z @ vectors[:, live]
    return projected * values[live].rsqrt() if scaled else projected, float(
        values[live].sum()
    ) / whole


def _trained_code(
    rows: Float[Tensor, "row dim"], k: int, seed: int
) -> tuple[Float[Tensor, "row code"], float]:
    """Return the codes of a trained autoencoder, and the fraction of variance it loses."""
    dim = rows.shape[1]
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encode = nn.Sequential(nn.Linear(dim, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, k))
        decode = nn.Sequential(nn.Linear(k, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, dim))
    net = nn.Sequential(encode, decode).to(rows.device)

    def loss(_: int) -> Tensor:
        chosen = torch.randint(len(rows), (min(BATCH, len(rows)),), generator=draw)
        seen = rows[chosen.to(rows.device)]
        return (net(seen) - seen).square().sum(1).mean()

    Descent("code_of", net.parameters(), RATE).run(loss, range(STEPS))
    with torch.no_grad():
        code = encode(rows)
        return code, float((decode(code) - rows).square().sum(1).mean())
