"""Common base of the methods that train a dictionary: parameters and result."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import torch

from sonde.core.errors import InputError
from sonde.core.instrument import Instrument
from sonde.core.ranges import check_ranges
from sonde.core.statistic import Statistic
from sonde.explain._codes import Act
from sonde.explain._dictionary_state import DictionaryState
from sonde.explain._dictionary_training import DictionaryTraining
from sonde.explain.dictionary import Dictionary

DEAD_SHARE = 0.05
"""Share of features that are active in no row above which a dictionary is flagged."""


@dataclass(frozen=True)
class DictionaryLearner(Instrument):
    """A method that trains a dictionary. ``SparseAutoencoder`` describes its parameters.

    A final subclass builds the training of its sites from these parameters.
    """

    features: int | None = None
    k: int = 32
    act: Act = "topk"
    passes: int = 1
    batch: int = 4096
    rate: float | None = None
    penalty: float = 1.0
    dead_after: int | None = None
    mixed: int = 4
    patience: int = 0
    seed: int = 0
    estimates: ClassVar[bool] = False
    least_features: ClassVar[int] = 1

    def __post_init__(self) -> None:
        dead = 1 if self.dead_after is None else self.dead_after
        counts = (self.k, self.passes, self.batch, self.mixed, dead)
        n = self.least_features if self.features is None else self.features
        rate = 1.0 if self.rate is None else self.rate
        name = type(self).__name__
        if min(counts) < 1 or n < self.least_features or not 0 < rate < math.inf:
            raise InputError(
                f"{name}: expected features of at least {self.least_features}, k, passes, batch, "
                f"mixed and dead_after of at least 1 and a rate above 0, got {self}."
            )
        check_ranges(self, act=get_args(Act), penalty="[0, inf)", patience=">= 0")

    @abstractmethod
    def training(self) -> DictionaryTraining:
        """Return the training configuration with the method's parameters."""

    @property
    def settings(self) -> dict[str, Any]:
        """The parameters of the training run."""
        names = (
            "features",
            "k",
            "act",
            "passes",
            "batch",
            "penalty",
            "dead_after",
            "patience",
            "seed",
        )
        own = {"top_rate": self.rate, "buffer": self.mixed * self.batch}
        return {n: getattr(self, n) for n in names} | own

    def reads(self) -> dict[str, Statistic[Any]]:
        """Read the state of a training run."""
        return {"trained": self.training()}

    def result(self, trained: DictionaryState) -> Dictionary:
        """Return the dictionary, rescaled to the raw states, with its flags.

        A training that diverged gives the weights before ``diverged at step``.
        """
        training = self.training()
        if trained.diverged is None or trained.fired is None:
            trained.require_trained(type(self).__name__)
        decoder, offset, *more = (v.double().cpu() for v in trained.weights.values[2:])
        encoder, bias, threshold, act = training.reader(trained.weights)
        scale, scale_out = trained.scale.cpu(), trained.scale_out.cpu()
        weight, site = trained.weight(trained.rebuilt), trained.site_scale(trained.rebuilt)
        held, used = trained.held_out, trained.trained_on
        judged = held if held.n else used
        fired = torch.zeros(len(bias)) if trained.fired is None else trained.fired.cpu()
        flags = ["diverged"] if trained.diverged is not None else []
        flags += ["dead"] if judged.n and math.isnan(judged.unexplained) else []
        flags += [] if held.n or not used.n else ["few_groups"]
        massive = (weight < 1).nonzero().flatten().tolist()
        flags += ["massive_units"] if massive else []
        dead_share = float((fired == 0).double().mean()) if len(fired) else 0.0
        flags += ["dead_features"] if dead_share > DEAD_SHARE else []
        sides = trained.read if training.is_own else trained.rebuilt
        widths = tuple(len(m.mean) for m in sides)
        several = widths if len(widths) > 1 else ()
        map_back = (more[-1] * scale / scale_out[:, None]) if training.skip else None
        rest = trained.mean_out.cpu() + offset / scale_out
        rest = rest if map_back is None else rest - map_back @ trained.mean.cpu()
        return Dictionary(
            value=judged.unexplained,
            n=judged.n,
            range=(0.0, math.inf),
            direction="lower",
            flags=tuple(flags),
            conventions={
                "value": "unexplained fraction of squares around the mean of all rows, of rows of "
                + ("held-out groups" if held.n else "the training: there is one group"),
                "unexplained in training": used.unexplained,
                **_components(trained),
                "l0": float(fired.sum()) / max(1, trained.n),
                "dead share": dead_share,
                "dead features": int((fired == 0).sum()),
                "units scaled down": massive,
                "steps": trained.weights.steps,
                "rows in training": trained.losses[0].n if trained.losses else 0,
                "diverged at step": trained.diverged,
                "scale": float(trained.site_scale(trained.read)[0]),
                "se": "not given: a trained dictionary",
            },
            encoder=(encoder.double().cpu() * scale).float(),
            bias=bias.float().cpu(),
            centre=(rest if training.is_own else trained.mean.cpu()).float(),
            decoder=(decoder / scale_out).float(),
            offset=rest.float(),
            threshold=None if threshold is None else threshold.float().cpu().reshape(-1),
            skip=None if map_back is None else map_back.float(),
            act=act,
            k=self.k,
            density=fired.double() / max(1, trained.n),
            widths=several,
            scales=tuple(float(s[0]) for s in site.split(list(widths))) if several else (),
        )


def _components(trained: DictionaryState) -> dict[str, Any]:
    """Return what as many principal components as features of a row leave unexplained.

    The components are of the rows that train; the figure is of the held-out rows.
    """
    if trained.components is None or trained.fired is None or not trained.held_out.n:
        return {}
    n = round(float(trained.fired.sum()) / max(1, trained.n))
    left = trained.held_out.unexplained_by_components(trained.components, n)
    return {"principal components": n, "unexplained by components": left}
