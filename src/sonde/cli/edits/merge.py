"""``sonde edit merge``: join several models of the same base."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from sonde.cli.console import note, say_json
from sonde.cli.options import Printing, named
from sonde.core.errors import InputError

USES = {
    "arithmetic": ("weight",),
    "ties": ("weight", "density"),
    "dare": ("weight", "drop", "seed"),
    "slerp": ("weight",),
}
"""Which flags a method reads."""


@dataclass(frozen=True)
class MergeModels:
    """Join models that were trained from the same base, without any data.

    ties adds what the models agree on, arithmetic all that they changed, dare a random tenth of it,
    slerp goes half way from BASE to one other model. Memory stays below that of one model.

    Differs: takes models and no data; sonde merge joins fitted .sonde files, not models.

    Example: sonde edit merge sonde:stdlib sonde:stdlib -o NEW --method ties
    """

    models: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        named("BASE MODEL [...]", "the base, then models that were trained from it"),
    ]
    output: Annotated[
        Path, tyro.conf.arg(aliases=["-o"], metavar="NEW", help="folder for the merged model")
    ]
    method: Annotated[
        Literal["arithmetic", "ties", "dare", "slerp"], tyro.conf.arg(help="how they are merged")
    ] = "ties"
    weight: Annotated[
        float | None,
        named("W", "of what is added (arithmetic 0.3, ties 1), or the way to go (slerp 0.5)"),
    ] = None
    density: Annotated[float | None, named("SHARE", "of entries that ties keeps (0.2)")] = None
    drop: Annotated[float | None, named("SHARE", "of entries that dare drops (0.9)")] = None
    seed: Annotated[int | None, named("N", "of what dare drops (0)")] = None
    keep: Annotated[
        tuple[str, ...], named("PATTERN ...", "tensors that stay the base's: 'classifier.*'")
    ] = ()
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Merge, and say what was written."""
        from sonde.engine.progress import Bar
        from sonde.weights.folder import ModelFolder, folder_of
        from sonde.weights.merging import merge_models, method_of

        base, *others = self.models
        if not others:
            raise InputError(f"edit merge: expected a base and at least one model, got {base}.")
        rule = self._rule()
        n_tensors = len(ModelFolder.open(folder_of(base)).places)
        with Bar("merge", n_tensors, not self.printing.quiet) as bar:
            tick: Callable[[int], Any] = bar.advance
            found = merge_models(base, others, rule, self.output, self.keep, tick)
        facts = {
            "folder": str(found.folder),
            "method": method_of(rule),
            "n_merged": found.n_merged,
            "n_kept": found.n_kept,
            "sources": list(found.sources),
        }
        if self.printing.json:
            say_json(facts)
        kept = f", {found.n_kept} kept of the base" if found.n_kept else ""
        note(f"wrote {self.output}: {found.n_merged} tensors by {method_of(rule)}{kept}")
        return 0

    def _rule(self) -> Any:
        from sonde.edit import Dare, Slerp, TaskArithmetic, Ties

        flags = ("weight", "density", "drop", "seed")
        typed = {name: getattr(self, name) for name in flags if getattr(self, name) is not None}
        unused = [name for name in typed if name not in USES[self.method]]
        if unused:
            raise InputError(f"--{unused[0]}: {self.method} does not read it.")
        if self.method == "dare":
            weight = {"weight": typed.pop("weight")} if "weight" in typed else {}
            return Dare(**typed, then=TaskArithmetic(**weight))
        return {"arithmetic": TaskArithmetic, "ties": Ties, "slerp": Slerp}[self.method](**typed)
