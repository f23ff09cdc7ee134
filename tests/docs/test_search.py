"""The search of the built site, run by its own script in a browser: the first page of each word."""

import importlib
import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FIRST = {
    "howto/choose_a_detector": "ood, OOD detection, out of distribution, anomaly, novelty",
    "howto/compress": "quantize, quantise, quantization, pruning, sparsity, int8, smaller model",
    "howto/wrong_normalisation": "normalize, normalise, normalization, preprocessing, bgr",
    "howto/train": "lora, peft, fine-tuning, finetune",
    "howto/insert_a_layer": "adapter",
    "howto/choose_a_loss": "distillation, knowledge distillation",
    "howto/search_documents": "embedding, sentence embeddings, retrieval, rag",
    "howto/own_data": "onnx, custom model",
    "howto/large_models": "gguf, out of memory",
    "howto/label_errors": "label noise, mislabeled, mislabelled",
    "howto/explain_an_answer": "attribution, saliency map, shap",
    "howto/judge_answers": "hallucination",
    "howto/probe_layers": "linear probing, linear probe",
    "howto/cache": "kv cache",
    "howto/forget": "unlearning, machine unlearning",
    "howto/edit_weights": "model merging",
    "howto/ablate": "abliteration, refusal",
    "howto/train_a_dictionary": "sae, superposition",
    "howto/choose_a_similarity": "representation similarity",
    "howto/compare_two_fits": "data drift",
    "howto/find_a_backdoor": "trojan",
    "howto/shortcuts": "spurious correlation, clever hans",
    "howto/calibrate": "conformal, false positive rate",
    "howto/trace_an_answer": "activation patching, causal tracing",
    "howto/export": "parquet",
    "howto/object_storage": "s3",
    "howto/cluster": "ray",
    "howto/watch_in_vllm": "vllm",
    "howto/gate": "pytest, ci",
    "howto/scikit_learn": "sklearn",
    "howto/serve_a_model": "deployment",
    "howto/find_copies": "memorization",
    "coming_from/captum": "captum",
}
"""Words as people type them, by the page that they look for."""


def queries() -> list[tuple[str, str]]:
    """Return each word with its page."""
    return [(word, page) for page, words in FIRST.items() for word in words.split(", ")]


@pytest.fixture(scope="module")
def spellings():
    sys.path.insert(0, str(ROOT))
    try:
        yield importlib.import_module("tools.search_words").spellings
    finally:
        sys.path.remove(str(ROOT))


def test_the_table_has_sixty_words():
    assert len(queries()) >= 60
    assert len({word for word, _ in queries()}) == len(queries())


def test_each_word_of_the_site_leads_to_one_page_that_exists():
    words = tomllib.loads((ROOT / "docs" / "search_words.toml").read_text("utf-8"))
    listed = [word for page in words.values() for word in page]
    assert sorted(listed) == sorted(set(listed))
    ignored = (ROOT / ".gitignore").read_text("utf-8")
    made = set(re.findall(r"^/docs/(\w+)(?:\.md|/)$", ignored, re.MULTILINE))  # by the build
    written = [page for page in words if page.partition("/")[0] not in made]
    assert [page for page in written if not (ROOT / "docs" / f"{page}.md").exists()] == []


@pytest.mark.parametrize(
    ("word", "other"),
    [
        ("quantise", "quantize"),
        ("Normalization", "normalisation"),
        ("behavior", "behaviour"),
        ("analysing", "analyzing"),
        ("mislabelled", "mislabeled"),
        ("center", "centre"),
    ],
)
def test_a_word_has_both_spellings(spellings, word, other):
    assert spellings(word) == {word.lower(), other}
    assert spellings("gradient") == {"gradient"}


@pytest.mark.slow
@pytest.mark.browser
def test_the_search_finds_the_page_of_each_word_first(site):
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as play:
        opened = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = opened.new_page()
        page.goto((site / "search.html").as_uri())
        page.wait_for_function("Search.hasIndex()")
        results = page.evaluate(
            """words => words.map(word => Search._performSearch(...Search._parseQuery(word))
                 .reverse().map(result => result[0]))""",
            [word for word, _ in queries()],
        )
        opened.close()
    wrong = {
        word: found[:3]
        for (word, wanted), found in zip(queries(), results, strict=True)
        if found[:1] != [wanted]
    }
    assert wrong == {}
    for_contributors = re.compile("decisions|measurements|overview|glossary|contributing")
    assert not [name for found in results for name in found if for_contributors.match(name)]
