"""``sonde edit attention``: find the layers of a model that need distant tokens."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from sonde.cli._presenting import check_page
from sonde.cli.edits._acting import show_change
from sonde.cli.options import DataWord, DeviceWord, MaxLength, ModelWord, Printing, named
from sonde.core.errors import InputError
from sonde.core.renaming import renamed

EXAMPLES = 32


@renamed(max_kl="tolerance")
@dataclass(frozen=True)
class LimitPattern:
    """Report which attention layers need distant tokens, by restricting each to a pattern.

    Each layer in turn attends only to the keys inside the pattern, while the other layers are
    unchanged. The cost is the divergence of the model's answers to DATA. Only a page is written.

    Patterns: window:8 (8 tokens to each side), window:8:4 (every 4th of them), global:2:8 (and the
    first 2 tokens), block:16, axial and stripes:2 (with --grid), random:0.25.

    Differs: finds layers that need long attention; trace finds single heads and edges, ablate and
    steer change states.

    Example: sonde edit attention sonde:stdlib sonde:stdlib/test --pattern window:8 --limit 16
    """

    model: ModelWord
    data: DataWord
    pattern: Annotated[
        str, named("PATTERN", "tokens that a token may attend to, e.g. window:8")
    ] = "window:8"
    sites: Annotated[
        str, named("SITES", "attention layers, e.g. layers.3; default: all blocks")
    ] = "blocks"
    strength: Annotated[
        float, tyro.conf.arg(help="fraction of the attention outside the window to remove")
    ] = 1.0
    grid: Annotated[str | None, named("HxW", "height and width in patches, for images (7x7)")] = (
        None
    )
    prefix: Annotated[
        int, named("N", "tokens before the patches that attend to everything (class token)")
    ] = 0
    max_kl: Annotated[
        float, named("NATS", "nats; a layer needs distant tokens if its divergence is larger")
    ] = 0.01
    limit: Annotated[int, named("N", "number of examples to measure on, sampled from all")] = (
        EXAMPLES
    )
    text_column: Annotated[str | None, named("NAME", "column of the text")] = None
    max_length: MaxLength = None
    device: DeviceWord = "auto"
    report: Annotated[Path | None, named("FILE", "page to write, .html or .json")] = None
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Measure every layer, print the table, and write the page if requested."""
        from sonde.run.changing.limit_attention import limit_attention

        check_page(self.report, flag="--report")
        typed = {"text_column": self.text_column, "max_length": self.max_length}
        change = limit_attention(
            self.model,
            self.data,
            self.pattern,
            sites=self.sites,
            strength=self.strength,
            grid=self._grid(),
            prefix=self.prefix,
            max_kl=self.max_kl,
            limit=self.limit,
            device=self.device,
            progress=not self.printing.quiet,
            **{name: value for name, value in typed.items() if value is not None},
        )
        return show_change(change, self.report, self.printing)

    def _grid(self) -> tuple[int, int] | None:
        """Return height and width; raise InputError if they cannot be read."""
        if self.grid is None:
            return None
        high, _, wide = self.grid.lower().partition("x")
        if not (high.isdigit() and wide.isdigit()):
            raise InputError(f"--grid: expected HxW such as 7x7, got {self.grid!r}.")
        return int(high), int(wide)
