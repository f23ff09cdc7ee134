"""Find turns of phrase in docstrings, and names of locals, that a stranger has to read twice.

    python tools/check_language.py [FOLDER ...]

The list is of patterns that stood in for a plain sentence: a pronoun for a noun ("of which",
"what it is of"), "where there is none" for "if X is missing", "one" twice in a sentence. A pattern
can be wrong about a sentence: rewrite the sentence all the same, since the next reader stumbles
too. Doctests and lines of code are not read.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("src", "packages", "tools", "benchmarks")
VAGUE = frozenset({"found", "told", "made", "said", "known", "mine"})
"""Names that no local variable may have: it is called by what it holds."""
PATTERNS = {
    r"\b(?:out )?of which\b(?! (?:kind|type|size|order))": "name the thing again",
    r"\bwhere (?:there (?:is|are) none|none is|it is none|there is no such)\b": "if X is missing",
    r"\bNone where\b": "None if",
    r"\bwhat (?:it|they|this|that) (?:is|are) of\b": "name the thing",
    r"\b(?:one|a row|a token|row|rows) in so many\b|\bso many\b": "say the number's name",
    r"\bhangs? on\b": "depends on",
    r"\bheed(?:s|ed)?\b": "follow, or pay attention to",
    r"\bif it is none\b": "if it is missing, or if it is no X",
    r"\b(?:says?|tells?) so(?: where| if)\b": "raises, or warns",
    r"\bfor whom\b|\bof whom\b": "name them",
    r"\bas (?:it|they) (?:was|were) of\b": "name the thing",
}
COMPOUND = re.compile(
    r"\bone(?:-to-one| by one| after (?:the other|another)| pass| forward| alone| or (?:two"
    r"|several|more)| at a time| another)\b|\bone-\w+|\b(?:at least|at most|only|exactly) one\b"
)
SENTENCE = re.compile(r"(?<=[.;:])\s+")


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the first line's number and the text of every docstring of a file."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, text


def prose(text: str) -> str:
    """Return a docstring without its examples, references, literals and code."""
    text = re.split(r"\n(?:Examples|References)\n-+\n", text)[0]
    text = re.sub(r"``[^`]*``", "X", text)
    kept = [line for line in text.splitlines() if not line.lstrip().startswith((">>>", "..."))]
    return " ".join(line.strip() for line in kept)


def found(text: str) -> list[str]:
    r"""Return what stands in a docstring that should not.

    Examples
    --------
    >>> found("Return the rows, None where there is none.")
    ["'where there is none': if X is missing", "'None where': None if"]
    >>> found("Return whether one sample is one of groups.")
    ["'one' twice in 'Return whether one sample is one of groups.'"]
    >>> found("Return the rows one by one, or None if the file is missing.")
    []
    """
    plain = prose(text)
    hits = [
        f"{match.group(0)!r}: {better}"
        for pattern, better in PATTERNS.items()
        for match in re.finditer(pattern, plain)
    ]
    head = text.split("\n\n")[0].replace("\n", " ")
    for sentence in SENTENCE.split(head):
        if len(re.findall(r"\bone\b", COMPOUND.sub("", sentence))) >= 2:
            hits.append(f"'one' twice in {sentence!r}")
    return hits


def vague_locals(tree: ast.Module) -> Iterator[tuple[int, str]]:
    r"""Yield the line and the name of every local variable with a vague name.

    Examples
    --------
    >>> list(vague_locals(ast.parse("def f(x):\\n    found = x\n    return found")))
    [(2, 'found')]
    """
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    for function in (n for n in ast.walk(tree) if isinstance(n, functions)):
        for node in ast.walk(function):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in VAGUE:
                yield node.lineno, node.id


def main() -> int:
    """Print every hit and return the exit code."""
    folders = [Path(word).resolve() for word in sys.argv[1:]] or [ROOT / f for f in FOLDERS]
    total = 0
    for path in sorted(p for folder in folders for p in folder.rglob("*.py")):
        if path.name == Path(__file__).name:
            continue
        for line, text in docstrings(ast.parse(path.read_text(encoding="utf-8"))):
            for hit in found(text):
                print(f"{path.relative_to(ROOT)}:{line}: {hit}")
                total += 1
    for path in sorted((ROOT / "src").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for line, name in sorted(set(vague_locals(tree))):
            print(f"{path.relative_to(ROOT)}:{line}: {name!r}: name what the variable holds")
            total += 1
    print(f"{total} turns of phrase to say plainly" if total else "docstrings read plainly")
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
