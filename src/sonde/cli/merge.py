"""``sonde merge``: join bundles that were fitted separately."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from sonde.cli.console import note, say_json
from sonde.cli.options import Printing, named
from sonde.core.wording import plural


@dataclass(frozen=True)
class Merge:
    """Merge files that were fitted separately, without their rows.

    Example: sonde merge a.sonde b.sonde -o both.sonde
    """

    bundles: Annotated[
        tyro.conf.Positional[tuple[Path, ...]],
        named("BUNDLE BUNDLE [...]", "files that sonde fit wrote on different data"),
    ]
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], help="file to write")] = Path(
        "merged.sonde"
    )
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Load, merge, save."""
        from sonde.cli._fitted import in_place_of
        from sonde.run.fitting.fitted import Fitted
        from sonde.run.fitting.merge import merge
        from sonde.store.outputs import check_file

        check_file(self.output)
        merged = merge(*(Fitted.load(path) for path in self.bundles))
        replaced = in_place_of(self.output)
        identity = merged.save(self.output)
        if self.printing.json:
            say_json({"file": str(self.output), "id": identity, "data": merged.header["data"]})
        examples = plural(merged.header["data"]["n_examples"], "example")
        note(f"wrote {self.output}: {examples}{replaced}")
        return 0
