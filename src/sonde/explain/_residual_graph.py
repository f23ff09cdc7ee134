"""Edges of a residual stream: the layers that write to it and the modules that read each layer."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sonde.core.errors import StateError
from sonde.core.site import Site
from sonde.engine.progress import Bar
from sonde.explain._runs import Side, States, TwoRuns
from sonde.weights import residual_readers


@dataclass(frozen=True, eq=False)
class ResidualGraph:
    """Writers and readers of a residual stream, which is the sum of the writers' outputs.

    Parameters
    ----------
    writers : tuple of Site
        Outputs of layers whose states differ between the two runs, in order of execution.
    readers : tuple of Site
        Inputs of modules.
    edges : tuple of (int, int)
        Index of the writer and of the reader, in the order of readers.
    """

    writers: tuple[Site, ...]
    readers: tuple[Site, ...]
    edges: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, runs: TwoRuns) -> "ResidualGraph":
        """Return the graph of the model in two runs.

        Raises
        ------
        StateError
            If no module reads a sum of layers' outputs, or none of these outputs differs.
        """
        terms_of = residual_readers(runs.module, runs.inputs("clean"))
        names = dict.fromkeys(name for terms in terms_of.values() for name in terms)
        sites = [Site(name) for name in names]
        (_, clean), (_, corrupt) = (runs.states(side, sites) for side in ("clean", "corrupt"))
        writers = tuple(s for s in sites if not torch.equal(clean[s], corrupt[s]))
        readers = tuple(Site(name, port="in") for name in terms_of)
        at = {site.path: i for i, site in enumerate(writers)}
        edges = tuple(
            (at[name], v)
            for v, terms in enumerate(terms_of.values())
            for name in terms
            if name in at
        )
        if not edges:
            raise StateError(
                "edges: expected modules that read a sum of layers' outputs which differ "
                "between the two runs, found none: either a norm is applied to the residual "
                "stream itself, or the two runs are identical. Patch sites instead "
                "(ActivationPatching)."
            )
        return cls(writers, readers, edges)

    @property
    def names(self) -> tuple[tuple[str, str], ...]:
        """Names of the writer and the reader of each edge."""
        return tuple((str(self.writers[u]), str(self.readers[v])) for u, v in self.edges)

    def numbers(
        self,
        runs: TwoRuns,
        side: Side,
        other: States,
        swapped: Bool[Tensor, "case edge"],
        rows: int = 64,
        bar: Bar | None = None,
    ) -> Float[Tensor, "case pair"]:
        """Return the objective of a run in which some edges carry the states of the other run.

        Parameters
        ----------
        other : dict
            What the writers give in the other run.
        swapped : Bool[Tensor, "case edge"]
            Each case is a forward of its own, with these edges exchanged.
        """
        parts: list[Tensor] = []
        size = max(1, rows // max(runs.n, 1))
        for part in swapped.split(size):
            outputs = self.outputs(runs, side, other, part)
            parts.append(runs.number(side, outputs, len(part)).detach().reshape(len(part), -1))
            if bar is not None:
                bar.advance(len(part))
        return torch.cat(parts)

    def outputs(
        self, runs: TwoRuns, side: Side, other: States, swapped: Bool[Tensor, "case edge"]
    ) -> Any:
        """Return the model's outputs, with the batches of all cases concatenated."""
        times, current = len(swapped), dict[Site, Tensor]()
        by_reader: dict[Site, list[tuple[int, Site]]] = {}
        for e in swapped.any(0).nonzero().flatten().tolist():
            u, v = self.edges[e]
            by_reader.setdefault(self.readers[v], []).append((e, self.writers[u]))

        def act(site: Site, leaf: Tensor) -> Tensor | None:
            if site.port == "out":
                current[site] = leaf
                return None
            new = leaf
            for e, writer in by_reader[site]:
                whole = other[writer].repeat(times, *[1] * (other[writer].ndim - 1))
                chosen = swapped[:, e].to(leaf.device).repeat_interleave(len(leaf) // times)
                move = (whole - current[writer]).to(leaf)
                new = new + chosen.view(-1, *[1] * (leaf.ndim - 1)) * move
            return new

        needed = dict.fromkeys(writer for edges in by_reader.values() for _, writer in edges)
        return runs.acting(side, [*needed, *by_reader], act, times=times)
