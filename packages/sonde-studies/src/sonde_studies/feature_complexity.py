"""Test whether features of early layers are learned earlier, used more and pass by the blocks.

Principal features differ in variance, and variance alone makes a feature early and easy: the
partial correlations hold it constant, and units are a second set of features.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from sonde.measure import feature_complexity
from sonde_studies._layers import layers_of, partial_rank_correlation, residual_net, split, trained
from sonde_studies._separation import rank_correlation
from sonde_studies.study import Claim, Figures, Study, Tick

FEATURES, STEPS, CHECKPOINTS = 20, 800, (5, 10, 20, 40, 80, 160, 320, 560)


@final
class FeatureComplexityStudy(Study):
    """Complexity over layers, emergence over checkpoints, and importance for the answers."""

    name = "feature-complexity"
    title = "are features that early layers hold learned earlier, and do answers need them more?"
    paper = "fel2024complexity"
    fidelity = (
        "least squares on samples in place of trained probes; principal directions and units in "
        "place of a dictionary; the original looks at one ResNet-50"
    )
    data = "scikit-learn's digits; six residual blocks, 64 wide"
    claims = (
        Claim(
            "emerges",
            "Complex features emerge later in training.",
            "rank correlation of complexity and emergence, 20 principal directions",
        ),
        Claim(
            "matters",
            "Answers depend less on complex features.",
            "rank correlation of complexity and importance, sign turned",
        ),
        Claim(
            "emerges, beyond variance",
            "Complex features emerge later in training also at equal variance.",
            "the same correlation given the ranks of the variances",
        ),
        Claim(
            "matters, beyond variance",
            "Answers depend less on them also at equal variance.",
            "the same correlation given the ranks of the variances, sign turned",
        ),
        Claim(
            "emerges, units",
            "Complex units emerge later, at equal variance.",
            "partial rank correlation over the units of the last block",
        ),
        Claim(
            "passes",
            "Simple features pass by more blocks through the residual connections, at equal "
            "variance.",
            "partial rank correlation of complexity and the share of a feature that skips carry "
            "past a block, mean of six blocks, sign turned, 20 principal directions",
        ),
        Claim(
            "passes, units",
            "So do simple units.",
            "the same correlation over the units of the last block",
        ),
    )
    null = Claim(
        "noise",
        "Of features that are noise, layers explain what chance explains.",
        "mean complexity of 64 features less its null",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train, save checkpoints, correlate, and follow features through the blocks."""
        tick("training")
        d = split(seed, 1200)
        steps = 100 if tiny else STEPS
        at = [s for s in CHECKPOINTS if s < steps]
        raw = layers_of(residual_net(seed), d.x_test)
        nets = list(trained(residual_net(seed), d.x, d.label, steps, seed, at=at))
        tick("features")
        layers = layers_of(nets[-1], d.x_test)
        over_time = [layers_of(net, d.x_test)[-1] for net in nets]
        found = dict[str, float]()
        for name, along in _features(layers[-1]).items():
            rows = layers[-1].double() @ along
            late = feature_complexity([*layers[:-1], rows], features="units").complexity
            slow = feature_complexity([*over_time[:-1], rows], features="units").complexity
            moved = _importance(nets[-1], layers[-1], along)
            live = late.isfinite() & slow.isfinite()
            late, slow, moved = late[live], slow[live], moved[live]
            variance = rows.var(0)[live]
            found |= {
                f"emerges{name or ', beyond variance'}": partial_rank_correlation(
                    late, slow, variance
                ),
                f"matters{name or ', beyond variance'}": -partial_rank_correlation(
                    late, moved, variance
                ),
                f"emerges{name} | plain": rank_correlation(late, slow),
                f"matters{name} | plain": -rank_correlation(late, moved),
                f"complexity{name} | mean": float(late.mean()),
                f"complexity{name} | largest": float(late.max()),
                **_passing(layers, name, along),
                f"passes{name} | untrained": _passing(raw, name, _features(raw[-1])[name])[
                    f"passes{name}"
                ],
            }
        found |= {name: found[f"{name} | plain"] for name in ("emerges", "matters")}
        draw = torch.Generator().manual_seed(seed)
        noise = torch.randn(layers[-1].shape, generator=draw)
        chance = feature_complexity([*layers[:-1], noise], features="units")
        return {**found, "noise": float(chance) - float(torch.as_tensor(chance.null))}


def _features(last: Tensor) -> dict[str, Tensor]:
    """Return the first principal directions of the last layer's rows, and its units."""
    centred = last.double() - last.double().mean(0)
    basis = torch.linalg.eigh(centred.T @ centred)[1].flip(1)[:, :FEATURES]
    return {"": basis, ", units": torch.eye(last.shape[1]).double()}


def passed_share(layers: list[Tensor], along: Tensor) -> Tensor:
    """Return the share of each feature that skips carry past a block, mean over blocks.

    A residual net adds the output of each block to its rows, so a direction of the last rows is a
    sum of what each block wrote, and what stood in the rows before a block passes by it.

    Parameters
    ----------
    layers : list of Tensor (row, dim)
        Rows before the first block and after each block.
    along : Tensor (dim, feature)
        Directions of the last rows.
    """
    *earlier, last = (x.double() @ along - (x.double() @ along).mean(0) for x in layers)
    return torch.stack([(x * last).sum(0) for x in earlier]).mean(0) / last.square().sum(0)


def _passing(layers: list[Tensor], name: str, along: Tensor) -> dict[str, float]:
    """Return how far simple features pass by the blocks more than complex ones."""
    rows = layers[-1].double() @ along
    late = feature_complexity([*layers[:-1], rows], features="units").complexity
    live = late.isfinite()
    late, share = late[live], passed_share(layers, along)[live]
    return {
        f"passes{name}": -partial_rank_correlation(late, share, rows.var(0)[live]),
        f"passes{name} | plain": -rank_correlation(late, share),
        f"passes{name} | share": float(share.mean()),
    }


def _importance(model: nn.Sequential, rows: Tensor, along: Tensor) -> Tensor:
    """Return the mean of ``|z dlogit/dz|`` of each feature, for the largest logit."""
    rows = rows.clone().requires_grad_()
    with torch.enable_grad():
        functional.linear(rows, *_head(model)).amax(1).sum().backward()
    assert rows.grad is not None
    centred = rows.detach().double() - rows.detach().double().mean(0)
    return ((centred @ along) * (rows.grad.double() @ along)).abs().mean(0)


def _head(model: nn.Sequential) -> tuple[Tensor, Tensor]:
    head = model[-1]
    assert isinstance(head, nn.Linear)
    return head.weight, head.bias
