"""Many ways to make a model smaller, tried one after the other: size against divergence."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from sonde.compress import Fidelity, LayerGrams, fidelity, layer_grams
from sonde.core.errors import InputError, StoreError
from sonde.core.inputs import Inputs, Model
from sonde.run.compressing.methods import Target, method_asked
from sonde.run.compressing.sizes import planned_bytes
from sonde.tap import fingerprint

SCHEMA: Final = "sonde-compress-search/1"
USUAL: Final = (
    ("1bit", "sign_quant"),
    *((f"{bits}bit", word) for bits in (2, 3, 4) for word in ("rtn", "gptq", "awq")),
    ("2bit", "decouple_q"),
    ("3bit", "decouple_q"),
    ("2.5bit", "bit_allocation"),
    ("3.5bit", "bit_allocation"),
    ("6bit", "gptq"),
    ("8bit", "rtn"),
    *((f"{share}%", word) for share in (30, 50, 70) for word in ("prune_weights", "sparse_gpt")),
    ("2:4", "sparse_gpt"),
    ("25%", "low_rank_weights"),
    ("50%", "low_rank_weights"),
)
"""Sizes and methods that are tried by default."""


@dataclass(frozen=True)
class SizeTrial:
    """What a way to make a model smaller gives.

    Parameters
    ----------
    size, method : str
        As ``--to`` and ``--method`` take them.
    n_bytes : int
        Of the weight files, about: headers are counted with 320 bytes for each layer.
    fidelity : dict
        Figures of the answers, see ``Fidelity``.
    """

    size: str
    method: str
    n_bytes: int
    fidelity: dict[str, Any]

    @property
    def kl(self) -> float:
        """Mean divergence of the answers in nats; infinite if it is not finite."""
        found = self.fidelity["kl"]
        return float("inf") if found is None else float(found)


@dataclass(frozen=True)
class TrialFile:
    """Trials that were made, a line of JSON each, so that a search goes on where it was stopped.

    Parameters
    ----------
    path : Path
    key : str
        Of the model, the examples and everything else that a trial depends on.
    """

    path: Path
    key: str

    def known(self) -> dict[tuple[str, str], SizeTrial]:
        """Return the trials of this key, by size and method; a last line cut short is left out."""
        found: dict[tuple[str, str], SizeTrial] = {}
        if not self.path.exists():
            return found
        for line in self.path.read_text().splitlines():
            try:
                told = json.loads(line)
                if told.pop("key") == self.key:
                    trial = SizeTrial(**told)
                    found[trial.size, trial.method] = trial
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
        return found

    def add(self, trial: SizeTrial) -> None:
        """Write a trial behind the others."""
        cut = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        line = json.dumps({"key": self.key, **asdict(trial)})
        try:
            with self.path.open("a") as file:
                file.write(("\n" if cut else "") + line + "\n")
        except OSError as error:
            raise StoreError(f"cannot write {self.path}: {error.strerror}.") from None


def search_key(model: Model, ours: Inputs, held: Inputs) -> str:
    """Return what the trials of a search depend on, as a hash."""
    told = [fingerprint(model.module), ours.identity(), held.identity()]
    return sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:24]


def trials(
    model: Model,
    ours: Inputs,
    held: Inputs,
    asked: Sequence[tuple[str, str]],
    file: TrialFile,
    progress: Callable[[str], None],
) -> Iterator[SizeTrial]:
    """Yield the trial of each size and method: those in the file first, others as they are made.

    Parameters
    ----------
    model : Model
    ours, held : Inputs
        Examples to calibrate on, and others to compare on.
    asked : sequence of (str, str)
        Sizes and methods.
    file : TrialFile
    progress : callable
        Is told in a line what is tried next.
    """
    known, grams = file.known(), list[LayerGrams]()
    rules = {pair: method_asked(pair[1], Target.of(pair[0]), {}) for pair in asked}
    for i, (pair, rule) in enumerate(rules.items()):
        if pair in known:
            yield known[pair]
            continue
        progress(f"{i + 1} of {len(rules)}: {pair[0]} by {pair[1]}")
        given: dict[str, Any] = {}
        for name, need in rule.reads().items():
            if need.summed is LayerGrams:
                if not grams:
                    grams.append(layer_grams(model, ours, progress=False))
                given[name] = grams[0]
            else:
                given[name] = ours
        plan = rule.plan(model, given)
        found: Fidelity = fidelity(model, plan.fold(model), held)
        trial = SizeTrial(*pair, planned_bytes(model, plan), found.json())
        file.add(trial)
        yield trial


def best_trials(found: Iterable[SizeTrial]) -> list[SizeTrial]:
    """Return the trials that no other beats in size and divergence at once, smallest first."""
    best: list[SizeTrial] = []
    for trial in sorted(found, key=lambda t: (t.n_bytes, t.kl)):
        if not best or trial.kl < best[-1].kl:
            best.append(trial)
    return best


def asked_pairs(sizes: Sequence[str], methods: Sequence[str]) -> list[tuple[str, str]]:
    """Return what a search tries: all usual pairs, or sizes and methods that fit one another.

    Raises
    ------
    InputError
        If a method is given and reaches none of the sizes.
    """
    if not sizes and not methods:
        return list(USUAL)
    if not methods:
        fit = [pair for pair in USUAL if pair[0] in sizes]
        return fit + [(size, _default(size)) for size in sizes if size not in dict(fit)]
    known = sizes or tuple(dict.fromkeys(size for size, _ in USUAL))
    found, refused = list[tuple[str, str]](), list[str]()
    for method in methods:
        method_asked(method, None, {})  # an unknown word is refused here
        for size in known:
            try:
                method_asked(method, Target.of(size), {})
            except InputError as error:
                refused.append(str(error))
            else:
                found.append((size, method))
    if not found:
        raise InputError(refused[0])
    return found


def _default(size: str) -> str:
    from sonde.run.compressing.methods import word_for

    return word_for(Target.of(size))
