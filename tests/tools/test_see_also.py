"""The section "See also" of a method: its commands are accepted, its links lead somewhere."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from sonde.run.compressing.compare_caches import cache_kinds
from sonde.run.explaining.explanations import find_attributor
from sonde.run.instruments.catalogue import method_of, methods
from sonde.run.instruments.listing import listed

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pages():
    sys.path.insert(0, str(ROOT))
    try:
        yield importlib.import_module("tools.see_also")
    finally:
        sys.path.remove(str(ROOT))


def test_commands_accept_the_words_that_the_pages_print(pages):
    """Words are taken by the command's own look-up, so ``h2_o`` for H2O fails."""
    accepts = {
        "fit": method_of,
        "--methods": find_attributor,
        "--rules": lambda word: cache_kinds()[word],
    }
    n_checked = 0
    for entry in listed():
        for command in pages.commands_of(entry):
            words = shlex.split(command)
            for flag, look_up in accepts.items():
                if flag in words:
                    assert look_up(words[words.index(flag) + 1]) is not None, command
                    n_checked += 1
    assert n_checked > 100


def test_a_page_links_pages_that_name_the_method_and_methods_of_its_family(pages):
    text = "\n".join(pages.see_also(methods()["mmd"]))
    assert "../howto/compare_two_fits.md" in text
    assert "shots/drift.webp" in text
    assert "`sonde fit mmd MODEL DATA -o monday.sonde`, then `sonde drift" in text
    near = re.findall(r"\]\((\w+)\.md\)", text)
    assert {"fourier_mmd", "frechet"} <= {*near}
    assert {methods()[word].family for word in near} == {"detect"}


def test_a_section_of_the_reference_links_pages_that_name_its_word_and_exports_of_its_kind(pages):
    text = "\n".join(pages.see_also_export("compress", "PruneChannels"))
    assert "`sonde compress MODEL DATA --method prune_channels`" in text
    assert "../howto/compress.md" in text  # which names the word alone
    assert "- **Picture**: [Quantisation: what it costs](../gallery.md)" in text
    near = re.search(r"\*\*Related\*\*: (.*)", text)[1]
    assert "`compress.DropBlocks`" in near
    kinds = {e.export: e.kind for e in listed() if e.family == "compress"}
    assert {kinds[name] for name in re.findall(r"`compress\.(\w+)`", near)} == {"rewrite"}
    assert not pages.relatives(next(e for e in listed() if e.kind == "function"))


def test_a_word_of_prose_does_not_name_a_method(pages):
    pattern = pages._pattern(("norms", "Norms"))
    assert not pattern.search("`x = norms(y)` and the norms of rows, probe.sonde")
    assert pattern.search("sonde fit knn,norms MODEL")
    assert pattern.search("`norms`")
    assert pattern.search("```python\nNorms()\n```")
