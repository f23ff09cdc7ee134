"""The formulas of detectors over all rows at once in float64, as somebody would check them by hand.

They share nothing with ``sonde.detect`` but the definitions.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Fitted rows, fresh rows, their classes and the last linear layer, in float64.

    Parameters
    ----------
    x, fresh : Float[Tensor, "row dim"]
    label : Int[Tensor, "row"]
    weight : Float[Tensor, "class dim"]
    bias : Float[Tensor, "class"]
    """

    x: Tensor
    label: Tensor
    fresh: Tensor
    weight: Tensor
    bias: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """Return what the last layer makes of rows."""
        return x @ self.weight.T + self.bias

    @property
    def probability(self) -> Tensor:
        """Softmax of the fresh rows."""
        return self.logits(self.fresh).softmax(1)

    @property
    def means(self) -> Tensor:
        """Mean of each class."""
        return torch.stack([self.x[self.label == c].mean(0) for c in range(len(self.weight))])


def energy(logits: Tensor) -> Tensor:
    """Return minus the log-sum-exp."""
    return -torch.logsumexp(logits, 1)


def quadratic(x: Tensor, precision: Tensor) -> Tensor:
    """Return ``x P x`` of every row."""
    return ((x @ precision) * x).sum(1)


def mahalanobis(r: Rows) -> Tensor:
    """Return the squared distance to the nearest class mean."""
    within = r.x - r.means[r.label]
    precision = torch.linalg.inv(within.T @ within / len(r.x))
    return torch.stack([quadratic(r.fresh - m, precision) for m in r.means]).amin(0)


def relative_mahalanobis(r: Rows) -> Tensor:
    """Return that minus the squared distance to the mean of all rows under their covariance."""
    away = r.x - r.x.mean(0)
    precision = torch.linalg.inv(away.T @ away / len(r.x))
    return mahalanobis(r) - quadratic(r.fresh - r.x.mean(0), precision)


def knn(r: Rows, k: int) -> Tensor:
    """Return the distance to the k-th nearest fitted row, all of unit length."""
    unit = torch.nn.functional.normalize
    return torch.cdist(unit(r.fresh), unit(r.x)).kthvalue(k, dim=1).values


def nn_guide(r: Rows, k: int) -> Tensor:
    """Return minus the energy times the mean of the k largest guided similarities."""
    unit = torch.nn.functional.normalize
    guided = unit(r.x) * -energy(r.logits(r.x))[:, None]
    return (unit(r.fresh) @ guided.T).topk(k, dim=1).values.mean(1) * energy(r.logits(r.fresh))


def kl_matching(r: Rows) -> Tensor:
    """Return the divergence from the nearest mean softmax of a predicted class."""
    p = r.logits(r.x).softmax(1)
    typical = torch.stack([p[p.argmax(1) == c].mean(0) for c in p.argmax(1).unique()])
    q = r.probability
    return torch.stack([(q * (q.log() - d.log())).sum(1) for d in typical]).amin(0)


def vim(r: Rows, principal: int, origin: Tensor | None = None) -> Tensor:
    """Return the scaled norm outside the principal subspace, minus the log-sum-exp."""
    origin = -torch.linalg.pinv(r.weight) @ r.bias if origin is None else origin
    away = r.x - origin
    basis = torch.linalg.eigh(away.T @ away / len(r.x)).eigenvectors[:, :-principal]
    alpha = r.logits(r.x).amax(1).mean() / (away @ basis).norm(dim=1).mean()
    return alpha * ((r.fresh - origin) @ basis).norm(dim=1) + energy(r.logits(r.fresh))


def react(r: Rows, quantile: float) -> Tensor:
    """Return the energy of rows clipped at a quantile of all fitted activations."""
    flat = r.x.flatten().sort().values
    at = quantile * (len(flat) - 1)
    low = int(at)
    top = flat[low] + (at - low) * (flat[min(low + 1, len(flat) - 1)] - flat[low])
    return energy(r.logits(r.fresh.clamp(max=float(top))))


def dice(r: Rows, share: float) -> Tensor:
    """Return the energy through the weights whose mean contribution is largest."""
    contribution = r.weight * r.x.mean(0)
    kept = r.weight * (contribution > torch.quantile(contribution.flatten(), share))
    return energy(r.fresh @ kept.T + r.bias)


def she(r: Rows) -> Tensor:
    """Return minus the product with the mean rightly predicted row of the predicted class."""
    said = r.logits(r.x).argmax(1)
    pattern = torch.stack([r.x[(said == c) & (r.label == c)].mean(0) for c in range(len(r.weight))])
    return -(r.fresh * pattern[r.logits(r.fresh).argmax(1)]).sum(1)


def fdbd(r: Rows) -> Tensor:
    """Return minus the mean distance to the other classes' boundaries over that to the mean."""
    f = r.logits(r.fresh)
    top, said = f.max(1)
    apart = torch.cdist(r.weight, r.weight).fill_diagonal_(1.0)
    total = ((top[:, None] - f) / apart[said]).sum(1) / (f.shape[1] - 1)
    return -total / (r.fresh - r.x.mean(0)).norm(dim=1)


def shaped(r: Rows, share: float, prunes: bool) -> Tensor:
    """Return the energy of rows stretched by ``exp(sum / sum of the largest)``."""
    k = r.fresh.shape[1] - round(share * r.fresh.shape[1])
    top, at = r.fresh.topk(k, dim=1)
    stretch = (r.fresh.sum(1) / top.sum(1)).exp()[:, None]
    rows = torch.zeros_like(r.fresh).scatter(1, at, top) if prunes else r.fresh
    return energy(r.logits(rows * stretch))


def grad_norm(r: Rows) -> Tensor:
    """Return minus the L1 norm of the last layer's gradient against the uniform, by autograd."""
    found = []
    for row in r.fresh:
        weight = r.weight.clone().requires_grad_()
        loss = -(weight @ row + r.bias).log_softmax(0).mean()
        found.append(-torch.autograd.grad(loss, weight)[0].abs().sum())
    return torch.stack(found)


def gen(r: Rows, gamma: float) -> Tensor:
    """Return the generalised entropy over all classes."""
    return (r.probability * (1 - r.probability)).pow(gamma).sum(1)


def entropy(r: Rows) -> Tensor:
    """Return the entropy of the softmax."""
    return -(r.probability * r.probability.log()).sum(1)


def single_origin(r: Rows) -> Tensor:
    """Return the origin of ``vim`` by a pseudo-inverse in float32, for heads of full rank alone."""
    return (-torch.linalg.pinv(r.weight.float()) @ r.bias.float()).double()


def odin(r: Rows, temperature: float, eps: float) -> Tensor:
    """Return minus the largest probability after the step, by the gradient of a linear layer."""
    p = (r.logits(r.fresh) / temperature).softmax(1)
    own = torch.nn.functional.one_hot(p.argmax(1), p.shape[1])
    moved = r.fresh - eps * ((p - own) @ r.weight).sign()
    return -(r.logits(moved) / temperature).softmax(1).amax(1)


def nac(r: Rows, grid: Tensor, alpha: float, fill: float, single: bool = False) -> Tensor:
    """Return one minus the mean coverage, each state compared with every pair of thresholds.

    With ``single`` states are rounded to float32, and one on a threshold lies below it.
    """
    kind = torch.float32 if single else torch.float64
    full = max(1, round(fill * len(r.x)))
    states = [
        torch.sigmoid(alpha * (x * _influence(r, x)).to(kind)).double() for x in (r.x, r.fresh)
    ]
    covered = torch.zeros_like(states[1])
    for low, high in itertools.pairwise(grid.tolist()):
        inside = [(s > low) & (s <= high) if single else (s >= low) & (s < high) for s in states]
        covered += inside[1] * (inside[0].sum(0) / full).clamp(max=1.0)
    return 1.0 - covered.mean(1)


def _influence(r: Rows, x: Tensor) -> Tensor:
    """Return the gradient of the divergence from uniform, rounded as the library's input is."""
    leaf = x.float().requires_grad_()
    logs = torch.nn.functional.linear(leaf, r.weight.float(), r.bias.float()).log_softmax(1)
    return torch.autograd.grad(-logs.mean(1).sum(), leaf)[0].double()


def paper_grid(n_bins: int) -> Tensor:
    """Return the thresholds of NAC's code: fine around one half."""
    x = torch.linspace(1.0, 1000.0**0.5, n_bins // 2, dtype=torch.float64)
    low = x.log() / torch.tensor(1000.0, dtype=torch.float64).log()
    high = (1 - low).flip(0)
    high[-1] = 1.01
    return torch.cat([low[:-1], high])


def geometric_grid(n_bins: int, least: float = 1e-6) -> Tensor:
    """Return thresholds that are fine at the ends of (0, 1), as pytorch-ood has them."""
    low = torch.logspace(math.log10(least), math.log10(0.5), n_bins // 2 + 1)
    grid = torch.cat([low, 1 - low.flip(0)[1:]]).double()
    grid[0], grid[-1] = 0.0, 1.01
    return grid
