"""Try many ways to make a model smaller, one after the other: size against divergence."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from sonde.compress import Fidelity, LayerGrams, fidelity, layer_grams
from sonde.core.errors import InputError, StoreError
from sonde.core.inputs import Inputs, Model
from sonde.run.compressing.methods import Target, method_asked
from sonde.run.compressing.packable import packed_plan
from sonde.run.compressing.sizes import planned_bytes
from sonde.tap import config_hash, fingerprint, forward_code, parts, structure

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
SHAPES: Final = tuple(
    (f"{share}%", word)
    for word in ("prune_channels", "drop_blocks", "slice_width")
    for share in (12.5, 25, 50)
)
"""Sizes and methods that alter shapes: those that a model does not take are left out."""
OWN_SIZES: Final = {
    "bits": tuple(f"{bits}bit" for bits in range(1, 9)),
    "remove": tuple(f"{percent}%" for percent in range(10, 90, 10)),
    "pattern": ("2:4",),
}
"""Sizes of a method by its parameters."""
ANY: Final = "any"
"""Stands for all usual methods."""


@dataclass(frozen=True)
class SizeTrial:
    """Result of trying a method at a size.

    Parameters
    ----------
    size, method : str
        As ``--to`` and ``--method`` take them.
    n_bytes : int
        Approximate bytes of the weight files: headers count as 320 bytes for each layer.
    fidelity : dict
        Figures of the answers, see ``Fidelity``.
    """

    size: str
    method: str
    n_bytes: int
    fidelity: dict[str, Any]

    @property
    def kl(self) -> float:
        """Mean divergence of the answers in nats, or 1 - cosine; infinite if it is not finite."""
        cosine = self.fidelity.get("cosine")
        divergence = self.fidelity["kl"] if cosine is None or math.isnan(cosine) else 1.0 - cosine
        return float("inf") if divergence is None else float(divergence)

    def __str__(self) -> str:
        return f"{self.size} by {self.method}"

    def json(self) -> dict[str, Any]:
        """Return the size, the method, the bytes and the KL."""
        return {"method": self.method, "size": self.size, "group": None,
                "bytes": self.n_bytes, "kl": self.kl}  # fmt: skip


@dataclass(frozen=True)
class TrialFile:
    """File of finished trials, one JSON line each, so that a stopped search can continue.

    Parameters
    ----------
    path : Path
    key : str
        Hash of the model, the examples and everything else that a trial depends on.
    """

    path: Path
    key: str

    def known(self) -> dict[tuple[str, str], SizeTrial]:
        """Return the trials of this key by size and method; damaged lines are skipped."""
        trials: dict[tuple[str, str], SizeTrial] = {}
        if not self.path.exists():
            return trials
        for line in self.path.read_text("utf-8", "replace").splitlines():
            try:
                entry = json.loads(line)
                if entry.pop("key") == self.key:
                    trial = SizeTrial(**entry)
                    trials[trial.size, trial.method] = trial
            except (ValueError, TypeError, KeyError, AttributeError):
                continue
        return trials

    def add(self, trial: SizeTrial) -> None:
        """Append a trial to the file."""
        cut = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        line = json.dumps({"key": self.key, **asdict(trial)})
        try:
            with self.path.open("a") as file:
                file.write(("\n" if cut else "") + line + "\n")
        except OSError as error:
            raise StoreError(f"cannot write {self.path}: {error.strerror}.") from None


def search_key(model: Model, ours: Inputs, held: Inputs) -> str:
    """Return a hash of the model and the examples that the trials of a search depend on."""
    module = model.module
    facts = [
        fingerprint(module, full=True),
        config_hash(model.config, module),
        structure(module),
        parts(module),
        forward_code(module),
        ours.identity(),
        held.identity(),
    ]
    return sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def trials(
    model: Model,
    ours: Inputs,
    held: Inputs,
    asked: Sequence[tuple[str, str]],
    file: TrialFile,
    progress: Callable[[str], None],
    given: Mapping[str, Any] | None = None,
    means: Inputs | None = None,
) -> Iterator[SizeTrial]:
    """Yield the trial of each size and method: read from the file, or run now.

    A method that refuses the model is left out.

    Parameters
    ----------
    model : Model
    ours, held : Inputs
        Examples to calibrate on, and others to compare on.
    asked : sequence of (str, str)
        Sizes and methods.
    file : TrialFile
    progress : callable
        Called with a line that says what is tried next.
    given : mapping, optional
        Further parameters of all methods, such as ``layers``.
    means : Inputs, optional
        Examples with which biases are corrected, as in ``packed_plan``.

    Raises
    ------
    InputError
        If every method refuses the model: the error of the last method.
    """
    earlier, grams, given = file.known(), list[LayerGrams](), given or {}
    rules = {pair: method_asked(pair[1], Target.of(pair[0]), given) for pair in asked}
    n_made = 0
    for i, (pair, rule) in enumerate(rules.items()):
        if pair in earlier:
            n_made += 1
            yield earlier[pair]
            continue
        progress(f"{i + 1} of {len(rules)}: {pair[0]} by {pair[1]}")
        read: dict[str, Any] = {}
        for name, need in rule.reads().items():
            if need.summed is LayerGrams:
                if not grams:
                    grams.append(layer_grams(model, ours, layers=rule.layers, progress=False))
                read[name] = grams[0]
            else:
                read[name] = ours
        try:
            plan = packed_plan(rule, model, read, means)
        except InputError as error:
            progress(f"left out: {error}")
            if pair == asked[-1] and not n_made:
                raise
            continue
        measured: Fidelity = fidelity(model, plan.fold(model), held)
        trial = SizeTrial(*pair, planned_bytes(model, plan), measured.json())
        file.add(trial)
        n_made += 1
        yield trial


def best_trials(found: Iterable[SizeTrial]) -> list[SizeTrial]:
    """Return the Pareto-optimal trials in size and divergence, smallest first."""
    best: list[SizeTrial] = []
    for trial in sorted(found, key=lambda t: (t.n_bytes, t.kl)):
        if not best or trial.kl < best[-1].kl:
            best.append(trial)
    return best


def fitting_trial(
    found: Sequence[SizeTrial], budget: int | None, max_kl: float | None
) -> SizeTrial:
    """Return the trial of least divergence within a budget, or the smallest below a divergence.

    Raises
    ------
    InputError
        If no trial fits; the error names the nearest.
    """
    below = [t for t in found if budget is None or t.n_bytes <= budget]
    if not below:
        near = min(found, key=lambda t: t.n_bytes)
        raise InputError(
            f"--budget: none of the tried settings needs at most {budget:,} bytes; the nearest "
            f"is {near} with {near.n_bytes:,} bytes. Layers that the method leaves out keep their "
            "size."
        )
    if max_kl is None:
        return min(below, key=lambda t: t.kl)
    fine = [t for t in below if t.kl <= max_kl]
    if not fine:
        near, more = min(below, key=lambda t: t.kl), "" if budget is None else " within --budget"
        raise InputError(
            f"--max-kl: none of the tried settings{more} has a KL divergence of at most "
            f"{max_kl:g} nats; the nearest is {near} with {near.kl:.3g} nats. Raise --max-kl."
        )
    return min(fine, key=lambda t: t.n_bytes)


def pairs_to_seek(method: str) -> list[tuple[str, str]]:
    """Return the pairs of size and method to search for a budget; for ``any`` all default pairs.

    Raises
    ------
    InputError
        If the method is unknown, or has no size.
    """
    if method == ANY:
        return [*USUAL, *SHAPES]
    has = {f.name for f in fields(method_asked(method, None, {}))}
    sizes = [size for name, own in OWN_SIZES.items() if name in has for size in own]
    pairs: list[tuple[str, str]] = []
    for size in sizes:
        try:
            method_asked(method, Target.of(size), {})
        except InputError:  # such as one bit of a method that knows no fewer than two
            continue
        pairs.append((size, method))
    if not pairs:
        raise InputError(
            f"--budget and --max-kl: the size of method {method} cannot be searched. Use "
            "--method gptq, or --method any."
        )
    return pairs


def asked_pairs(sizes: Sequence[str], methods: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs that a search tries: all default pairs, or the requested sizes and methods.

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
    sizes_asked = sizes or tuple(dict.fromkeys(size for size, _ in USUAL))
    pairs, refused = list[tuple[str, str]](), list[str]()
    for method in methods:
        method_asked(method, None, {})  # an unknown word is refused here
        for size in sizes_asked:
            try:
                method_asked(method, Target.of(size), {})
            except InputError as error:
                refused.append(str(error))
            else:
                pairs.append((size, method))
    if not pairs:
        raise InputError(refused[0])
    return pairs


def _default(size: str) -> str:
    from sonde.run.compressing.methods import word_for

    return word_for(Target.of(size))
