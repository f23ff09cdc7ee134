"""Tested attributions on disk, from which a stopped explanation continues."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from sonde.core.errors import StateError
from sonde.core.inputs import InputBatch, Model
from sonde.core.state import State, digest
from sonde.explain import Attribution, Attributor, Objective
from sonde.explain.attribution import ExplainedInput
from sonde.files.state_file import read_state, write_state
from sonde.run.explaining.judged import TESTS, Judged
from sonde.tap import fingerprint, forward_code, model_record

FORMAT: Final = "sonde-judged"


@dataclass(frozen=True)
class AttributionState(State):
    """Tensors of an attribution. A missing gap is stored as an empty tensor."""

    value: Tensor
    objective: Tensor
    gap: Tensor


@dataclass(frozen=True)
class KeptExplanations:
    """The attributions of one explanation that are already tested.

    Parameters
    ----------
    directory : Path or None
        None keeps nothing.
    asked : str
        Hash of the model, the inputs and how they are explained. Only files with this hash are
        used.
    """

    directory: Path | None
    asked: str = ""

    @classmethod
    def of(
        cls,
        directory: Path | None,
        model: Model,
        batch: InputBatch,
        objective: Objective,
        site: str,
        n_random: int,
    ) -> "KeptExplanations":
        """Return the stored attributions of an explanation of these inputs."""
        if directory is None:
            return cls(None)
        keys = [key.hex() for key in batch.keys]
        weights = fingerprint(model.module, full=True)
        model_facts = [weights, model_record(model.module), forward_code(model.module)]
        asked = [model_facts, keys, repr(objective), site, n_random]
        return cls(directory, digest(json.dumps(asked)))

    def judged(self, method: Attributor, judge: Callable[[], Judged]) -> Judged:
        """Return the stored attribution of a method; else test the method and store the result."""
        if self.directory is None:
            return judge()
        path = self.directory / f"{digest([self.asked, digest(method)])[:16]}.sonde"
        if path.exists():
            try:
                return _read(path)
            except StateError:  # damaged: judged again
                pass
        result = judge()
        self.directory.mkdir(parents=True, exist_ok=True)
        _write(path, result)
        return result


def remove_kept(directory: Path | None) -> None:
    """Remove the stored attributions, and the directory if it is then empty."""
    if directory is None or not directory.exists():
        return
    for path in directory.glob("*.sonde"):
        path.unlink()
    if not any(directory.iterdir()):
        directory.rmdir()


def _write(path: Path, one: Judged) -> None:
    attribution = one.found
    empty = torch.zeros(0)
    gap = empty if attribution.gap is None else attribution.gap.detach().cpu()
    value = torch.as_tensor(attribution.value).detach().cpu()
    state = AttributionState(value, attribution.objective.detach().cpu(), gap)
    facts = {
        "word": one.word,
        "n": attribution.n,
        "flags": list(attribution.flags),
        "conventions": attribution.conventions,
        "feature_axis": attribution.feature_axis,
        "explained": [asdict(one) for one in attribution.inputs],
        **{name: getattr(one, name) for name in TESTS},
    }
    write_state(path, {"format": FORMAT, "judged": json.dumps(facts)}, {"found": state})


def _read(path: Path) -> Judged:
    header, states = read_state(path, {"found": AttributionState})
    state, facts = states["found"], json.loads(header["judged"])
    assert isinstance(state, AttributionState)
    attribution = Attribution(
        value=state.value,
        objective=state.objective,
        gap=state.gap if len(state.gap) else None,
        n=facts["n"],
        flags=tuple(facts["flags"]),
        conventions=facts["conventions"],
        feature_axis=facts["feature_axis"],
        inputs=tuple(
            ExplainedInput(one["name"], tuple(one["shape"]), one["axis"])
            for one in facts.get("explained", ())
        ),
    )
    return Judged(facts["word"], attribution, **{name: facts[name] for name in TESTS})
