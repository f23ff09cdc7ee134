"""``sonde edit WORD ...``: the commands that change a model, one file each.

A word is a frozen dataclass like every command. Its docstring says what it does in the first line,
gives one ``Example:`` that runs on a shipped model, and one line ``Differs:`` that keeps it apart
from its neighbours; ``sonde edit --help`` is made of these.
"""

import inspect
import re
import shutil
from textwrap import fill, indent
from typing import Any

from sonde.cli._table import filled
from sonde.cli.edits.ablate import AblateDirection
from sonde.cli.edits.attention import LimitPattern
from sonde.cli.edits.erase import EraseLabel
from sonde.cli.edits.find_backdoor import FindBackdoor
from sonde.cli.edits.forget import Forget
from sonde.cli.edits.judge import JudgeEdit
from sonde.cli.edits.merge import MergeModels
from sonde.cli.edits.rewrite_fact import RewriteFact
from sonde.cli.edits.steer import Steer
from sonde.cli.edits.undo import Undo

EDITS: dict[str, type[Any]] = {
    "ablate": AblateDirection,
    "attention": LimitPattern,
    "erase": EraseLabel,
    "find-backdoor": FindBackdoor,
    "forget": Forget,
    "judge": JudgeEdit,
    "merge": MergeModels,
    "rewrite-fact": RewriteFact,
    "steer": Steer,
    "undo": Undo,
}

_HEAD = """sonde edit WORD: change a model, and undo the change

Every edit is written as a new model: its folder is copied,
only the changed tensors are rewritten,
and NEW.patch beside it holds the original values.
"""
_FOOT = "`sonde edit WORD --help` shows the flags of a word."


def overview() -> str:
    """Return the help of ``sonde edit``: each command's effect, limits and example."""
    width = shutil.get_terminal_size().columns
    parts = [_HEAD]
    for word, command in EDITS.items():
        summary = (inspect.getdoc(command) or "").partition("\n\n")[0]
        texts = (summary, f"Differs: {told_by(command, 'Differs')}")
        parts += [word, *(indent(fill(" ".join(x.split()), width - 2), "  ") for x in texts)]
        parts += [filled(f"  Example: {told_by(command, 'Example')}"), ""]
    return "\n".join([*parts, filled(_FOOT)])


def told_by(command: type[Any], label: str) -> str:
    """Return the paragraph of a command's docstring that begins with a label."""
    match = re.search(rf"^{label}: (.+?)(?:\n\n|\Z)", inspect.getdoc(command) or "", re.M | re.S)
    return match[1] if match else ""
