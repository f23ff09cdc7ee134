"""``sonde edit undo`` and ``sonde compress undo``: restore a changed model."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from sonde.cli.console import note, say_json
from sonde.cli.options import Printing, named
from sonde.core.wording import plural


@dataclass(frozen=True)
class Undo:
    """Restore the original of a changed model, every file with its old hash.

    NEW.patch must lie beside NEW. If a model was edited several times, the last edit is undone
    first; run undo again on the result to undo the edit before.

    Differs: needs no data; other edits with strength 0 copy the model, undo restores the original.

    Example: sonde edit undo NEW -o OLD
    """

    model: Annotated[
        tyro.conf.Positional[Path],
        named("NEW", "the folder of a model that sonde edited or compressed"),
    ]
    output: Annotated[
        Path, tyro.conf.arg(aliases=["-o"], metavar="OLD", help="folder for the original model")
    ]
    printing: Printing = field(default_factory=Printing)

    def run(self) -> int:
        """Check the patch, write, and name the files written."""
        from sonde.weights import undo
        from sonde.weights.patch import Patch, patch_of

        facts = Patch.open(patch_of(self.model)).told if patch_of(self.model).is_dir() else {}
        undo(self.model, self.output)
        files = facts["before"]
        if self.printing.json:
            say_json({"folder": str(self.output), "model": facts["model"], "files": files})
        note(f"restored {facts['model']} to {self.output}: {plural(len(files), 'file')}")
        return 0
