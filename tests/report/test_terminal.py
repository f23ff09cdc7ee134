import re
import shlex
import subprocess
import sys

import pytest

from sonde.report import to_html, to_text
from sonde.report._first_screen import first_finding

LONG = "package.module.submodule.block_with_a_very_long_name"


def _with_long_names(report):
    report["provenance"]["model"]["name"] = f"/home/user/models/{LONG}/checkpoint-12000"
    report["provenance"]["data"]["name"] = f"/home/user/data/{LONG}.parquet"
    names = {row["site"]: f"{LONG}.{i}.{LONG}:out" for i, row in enumerate(report["sites"])}
    for row in report["sites"]:
        row["site"] = names[row["site"]]
    for finding in report["findings"]:
        finding["sites"] = [names[site] for site in finding["sites"]]
        finding["title"] += " with a title that somebody made far too long for one line of text"
    return report


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("verbose", [False, True])
def test_lines_fit(report, width: int, verbose: bool) -> None:
    report["partial"] = {"done": 1, "total": 3}
    for made in (report, _with_long_names(report)):
        for line in to_text(made, width, verbose=verbose).splitlines():
            assert len(line) <= width, line


def test_findings_stand_in_order_of_level_and_effect(report) -> None:
    text = to_text(report)
    codes = re.findall(r"^(?:ERROR|WARNING|note) +(SND\d+)", text, re.M)
    assert codes == ["SND004", "SND025", "SND052", "SND011", "SND016", "SND031", "SND034"]
    assert "+ warning SND026" in text
    assert "more     1 more finding: SND041" in text
    assert "ignored  SND051 (by you)" in text
    assert "SND042,\n         SND053 (SND004" in text


def test_a_bare_report_says_that_nothing_was_found(bare) -> None:
    assert "nothing found" in to_text(bare)
    assert to_text(bare, quiet=True) == "nothing found: m on m\n"


def test_a_comparison_says_where_how_many_and_which(report) -> None:
    versus = report["versus"]
    text = " ".join(to_text(report).split())
    best = max(versus["sites"], key=lambda row: row["auroc"] or 0.0)
    assert f"separated best at {best['site']}: AUROC" in text
    assert "of other.jsonl lie beyond the threshold" in text
    assert f"most anomalous of other.jsonl: {versus['rows'][0]['id']}" in text
    for row in versus["sites"]:
        row["low"] = 0.4
    assert "No site clearly separates support.jsonl from other.jsonl" in " ".join(
        to_text(report).split()
    )
    assert "against " not in to_text(report | {"versus": None}).partition("----")[2]


def test_quiet_is_the_verdict_the_first_finding_and_its_fix(report) -> None:
    first = first_finding(report)
    assert first is not None
    text = to_text(report | {"findings": [first | {"fix": "Do this."}]}, quiet=True)
    _, seen, advice = text.splitlines()
    assert first["code"] in seen
    assert advice == "advice: Do this."
    text = to_text(report, quiet=True)
    assert text.count("\n") == 2
    assert text.startswith(
        "1 error, 4 warnings, 4 notes; 3 withheld, 1 failed, 1 ignored: my-model"
    )


def test_a_plain_terminal_gets_ascii_and_the_same_lines(report) -> None:
    report["findings"][0]["title"] = "Größer als 字 – …"
    report["provenance"]["model"]["name"] = "modèle"
    text = to_text(report, ascii=True, verbose=True)
    text.encode("ascii")
    assert r"mod\xe8le" in text
    assert all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize("name", ["a\x1b[2J\x1b]0;title\x07b", "a\rb\nc", "a\u202eb", "a\x9bm"])
def test_names_cannot_drive_the_terminal(report, name: str) -> None:
    report["provenance"]["model"]["name"] = name
    report["findings"][0] |= {"title": name, "sentence": name, "next": name, "sites": [name]}
    report["checks"][0]["reason"] = name
    text = to_text(report, verbose=True)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)


@pytest.mark.slow
def test_a_table_of_sites_has_whole_names_and_a_store_is_named_once(report) -> None:
    head = next(s for s in to_text(report, verbose=True, width=110).splitlines() if "site  " in s)
    names = list(report["sites"][0]["values"])
    said = [name.replace("_", " ") for name in names if name.replace("_", " ") in head]
    assert said == [name.replace("_", " ") for name in names[: len(said)]]
    assert len(said) >= 4
    assert "~" not in head
    assert "…" not in head
    report["provenance"]["data"]["name"] = report["provenance"]["model"]["name"] = "acts"
    assert to_text(report).startswith("sonde scan  acts  ")
    assert "  on  " not in to_text(report).splitlines()[0]
    assert re.search("<h1>acts</h1>", to_html(report))


def test_colour_is_only_there_when_asked_and_changes_no_word(report) -> None:
    plain, painted = to_text(report), to_text(report, color=True)
    assert "\x1b" not in plain
    assert "\x1b[1;31mERROR\x1b[0m" in painted
    assert re.sub(r"\x1b\[[\d;]*m", "", painted) == plain


@pytest.mark.truth("shlex of the standard library, as a shell splits words")
def test_a_command_can_be_copied_although_it_is_broken(report) -> None:
    command = "sonde read 'my model' " + " ".join(f"--site-{i} layers.{i}.mlp" for i in range(12))
    report["findings"][0]["next"] = command
    lines = iter(to_text(report, 72).splitlines())
    part = next(line for line in lines if "->" in line)
    copied = part.split("-> ")[1]
    while copied.endswith("\\"):
        copied += "\n" + next(lines)
    assert shlex.split(copied.replace("\\\n", " ")) == shlex.split(command)


def test_a_closed_pipe_is_no_problem(report) -> None:
    """The text is a plain string: what a pipe does to it is what it does to ``cat``."""
    text = to_text(report)
    done = subprocess.run(
        [sys.executable, "-c", "import sys; print(sys.stdin.readline(), end='')"],
        input=text,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("sonde scan  my-model")
