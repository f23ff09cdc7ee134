"""Flags that documentation, help and messages name exist."""

import re
from pathlib import Path

from sonde.cli._usage import flag_names
from sonde.cli.commands import COMMANDS, SECOND
from sonde.cli.edits import EDITS

ROOT = Path(__file__).parents[2]
COMMAND = re.compile(r"sonde (?P<word>[a-z-]+)(?: (?P<second>[a-z-]+))?(?P<rest>[^`\"|;&]*)")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
ENDS = re.compile(r"\n\n|\n[$>]|\n *sonde |(?<!\\)\n(?! *-)|[.:] |, or |\)")


def known_flags():
    """Every command with its flags."""
    known = {word: {*flag_names(kind)} for word, kind in COMMANDS.items()}
    known |= {f"edit {word}": {*flag_names(kind)} for word, kind in EDITS.items()}
    for word, kinds in SECOND.items():
        known |= {f"{word} {second}": {*flag_names(kind)} for second, kind in kinds.items()}
    return known


def named_flags(text, known):
    """Every command with a flag that a text names for it, up to the end of its sentence."""
    for found in COMMAND.finditer(text):
        word = f"{found['word']} {found['second']}"
        word = word if word in known else found["word"]
        if word in known and word != "recipe":  # a recipe has parameters of its own
            for flag in FLAG.findall(ENDS.split(found[0])[0]):
                yield word, flag


def texts():
    folders = (("docs", "*.md"), ("src/sonde", "*.py"), ("examples", "*.ipynb"))
    files = [path for name, kind in folders for path in (ROOT / name).rglob(kind)]
    for path in [*files, ROOT / "README.md"]:
        # a message that is cut over two lines of code is one text
        yield path, re.sub(r'"\n\s*f?"', "", path.read_text("utf-8"))


def test_flags_that_a_text_names_exist():
    known = known_flags()
    wrong = [
        f"{path.relative_to(ROOT)}: sonde {word} {flag}"
        for path, text in texts()
        for word, flag in named_flags(text, known)
        if flag not in known[word]
    ]
    assert not wrong, "\n".join(wrong)


def test_a_flag_that_does_not_exist_is_seen():
    known = known_flags()
    text = "Run `sonde serve\n--tempo x`, or sonde edit steer M -h: `sonde scan --deep`."
    assert [*named_flags(text, known)] == [
        ("serve", "--tempo"), ("scan", "--deep")
    ]  # fmt: skip
    assert "--tempo" not in known["serve"]
    assert {"--id", "--class"} <= known["explain"]
