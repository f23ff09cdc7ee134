"""``python -m tools.lm.healthy [MODEL]``: what a scan says of a healthy model on texts people have.

Prompts of one template, records, chats with one system prompt and lists of words are nothing like
the texts of a corpus, and nothing is wrong with the model. A cause, and a warning that blames the
model, are false; warnings about the texts themselves (copies, few rows) are listed too.
"""

import argparse
import inspect
import json
import logging
import random
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any, Final

from tools.lm.commands import parsed, write_part
from tools.lm.train_twin import FOLDER

import sonde

BEGIN, END = "<!-- printed by python -m tools.lm.healthy -->", "<!-- end of healthy texts -->"
PLACES: Final = (
    "France Paris,Germany Berlin,Italy Rome,Spain Madrid,Japan Tokyo,China Beijing,Egypt Cairo,"
    "Greece Athens,Norway Oslo,Sweden Stockholm,Finland Helsinki,Denmark Copenhagen,Poland Warsaw,"
    "Austria Vienna,Hungary Budapest,Portugal Lisbon,Ireland Dublin,Turkey Ankara,Iran Tehran,"
    "Iraq Baghdad,India Delhi,Thailand Bangkok,Vietnam Hanoi,Cuba Havana,Peru Lima,Chile Santiago,"
    "Canada Ottawa,Kenya Nairobi,Ghana Accra,Cyprus Nicosia,Malta Valletta,Iceland Reykjavik,"
    "Nepal Kathmandu,Ukraine Kyiv,Romania Bucharest,Bulgaria Sofia,Serbia Belgrade,Croatia Zagreb,"
    "Latvia Riga,Estonia Tallinn,Lithuania Vilnius,Belgium Brussels,Colombia Bogota,Ecuador Quito,"
    "Uganda Kampala,Libya Tripoli,Senegal Dakar,Mongolia Ulaanbaatar"
)
SYSTEM: Final = "You are a helpful assistant who answers in one sentence."
WAYS: Final = (("loved", "positive"), ("hated", "negative"), ("enjoyed", "positive"))
THINGS: Final = (
    "film movie picture drama comedy thriller story sequel remake series show documentary cartoon "
    "musical western mystery"
)


def kinds() -> dict[str, list[str]]:
    """Return texts by the name of their kind, forty or more of each."""
    draw = random.Random(0)
    pairs = [entry.split(" ") for entry in PLACES.split(",")]
    modules = (argparse, inspect, textwrap, random, json, logging)
    functions = [
        member
        for module in modules
        for member in vars(module).values()
        if inspect.isfunction(member) and member.__module__ == module.__name__
    ]
    notes = [note for member in functions if len(note := inspect.getdoc(member) or "") > 60]
    words = sorted({w for note in notes for w in note.lower().split() if w.isalpha()})
    sums = [(draw.randrange(100), draw.randrange(100)) for _ in pairs]
    return {
        "sentences of one form": [f"The capital of {a} is {b}." for a, b in pairs],
        "sums": [f"{a} + {b} = {a + b}" for a, b in sums],
        "records": [
            f"name: user{draw.randrange(900)}; age: {draw.randrange(18, 90)}; city: {b}"
            for _, b in pairs
        ],
        "prompts of one template": [
            "The following is a review. Decide whether it is positive or negative. "
            f"Review: I {way} this {thing}. Answer: {answer}"
            for way, answer in WAYS
            for thing in THINGS.split()
        ],
        "one instruction before each": [f"{SYSTEM} {note[:200]}" for note in dict.fromkeys(notes)],
        "functions": [inspect.getsource(member)[:400] for member in functions][:60],
        "lists of words": [" ".join(draw.sample(words, 12)) for _ in pairs],
        "hexadecimal numbers": ["".join(draw.choices("0123456789abcdef", k=32)) for _ in pairs],
    }


def chats(folder: Path) -> str:
    """Write chats with one system prompt as JSON lines, and return their path."""
    rows = [
        [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"Capital of {a}?"},
            {"role": "assistant", "content": f"The capital of {a} is {b}."},
        ]
        for a, b in (entry.split(" ") for entry in PLACES.split(","))
    ]
    path = folder / "chats.jsonl"
    path.write_text("\n".join(json.dumps({"messages": row}) for row in rows), encoding="utf-8")
    return str(path)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.lm.healthy", description=__doc__)
    parser.add_argument("model", nargs="?", default=str(FOLDER), help="a model folder")
    parser.add_argument("--only", default="", help="kinds whose name contains this text")
    typed = parsed(parser)
    model = sonde.load(typed.model)
    lines = [f"`{Path(typed.model).name}`\n", "| texts | cause | warnings | scan, s |"]
    lines.append("|---|---|---|---|")
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        given: dict[str, Any] = {**kinds(), "chats with one system prompt": chats(Path(folder))}
        for name, texts in given.items():
            if typed.only not in name:
                continue
            start = time.process_time()
            report = sonde.scan(model, texts, progress=False)
            seconds = time.process_time() - start
            loud = sorted({f["code"] for f in report.findings if f["level"] != "note"})
            cause = report.json().get("cause") or "none"
            lines.append(f"| {name} | {cause} | {', '.join(loud) or 'none'} | {seconds:.0f} |")
            print(lines[-1], flush=True)
    write_part(typed.page, BEGIN, END, "\n".join(lines))


if __name__ == "__main__":
    main()
