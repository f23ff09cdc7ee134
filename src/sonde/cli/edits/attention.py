"""``sonde edit attention``: which layers of a model need to look far."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sonde.cli._presenting import check_page, present
from sonde.cli.options import DataWord, DeviceWord, MaxLength, ModelWord, Printing, named
from sonde.core.errors import InputError

if TYPE_CHECKING:
    from sonde.edit import LimitAttention
    from sonde.run.judging.attention_costs import PatternCost

EXAMPLES, SEED = 32, 0
PORT = ":probs"


@dataclass(frozen=True)
class LimitPattern:
    """Say which layers need to look far: what a pattern costs at the attention of each.

    Each layer in turn looks only at the keys inside the pattern, while the other layers stay as
    they are. The cost is how far the model's answers to DATA move. Nothing is written but a page.

    Patterns: window:8 (8 tokens to each side), window:8:4 (every 4th of them), global:2:8 (and the
    first 2 tokens), block:16, axial and stripes:2 (with --grid), random:0.25.

    Differs: asks where attention must be long; trace finds single heads and edges, ablate and
    steer change states.

    Example: sonde edit attention sonde:stdlib sonde:stdlib/test --pattern window:8 --limit 16
    """

    model: ModelWord
    data: DataWord
    pattern: Annotated[str, named("PATTERN", "where a token may look, e.g. window:8")] = "window:8"
    sites: Annotated[str, named("SITES", "attentions, e.g. layers.3; default: all blocks")] = (
        "blocks"
    )
    strength: Annotated[float, tyro.conf.arg(help="share of the attention outside that goes")] = 1.0
    grid: Annotated[str | None, named("HxW", "height and width in patches, for images (7x7)")] = (
        None
    )
    prefix: Annotated[int, named("N", "tokens before the patches that see all (class token)")] = 0
    tolerance: Annotated[float, named("NATS", "a layer that costs more needs to look far")] = 0.01
    limit: Annotated[int, named("N", "examples to measure on, drawn from all")] = EXAMPLES
    text_column: Annotated[str | None, named("NAME", "column of the text")] = None
    max_length: MaxLength = None
    device: DeviceWord = "auto"
    report: Annotated[Path | None, named("FILE", "page to write, .html or .json")] = None
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Measure every layer, print the table, and write the page if one was asked for."""
        from sonde.data import load, open_inputs
        from sonde.run.judging.attention_costs import pattern_costs

        check_page(self.report, flag="--report")
        edit = self._edit()
        model = load(self.model, device=self.device)
        typed = {"text_column": self.text_column, "max_length": self.max_length}
        options = {name: value for name, value in typed.items() if value is not None}
        whole = open_inputs(model, self.data, **options)
        inputs = whole if len(whole) <= self.limit else whole.drawn(self.limit, SEED)
        sites = [s if ":" in s else s + PORT for s in self.sites.split(",")]
        found = pattern_costs(model, inputs, edit, sites, progress=not self.printing.quiet)
        document = self._document(found, len(inputs))
        present(document, self.printing, self.report)
        return 0

    def _edit(self) -> "LimitAttention":
        """Return the edit of the flags.

        Raises
        ------
        InputError
            If the pattern or the grid cannot be read.
        """
        from sonde.edit import LimitAttention

        grid = None
        if self.grid is not None:
            high, _, wide = self.grid.lower().partition("x")
            if not (high.isdigit() and wide.isdigit()):
                raise InputError(f"--grid: expected HxW such as 7x7, got {self.grid!r}.")
            grid = (int(high), int(wide))
        return LimitAttention(self.pattern, grid, self.prefix, strength=self.strength)

    def _document(self, found: "tuple[PatternCost, ...]", n: int) -> dict[str, Any]:
        from sonde.run.judging.attention_costs import ALL
        from sonde.run.judging.edit_document import EditTable, edit_document

        layers = [cost for cost in found if cost.site != ALL]
        far = [cost for cost in layers if cost.is_far(self.tolerance)]
        rows = tuple(
            (
                cost.site.removesuffix(PORT),
                cost.kl.value,
                cost.kl.se,
                None if cost.loss is None else cost.loss.value,
                cost.outside,
                "" if cost.site == ALL else "far" if cost.is_far(self.tolerance) else "near",
            )
            for cost in found
        )
        title = (
            f"Cost of {self.pattern} at each layer alone: divergence of the answers and its "
            "standard error, rise of the cross-entropy (both in nats per answer), and the share of "
            "attention outside the pattern. A layer needs to look far if the divergence exceeds "
            f"{self.tolerance:g} nats by two standard errors"
        )
        columns = ("layer", "KL", "se", "loss", "outside", "looks")
        return edit_document(
            "attention",
            None,
            model=self.model,
            method=f"LimitAttention({self.pattern!r}), strength {self.strength:g}",
            places=[cost.site for cost in layers],
            target=f"answers to {self.data}, {n} examples",
            neutral=self.data,
            tables=[EditTable(title, columns, rows)],
            notes=[_verdict(self.pattern, layers, far, found[-1])],
        )


def _verdict(
    pattern: str,
    layers: "list[PatternCost]",
    far: "list[PatternCost]",
    together: "PatternCost",
) -> str:
    """Return which layers need to look further than the pattern, in one sentence."""
    whole = (
        f"all {len(layers)} together cost {together.kl.value:.2g} nats" if len(layers) > 1 else ""
    )
    if not far:
        worst = max(layers, key=lambda cost: cost.kl.value)
        said = f"No layer clearly needs to look further than {pattern}: alone, each costs at most "
        return said + f"{worst.kl.value:.3g} nats" + (f" ({whole})." if whole else ".")
    names = _short([cost.site for cost in layers])
    order = sorted(far, key=lambda cost: -cost.kl.value)
    shown = ", ".join(f"{names[c.site]} ({c.kl.value:.2g})" for c in order[:3])
    more = f" and {len(order) - 3} more" if len(order) > 3 else ""
    said = f"{len(far)} of {len(layers)} layers need to look further than {pattern}: {shown}{more}"
    return said + (f"; {whole}." if whole else " nats.")


def _short(sites: list[str]) -> dict[str, str]:
    """Return the parts of each site by which it differs from the others."""
    parts = [site.removesuffix(PORT).split(".") for site in sites]
    differs = [len({*column}) > 1 for column in zip(*parts, strict=False)]
    if len({len(part) for part in parts}) > 1 or sum(differs) != 1:
        return {site: site.removesuffix(PORT) for site in sites}
    i = differs.index(True)
    return {
        site: ".".join(part[max(0, i - 1) : i + 1]) for site, part in zip(sites, parts, strict=True)
    }
