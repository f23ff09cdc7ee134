"""What a reader sees before a scan: the symptoms, by heading, that findings explain."""

from collections.abc import Mapping
from typing import Final, Literal

Symptom = Literal[
    "near chance",
    "worse in production",
    "below probe",
    "confused classes",
    "weak group",
    "commonest label",
    "confidence",
    "shortcut",
    "shared rows",
    "sorted rows",
    "not finite",
    "explosion",
    "massive activations",
    "quantised",
    "random outputs",
    "batch",
    "padding",
    "future",
    "dead units",
    "rank collapse",
    "useless block",
    "untrained",
    "neural collapse",
    "label errors",
    "class order",
    "unreadable labels",
    "drift",
    "change in file",
    "sentinels",
    "redundant columns",
    "other tokenizer",
    "unknown tokens",
    "markup",
    "duplicates",
    "text form",
    "shared words",
    "withheld",
]

SYMPTOMS: Final[Mapping[str, Mapping[Symptom, str]]] = {
    "Accuracy is low or has fallen": {
        "near chance": "Accuracy is near chance, the loss of the training run was fine",
        "worse in production": "Accuracy is lower in production than in the notebook",
        "below probe": "Accuracy is far lower than a linear probe on the states reaches",
        "confused classes": "One class is never right, or two are confused",
        "weak group": "One group of inputs is much worse",
        "commonest label": "Barely better than always giving the commonest label",
        "confidence": "Too confident, or too unsure",
    },
    "Accuracy is suspiciously high": {
        "shortcut": "A watermark, a column or a phrase gives the label away (shortcut)",
        "shared rows": "Test rows also occur in the training data",
        "sorted rows": "Rows are sorted, or neighbours in the file resemble each other",
    },
    "NaN, infinities, numbers that blow up": {
        "not finite": "States are NaN or infinite",
        "explosion": "Activations explode or vanish with depth",
        "massive activations": "Massive activations, outlier dimensions",
        "quantised": "Quantised weights or states",
    },
    "The output changes when it should not": {
        "random outputs": "The same input gives different outputs (dropout left on)",
        "batch": "The batch changes the output of a row",
        "padding": "Padding changes the output; left padding without position ids",
        "future": "A causal model sees later tokens",
    },
    "The network does not use its capacity": {
        "dead units": "Dead neurons, saturated units, duplicate units",
        "rank collapse": "Rank collapse, anisotropy, over-smoothing",
        "useless block": "A block that does nothing, or harms",
        "untrained": "Weights that were not loaded, layers that look untrained",
        "neural collapse": "Neural collapse; the label is clearest in a middle layer",
    },
    "Labels are wrong": {
        "label errors": "Label errors",
        "class order": "Class indices in another order",
        "unreadable labels": "Labels cannot be read from the states at all",
    },
    "Data changed (drift)": {
        "drift": "Production data differ from training data",
        "change in file": "Data change within a file",
    },
    "Dirty tables": {
        "sentinels": "Sentinel values such as -999, dates read as numbers, impossible numbers",
        "redundant columns": "Constant or redundant columns, identifiers, leaking columns",
    },
    "Dirty texts and images": {
        "other tokenizer": "The tokenizer of another model",
        "unknown tokens": "Unknown tokens, another language or script",
        "markup": "Mark-up, broken encoding, cut or blank inputs",
        "duplicates": "Duplicates and near-duplicates",
        "text form": "Wrong case, prefix, start token or positions",
        "shared words": "The same words in every text, words in random order",
    },
    "Too few rows": {
        "withheld": "A check was withheld",
    },
}
"""For each heading the symptoms, by the name that rules give."""
