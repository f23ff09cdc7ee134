"""Batch norm at test time, for streams where classes come in blocks."""

import copy
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.layers._attending import wide_type
from sonde.layers._recomputing import EarlierStates, is_recomputing
from sonde.layers.layer import Layer
from sonde.tap.hooks.latest import CopiedLock
from sonde.tap.training.ranks import added_up

LATEST = 4
"""Forward passes whose components are remembered for gradient checkpointing."""
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@final
class UnMixNorm(Layer):
    """Normalise each example by a mixture of statistics that adapts to the stream.

    ``K`` components of mean and variance start around the source's. An example with mean ``mu`` and
    variance ``v`` over space belongs to component ``k`` by ``p_k = softmax(cos(mu, m_k) / tau)``;
    it is normalised by the mean over ``k`` of ``(1 - p_k) m_k + p_k mu``, and by the variance of
    that mixture. Afterwards each component moves towards its examples by
    ``1 - (1 - momentum)^(batch / 64)``. The state depends on the order of the batches, so it is
    saved with the model and never merged. The output of an example does not depend on the others in
    its batch.

    Cost         K dim numbers for each example; state 2 K dim numbers.
    Assumes      maps: a batch norm over rows without space has no variance of one example.
    Differs      from the paper's code: noise is seeded; ``within`` adds the variance inside the
                 mixture that the code leaves out.

    Parameters
    ----------
    norm : nn.BatchNorm1d, 2d or 3d
        With running statistics of the source.
    components : int, default=16
        Number of components of the mixture.
    spread : float, default=0.5
        Share ``a`` of the source's variance that lies between the components at the start.
    temperature : float, default=0.07
        ``tau``.
    momentum : float, default=0.1
        Fraction, in [0, 1], by which a component moves towards 64 examples.
    within : bool, default=False
        Add ``p (1 - p) (mu - m_k)^2`` to each component's variance.
    seed : int, default=0
        Seed of the components' starts.

    References
    ----------
    tomar2024unmixtns
    """

    paper: ClassVar[str] = "tomar2024unmixtns"
    layout: ClassVar[tuple[str, ...]] = ("row dim *space",)
    insertable = False
    mean: Tensor
    variance: Tensor

    def __init__(
        self,
        norm: Any,
        components: int = 16,
        spread: float = 0.5,
        temperature: float = 0.07,
        momentum: float = 0.1,
        within: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if norm.running_mean is None or components < 1 or not 0.0 <= spread < 1.0:
            raise InputError(
                "UnMixNorm: expected a batch norm with running statistics, at least one component "
                f"and a standard deviation in [0, 1), got {norm}, {components} and {spread}."
            )
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.temperature, self.momentum, self.within = temperature, momentum, within
        mean, variance = norm.running_mean.detach(), norm.running_var.detach()
        spread = spread if components > 1 else 0.0
        generator = torch.Generator().manual_seed(seed)
        self.earlier, self._turn = EarlierStates(LATEST), CopiedLock()
        noise = torch.randn(components, len(mean), generator=generator).to(mean)
        width = (spread * components / max(components - 1, 1)) ** 0.5
        self.register_buffer("mean", mean + width * variance.sqrt() * noise)
        self.register_buffer("variance", ((1.0 - spread) * variance).expand_as(noise).clone())

    def _held(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return copies of the components, which change before the backward pass."""
        with self._turn:
            held = self.mean.to(x, copy=True), self.variance.to(x, copy=True)
        self.earlier.keep(x, held)
        return held

    @torch.no_grad()
    def _follow(self, share: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Update the components, in the same way in all processes that train together."""
        both, n = torch.stack([mean, variance]), share.new_tensor(float(len(share)))
        state = torch.stack([self.mean, self.variance]).to(both)
        step = (share.unsqueeze(-1) * (both.unsqueeze(2) - state.unsqueeze(1))).sum(1)
        if self.training:
            step, n = added_up(step), added_up(n)
        rate = 1.0 - (1.0 - self.momentum) ** (float(n) / 64.0)
        if n:
            self.mean += (rate / n * step[0]).to(self.mean)
            self.variance += (rate / n * step[1]).to(self.variance)

    def forward(
        self, x: Float[Tensor, "example dim *space"]
    ) -> Float[Tensor, "example dim *space"]:
        """Return the normalised maps, and update the components."""
        if x.ndim < 3:
            raise InputError(
                f"UnMixNorm: expected maps (example, dim, *space), got {tuple(x.shape)}."
            )
        kind, x = x.dtype, x.to(wide_type(x))  # squares of half types overflow
        flat = x.flatten(2)
        mu, v = flat.mean(2), flat.var(2, correction=0)
        again = is_recomputing()
        centres, spread = self.earlier.of(x, "UnMixNorm") if again else self._held(x)
        similarity = cosine_similarity(mu.unsqueeze(1), centres.unsqueeze(0), dim=2)
        share = (similarity / self.temperature).softmax(1)
        p = share.unsqueeze(-1)
        means = (1.0 - p) * centres + p * mu.unsqueeze(1)
        variances = (1.0 - p) * spread + p * v.unsqueeze(1)
        if self.within:
            variances = variances + p * (1.0 - p) * (mu.unsqueeze(1) - centres).square()
        mean = means.mean(1)
        variance = (variances + means.square()).mean(1) - mean.square()
        if not again:
            with self._turn:
                self._follow(share.detach(), mu.detach(), v.detach())
        shape = (*mean.shape, *[1] * (x.ndim - 2))
        y = (x - mean.reshape(shape)) / (variance.reshape(shape) + self.eps).sqrt()
        if self.weight is None:
            return y.to(kind)
        affine = (1, -1, *[1] * (x.ndim - 2))
        return (y * self.weight.reshape(affine) + self.bias.reshape(affine)).to(kind)


def with_unmix_norm(model: Model | nn.Module, **parameters: Any) -> Any:
    """Return a copy of a model whose batch norms adapt to the stream. The model is not changed.

    Each norm draws its components with a seed of its own. A batch norm over rows without space
    raises when it runs.

    Parameters
    ----------
    model : Model or nn.Module
        A model with batch norms.
    **parameters
        Parameters of ``UnMixNorm``.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    >>> type(with_unmix_norm(net)[1]).__name__, type(net[1]).__name__
    ('UnMixNorm', 'BatchNorm2d')
    """
    new = copy.deepcopy(model.module if isinstance(model, Model) else model)
    seed = int(parameters.pop("seed", 0))
    named = [(name, part) for name, part in new.named_modules() if isinstance(part, NORMS)]
    if not named:
        raise InputError("with_unmix_norm: expected a model with batch norms, got none in it.")
    for index, (name, part) in enumerate(named):
        path, _, leaf = name.rpartition(".")
        if not name:
            return UnMixNorm(part, seed=seed, **parameters)
        setattr(new.get_submodule(path), leaf, UnMixNorm(part, seed=seed + index, **parameters))
    return new
