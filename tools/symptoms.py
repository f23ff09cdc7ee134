"""The page of findings by symptom: what a reader sees, and the codes that look for it."""

from collections.abc import Iterable

from sonde.findings.catalogue import rule_classes

SYMPTOMS: dict[str, dict[str, str]] = {
    "Accuracy is low or has fallen": {
        "Accuracy is near chance, the loss of the training run was fine": "015 038 036 003 068",
        "Accuracy is lower in production than in the notebook": "015 012 051 055 028",
        "Accuracy is far lower than a linear probe on the states reaches": "037 015 038 026",
        "One class is never right, or two are confused": "046 033 038 061 062",
        "One group of inputs is much worse": "061 063 064",
        "Barely better than always giving the commonest label": "039 036 071",
        "Too confident, or too unsure": "069",
    },
    "Accuracy is suspiciously high": {
        "A watermark, a column or a phrase gives the label away (shortcut)": "065 074 048 035",
        "Test rows also occur in the training data": "053 041 042",
        "Rows are sorted, or neighbours in the file resemble each other": "047 044",
    },
    "NaN, infinities, numbers that blow up": {
        "States are NaN or infinite": "001 002",
        "Activations explode or vanish with depth": "021 020",
        "Massive activations, outlier dimensions": "016 017",
        "Quantised weights or states": "018 002",
    },
    "The output changes when it should not": {
        "The same input gives different outputs (dropout left on)": "004 005",
        "The batch changes the output of a row": "006 012",
        "Padding changes the output; left padding without position ids": "007 008",
        "A causal model sees later tokens": "019",
    },
    "The network does not use its capacity": {
        "Dead neurons, saturated units, duplicate units": "011 013 014",
        "Rank collapse, anisotropy, over-smoothing": "022 023 024 027",
        "A block that does nothing, or harms": "025 026 010",
        "Weights that were not loaded, layers that look untrained": "003 070 068 010",
        "Neural collapse; the label is clearest in a middle layer": "032 031",
    },
    "Labels are wrong": {
        "Label errors": "034",
        "Class indices in another order": "038",
        "Labels cannot be read from the states at all": "036 033",
    },
    "Data changed (drift)": {
        "Production data differ from training data": "051 052 055 054",
        "Data change within a file": "049 047",
    },
    "Dirty tables": {
        "Sentinel values such as -999, dates read as numbers, impossible numbers": "072 075",
        "Constant or redundant columns, identifiers, leaking columns": "073 048 074",
    },
    "Dirty texts and images": {
        "The tokenizer of another model": "029 082",
        "Unknown tokens, another language or script": "066 067 076 078 079",
        "Mark-up, broken encoding, cut or blank inputs": "077 043 045",
        "Duplicates and near-duplicates": "041 042",
        "Wrong case, prefix, start token or positions": "028",
        "The same words in every text, words in random order": "080 081",
    },
    "Too few rows": {
        "A check was withheld": "009",
    },
}
"""For each heading the symptoms, and for each symptom the numbers of its codes."""


def symptoms_page() -> str:
    """Return the page; every code stands under a symptom."""
    rules = rule_classes()
    missing = set(rules) - {code for rows in SYMPTOMS.values() for code in _codes(rows.values())}
    if missing:
        raise ValueError(f"symptoms: no symptom names {', '.join(sorted(missing))}")
    parts = [
        "# Findings by symptom",
        "Each line links to the checks of `sonde scan` that explain the symptom. Run\n"
        "`sonde scan MODEL DATA -o report.html`; the report names the code.",
    ]
    for head, rows in SYMPTOMS.items():
        lines = ["| symptom | findings |", "|---|---|"]
        for symptom, numbers in rows.items():
            links = "; ".join(
                f"[{rules[code].title}](findings/{code.lower()}.md)" for code in _codes([numbers])
            )
            lines.append(f"| {symptom} | {links} |")
        parts += [f"## {head}", "\n".join(lines)]
    return "\n\n".join(parts)


def _codes(numbers: Iterable[str]) -> list[str]:
    """Return the codes of words of numbers."""
    return [f"SND{number}" for word in numbers for number in word.split()]
