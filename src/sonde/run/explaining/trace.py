"""Patches, their estimates and the circuit of text pairs, as one document."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch

from sonde.core.errors import SondeError, StateError
from sonde.core.finite import finite_json
from sonde.core.inputs import Model
from sonde.engine.progress import Bar
from sonde.explain import (
    ActivationPatching,
    AttributionPatching,
    Circuit,
    CircuitSearch,
    PatchEffects,
)
from sonde.explain._runs import TwoRuns
from sonde.run.explaining.pairs import EncodedPair, TextPair, encoded

SCHEMA: Final = "sonde-trace/1"
MOST_EDGES: Final = 40


@dataclass(frozen=True, eq=False)
class Traced:
    """Results for one pair of texts."""

    pair: EncodedPair
    patched: PatchEffects
    estimated: PatchEffects
    circuit: Circuit | None
    no_circuit: str

    @property
    def gap(self) -> float:
        """Root mean square of estimates minus patches, as a fraction of the runs' difference."""
        return float((self.estimated.value - self.patched.value).square().mean().sqrt())


def trace(
    model: Model,
    pairs: Sequence[TextPair],
    sites: Sequence[str] = ("blocks",),
    how: Literal["denoise", "noise"] = "denoise",
    *,
    progress: bool = True,
) -> list[Traced]:
    """Return for each pair the states that cause the difference between its two runs.

    Parameters
    ----------
    model : Model
        A language model with its tokenizer.
    pairs : sequence of TextPair
    sites : sequence of str, default=("blocks",)
        Whose positions are patched.
    how : {"denoise", "noise"}, default="denoise"
    progress : bool, default=True

    Raises
    ------
    InputError
        If texts or answers do not fit, with the pair.
    """
    given: list[EncodedPair] = []
    for number, pair in enumerate(pairs):
        try:
            given.append(encoded(model, pair))
        except SondeError as error:
            if len(pairs) > 1:
                error.add_note(f"pair {number}")
            raise
    results: list[Traced] = []
    alone = len(given) == 1
    with Bar("trace", len(given), shown=progress and not alone) as bar:
        for pair in given:
            results.append(_traced(model, pair, sites, how, progress and alone))
            bar.advance(1)
    return results


def _traced(
    model: Model,
    pair: EncodedPair,
    sites: Sequence[str],
    how: Literal["denoise", "noise"],
    progress: bool,
) -> Traced:
    runs = TwoRuns(model, pair.clean, pair.corrupt, pair.goal)
    places = runs.sites(sites)
    patched = ActivationPatching(how).between(runs, places, progress=progress)
    estimated = AttributionPatching(how, check=0).between(runs, places)
    circuit, why = None, ""
    try:
        circuit = CircuitSearch().between(runs)
    except StateError as error:
        why = str(error)
    return Traced(pair, patched, estimated, circuit, why)


def trace_document(
    traced: Sequence[Traced], *, model: str, data: str | None, how: str, show_inputs: bool
) -> dict[str, Any]:
    """Return the JSON of a trace, ``sonde-trace/1``.

    Parameters
    ----------
    traced : sequence of Traced
    model : str
    data : str or None
        The file that pairs came from, as the user typed it.
    how : str
    show_inputs : bool
        Whether the document holds the tokens as text.
    """
    return {
        "schema": SCHEMA,
        "model": model,
        "data": data,
        "how": how,
        "n": len(traced),
        "n_dropped": sum(one.patched.n_dropped for one in traced),
        "sites": list(traced[0].patched.sites),
        "pairs": [finite_json(_pair(one, how, show_inputs)) for one in traced],
    }


def _pair(one: Traced, how: str, show_inputs: bool) -> dict[str, Any]:
    sides = ("corrupt", "clean")  # the run that is patched, and the one that states come from
    base, source = sides if how == "denoise" else sides[::-1]
    best = one.patched.best(8)
    return {
        "tokens": one.pair.clean_pieces if show_inputs else None,
        "corrupt_tokens": one.pair.corrupt_pieces if show_inputs else None,
        "objective": one.patched.conventions["objective"],
        "restart": one.patched.conventions["restart"],
        base: float(one.patched.base),
        source: float(one.patched.source),
        "dropped": bool(one.patched.n_dropped),
        "patched": one.patched.value.tolist(),
        "estimated": one.estimated.value.tolist(),
        "gap": one.gap,
        "best": [{"site": site, "position": i, "share": share} for site, i, share in best],
        "no_circuit": one.no_circuit or None,
        "circuit": None if one.circuit is None else _circuit(one.circuit),
    }


def _circuit(found: Circuit) -> dict[str, Any]:
    order = found.needed.argsort(descending=True, stable=True).tolist()
    return {
        "n_edges": len(found.edges),
        "n_all": len(found.all_edges),
        "faithfulness": float(torch.as_tensor(found.value)),
        "random": float(torch.as_tensor(found.null)),
        "without": found.complement,
        "edges": [
            {
                "writer": found.edges[i][0],
                "reader": found.edges[i][1],
                "needed": float(found.needed[i]),
            }
            for i in order[:MOST_EDGES]
        ],
    }
