"""Ordinary texts that every installation of Python carries: paragraphs of prose, and chats.

Paragraphs are sentences from the help texts of Python's own library, without code or markup. Chats
ask what a function does, in the model's own template, and answer with its help text.
"""

import importlib
import inspect
import random
import re
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any, Final

MODULES: Final = (
    "argparse asyncio calendar cmd codecs collections copy difflib email fractions functools "
    "imaplib inspect json locale logging mimetypes numbers optparse os pathlib pickle platform "
    "random re sched shutil smtplib socket ssl statistics subprocess tarfile tempfile textwrap "
    "threading trace typing unittest urllib.request uuid warnings wave weakref zipfile"
)
_SENTENCE: Final = r"[A-Z][A-Za-z ,;'()\-]+\."
PROSE: Final = re.compile(rf"{_SENTENCE}(?: {_SENTENCE})*")
SHORTEST, LONGEST = 24, 48
"""Tokens of a paragraph."""


@cache
def _helped() -> tuple[tuple[str, str], ...]:
    """Return the names of functions and classes with the paragraphs of their help, in order."""
    with warnings.catch_warnings():  # parts of ``typing`` warn when they are looked at
        warnings.simplefilter("ignore")
        return tuple(dict.fromkeys(_members()))


def _members() -> Iterator[tuple[str, str]]:
    for name in MODULES.split():
        module = importlib.import_module(name)
        for path, member in _parts(module, name):
            for paragraph in (inspect.getdoc(member) or "").split("\n\n"):
                yield path, " ".join(paragraph.split())


def _parts(module: Any, name: str) -> Iterator[tuple[str, Any]]:
    yield name, module
    for key, member in sorted(vars(module).items()):
        is_own = str(getattr(member, "__module__", "")).startswith(name)
        if is_own and inspect.isfunction(member):
            yield f"{name}.{key}", member
        elif is_own and inspect.isclass(member):
            yield f"{name}.{key}", member
            methods = ((k, m) for k, m in sorted(vars(member).items()) if inspect.isfunction(m))
            yield from ((f"{name}.{key}.{k}", m) for k, m in methods)


def _fits(processor: Any, text: str) -> bool:
    return SHORTEST <= len(processor(text, add_special_tokens=False)["input_ids"]) <= LONGEST


def prose(processor: Any, n: int, seed: int = 0) -> list[str]:
    """Return ``n`` different paragraphs of 24 to 48 tokens, drawn by a seed."""
    every = dict.fromkeys(text for _, text in _helped() if PROSE.fullmatch(text))
    fits = [text for text in every if _fits(processor, text)]
    return random.Random(seed).sample(fits, n)


def turns(n: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return ``n`` questions with answers, drawn by a seed."""
    pairs = {text: path for path, text in _helped() if PROSE.fullmatch(text) and "." in path}
    drawn = random.Random(seed).sample(sorted(pairs), n)
    return [(f"What does {pairs[text]} do?", text) for text in drawn]


def chats(processor: Any, n: int, seed: int = 0) -> list[str]:
    """Return ``n`` chats of one question and its answer in the model's own template."""
    return [
        processor.apply_chat_template(
            [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}],
            tokenize=False,
        )
        for asked, answer in turns(n, seed)
    ]
