# ruff: noqa: E501
"""Writes example.json: an invented scan of a 12-block language model, with every section filled.

Run ``python tests/report/make_example.py``; the tests check that the file is what this writes.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

PATH = Path(__file__).with_name("example.json")
SITES = [f"model.layers.{i}:out" for i in range(12)]
DIM, N, GROUPS = 768, 1797, 412
CLASSES = ["alarm", "billing", "delivery", "greeting", "refund", "shipping"]
CATALOGUE = {
    "SND001": "Non-finite states",
    "SND002": "The number format is too small",
    "SND004": "The same input gives different states",
    "SND005": "Part of the model is still training",
    "SND006": "The result for a row depends on other rows of the batch",
    "SND007": "Padding changes real tokens",
    "SND009": "Too few rows for some questions",
    "SND011": "Dead or constant units",
    "SND013": "Saturated units",
    "SND016": "A few units dominate",
    "SND017": "Special tokens dominate",
    "SND021": "Norms explode or vanish",
    "SND022": "Rank collapse",
    "SND023": "Rows nearly identical",
    "SND025": "A block that does almost nothing",
    "SND026": "A block makes the prediction worse",
    "SND031": "Labels are decoded best before the last layer",
    "SND033": "A class that cannot be separated from the others",
    "SND034": "Rows whose label is probably wrong",
    "SND041": "Duplicate inputs",
    "SND042": "Near-duplicate rows",
    "SND051": "The states of the two data sets differ",
    "SND052": "Out-of-distribution rows in OTHER",
    "SND053": "Look-alikes in DATA and OTHER",
}


def figure(name: str, value: float, unit: str, threshold: float, **more: Any) -> dict[str, Any]:
    """Return a figure with everything else at its usual value."""
    base = {"low": None, "high": None, "confidence": 0.95 if "low" in more else None}
    base |= {"null": None, "direction": "above", "p": None}
    base |= {"n_rows": N, "n_groups": GROUPS, "flags": []}
    head = {"name": name, "value": value, "unit": unit, "threshold": threshold}
    return {**head, **{key: more.get(key, base[key]) for key in base}}


def finding(code: str, level: str, theme: str, effect: float, **more: Any) -> dict[str, Any]:
    """Return a finding with everything else empty."""
    base = {"sentence": "", "why": "", "next": "", "because_of": None, "borderline": False}
    base |= {"common": False, "sites": [], "units": [], "rows": [], "classes": [], "figure": None}
    base |= {"how": "", "ignored": False}
    head = {
        "code": code,
        "level": level,
        "title": CATALOGUE[code],
        "theme": theme,
        "effect": effect,
    }
    return head | base | more


def serious() -> list[dict[str, Any]]:
    """Return an error and warnings, one folded under another."""
    command = "sonde read my-model support.jsonl --sites model.layers.7:out"
    return [
        finding(
            "SND004", "error", "run", 0.94, sites=SITES[7:],
            sentence="From layers.7 on, two runs of the same 8 rows differ by 63 % of the spread "
            "between rows; the limit is 0.1 %.",
            why="Nothing in this report can be repeated, and neither can the answers of this model: "
            "something draws random numbers although the model is in eval mode.",
            next=command, figure=figure("difference_per_spread", 0.63, "share", 0.001, n_rows=8, n_groups=8),
            how="Rule: rms difference of 8 rows between two runs under different seeds, over the rms "
            "spread between rows. At most 0.001 is a note, at most 0.1 a warning, above an error. "
            "Seed 0 and 1; the state of the random generators was restored.",
        ),
        finding(
            "SND025", "warning", "depth", 0.82, sites=SITES[8:11],
            sentence="Blocks 8-10 change what they receive by 0.9 % of its spread (0.8 to 1.0 %); "
            "below 5 % counts as almost nothing; other blocks 29-133 %. 1,797 rows.",
            why="A block that passes on its input spends time and memory on nothing. Similarity is "
            "a hint: the effect on answers was not tested.",
            next="sonde read my-model support.jsonl --sites model.layers.8:out",
            figure=figure("update_per_spread", 0.009, "share", 0.05, low=0.008, high=0.010, direction="below"),
            how="Rule: median over units of rms(out - in) / std(in) < 0.05. Statistic: diagonal "
            "moments of out - in over 1,797 pooled rows. Interval: influence function on 412 groups.",
        ),
        finding(
            "SND052", "warning", "versus", 0.61, sites=[SITES[11]], rows=["ticket-0311", "ticket-0907"],
            sentence="3.8 % of OTHER raise an alarm that was calibrated to 1 % (2.6 to 5.4 %). "
            "600 rows of OTHER, 899 rows for calibration.",
            why="These rows lie farther from the fitted data than rows of DATA do.",
            next="sonde read my-model other.jsonl --sites model.layers.11:out",
            figure=figure("alarm_rate", 0.038, "share", 0.02, low=0.026, high=0.054, null=0.01, p=4e-8),
            how="Mahalanobis fitted on half of the groups of DATA, calibrated on the other half; "
            "tail of the beta-binomial with (9, 891), because the threshold is estimated too.",
        ),
        finding(
            "SND011", "warning", "units", 0.55, sites=SITES[2:4], units=[3, 17, 101, 411], borderline=True,
            sentence="431 of 768 units at layers.2 are zero on all 1,797 rows, so they fire on fewer "
            "than 2.7 % of such inputs (99 % sure).",
            why="Capacity that nothing uses.", next="sonde read my-model support.jsonl --sites model.layers.2:out",
            figure=figure("dead_share", 0.561, "share", 0.5),
            how="Exactly zero on all real rows. Any is a note, half of the site a warning, 98 % an error.",
        ),
        finding(
            "SND026", "warning", "depth", 0.4, sites=[SITES[9]], because_of="SND025",
            sentence="Block 9 makes the next-token prediction worse by 0.07 nats (0.06 to 0.08); "
            "4,096 positions in 412 groups.",
            why="The model's own head reads less after this block than before it.",
            next="sonde read my-model support.jsonl --sites model.layers.9:out",
            figure=figure("loss_increase", 0.07, "nats", 0.05, low=0.06, high=0.08),
            how="Loss after the block minus before, paired by row; > 0.05 nats, > 3 % and z > 5.",
        ),
    ]  # fmt: skip


def notes() -> list[dict[str, Any]]:
    """Return notes, the last one silenced."""
    return [
        finding(
            "SND016", "note", "units", 0.7, sites=SITES[1:], units=[447], common=True,
            sentence="Unit 447 reaches 2,410 times the rms of the median unit from layers.1 on, the "
            "same on all rows: it acts as a bias.",
            why="Cosine and Euclidean distance, and 8-bit formats, see little else.",
            next="sonde read my-model support.jsonl --sites model.layers.1:out",
            figure=figure("max_per_rms", 2410.0, "ratio", 1000.0),
            how="max |x| of a unit over the rms of the median living unit >= 1000.",
        ),
        finding(
            "SND031", "note", "labels", 0.41, sites=[SITES[7]], common=True,
            sentence="Labels are read best at layers.7: 91.4 % of held-out rows, 4.1 points more "
            "than at the last site (2.9 to 5.3). 1,797 rows.",
            why="A classifier on the last site leaves accuracy on the table.",
            next="sonde read my-model support.jsonl --sites model.layers.7:out",
            figure=figure("accuracy_gain", 0.041, "share", 0.03, low=0.029, high=0.053, p=2e-9),
            how="Best site chosen on half of the sample, gain measured on the other half.",
        ),
        finding(
            "SND034", "note", "labels", 0.2, sites=[SITES[7]], rows=["ticket-1201", "ticket-0044"],
            sentence="21 of 1,797 rows (1.2 %) lie among rows of another label, and the held-out "
            "classifier agrees.", why="Such rows are worth a look before training on them.",
            next="sonde read my-model support.jsonl --sites model.layers.7:out",
            figure=figure("suspect_share", 0.0117, "share", 0.01),
            how="None of 10 nearest neighbours of other groups has the label, >= 9 share another one.",
        ),
        finding(
            "SND041", "note", "data", 0.12, rows=["ticket-0007"],
            sentence="0.6 % of the inputs are exact copies of another one (11 of 1,797 rows).",
            why="Scores and splits count them twice.", next="sonde read my-model support.jsonl",
            figure=figure("duplicate_share", 0.0061, "share", 0.0),
            how="1 - distinct / total over the 4,096 smallest content hashes.",
        ),
        finding(
            "SND051", "note", "versus", 0.1, sites=[SITES[5]], ignored=True,
            sentence="DATA and OTHER differ at layers.5: AUROC 0.66 (0.61 to 0.71); 0.5 is no difference.",
            why="The two data sets are not exchangeable.", next="sonde read my-model other.jsonl",
            figure=figure("auroc", 0.66, "", 0.6, low=0.61, high=0.71, confidence=0.998, null=0.5, p=3e-6),
            how="Closed-form direction fitted on half of the groups, AUROC on the other half.",
        ),
    ]  # fmt: skip


def checks(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the state of every check."""
    raised = {f["code"]: f["figure"] for f in found}
    states = {
        "SND042": ("withheld", "SND004: the state is not a function of the row"),
        "SND053": ("withheld", "SND004: the state is not a function of the row"),
        "SND033": ("withheld", "needs 30 rows in a class, smallest has 12 (alarm)"),
        "SND013": ("not_applicable", "no bounded activation at the listed sites"),
        "SND022": ("failed", "LinAlgError: eigenvalues did not converge"),
        "SND007": ("clear", "in 16 bit; rerun with --dtype float32 to be sure"),
    }
    out = []
    for code, title in CATALOGUE.items():
        state, reason = ("raised", None) if code in raised else states.get(code, ("clear", None))
        limit = None if code not in raised else f"limit {raised[code]['threshold']:g}"
        row = {"code": code, "title": title, "state": state, "reason": reason}
        out.append(row | {"figure": raised.get(code), "threshold": limit})
    return out


def sites(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return twelve sites whose figures look like those of a small language model."""
    depth = np.arange(12)
    values = {
        "median_norm": (9.0 * 1.16**depth, 0.01),
        "spread": (4.0 * 1.13**depth * rng.uniform(0.95, 1.05, 12), 0.015),
        "participation_ratio": (60 - 34 * np.sin(depth / 11 * 2.6) + rng.normal(0, 1, 12), 0.03),
        "update_per_spread": (np.where((depth > 7) & (depth < 11), 0.009, 0.29 + 1.04 * 0.7**depth), 0.04),
        "dead_share": (np.where((depth == 2) | (depth == 3), [0.561] * 12, 0.01 * rng.random(12)), 0),
        "anisotropy": (0.3 + 0.04 * depth, 0.01),
        "effective_rank": (210 - 9.0 * depth, 0.02),
    }  # fmt: skip
    x = np.unique(np.round(np.geomspace(1, DIM, 48))).astype(int)
    out = []
    for i, name in enumerate(SITES):
        spectrum = (x + 2.0) ** -(0.9 + 0.05 * i)
        white = (1 + np.sqrt(DIM / N) - 2 * np.sqrt(DIM / N) * x / DIM) ** 2
        total = np.interp(np.arange(1, DIM + 1), x, spectrum).sum()
        flat = np.interp(np.arange(1, DIM + 1), x, white).sum()
        numbers = {
            key: {"value": float(v[i]), "se": float(v[i] * se) if se else None, "null": None}
            for key, (v, se) in values.items()
        }
        curve = {"x": x.tolist(), "y": (spectrum / total).tolist(), "null": (white / flat).tolist()}
        row = {"site": name, "order": 3 * i + 2, "dim": DIM, "n_rows": N, "n_nonfinite": 0}
        row |= {"reducer": "mean", "module": "DecoderLayer"}
        out.append(row | {"values": numbers, "curves": {"spectrum": curve}})
    return out


def similarity(rng: np.random.Generator) -> dict[str, Any]:
    """Return a debiased CKA that falls with the distance of two blocks."""
    i = np.arange(12)
    apart = np.abs(i[:, None] - i[None, :]) * (1 + 0.12 * (11 - np.minimum(i[:, None], i[None, :])))
    cka = np.exp(-apart / 6.0) + np.triu(rng.normal(0, 0.01, (12, 12)), 1)
    cka = np.triu(cka) + np.triu(cka, 1).T
    cka[0, 10:] = cka[10:, 0] = 0.012
    se = np.full((12, 12), 0.008)
    return {"sites": SITES, "cka": cka.tolist(), "se": se.tolist(), "null": 0.0, "n_rows": N}


def labels() -> dict[str, Any]:
    """Return labels that are clearest at block 7."""
    curve = [0.42, 0.51, 0.6, 0.68, 0.76, 0.83, 0.89, 0.914, 0.905, 0.9, 0.895, 0.873]
    counts = [12, 410, 377, 402, 291, 305]
    recall = [None, 0.95, 0.9, 0.98, 0.84, 0.82]
    return {
        "column": "topic", "n_rows": N,
        "classes": [
            {"label": c, "n": n, "recall": r, "low": r and r - 0.03, "high": r and r + 0.02}
            for c, n, r in zip(CLASSES, counts, recall, strict=True)
        ],
        "sites": [{"site": s, "value": v, "se": 0.007} for s, v in zip(SITES, curve, strict=True)],
        "majority": 410 / N, "best": SITES[7],
        "confusions": [
            {"label": "shipping", "predicted": "delivery", "n": 41, "share": 41 / 305},
            {"label": "refund", "predicted": "billing", "n": 33, "share": 33 / 291},
        ],
    }  # fmt: skip


def answers() -> dict[str, Any]:
    """Return the loss of the model itself, as its last block has it."""
    last = {"site": SITES[11], "value": 2.31, "se": 0.02}
    head = {"measure": "nats_per_token", "value": 2.31, "low": 2.27, "high": 2.35, "per_byte": 0.56}
    rest = {"chance": 10.8, "commonest": 6.1, "last": last, "best": last}
    pairs = [
        {"label": "shipping", "predicted": "delivery", "n": 41, "share": 41 / 305},
        {"label": "refund", "predicted": "billing", "n": 33, "share": 33 / 291},
    ]
    counts = np.diag([12, 410, 377, 402, 258, 264])
    counts[5, 2], counts[4, 1] = 41, 33
    table = {
        "labels": CLASSES,
        "answers": CLASSES,
        "counts": counts.tolist(),
        "sizes": counts.sum(1).tolist(),
        "n_classes": len(CLASSES),
        "pairs": pairs,
    }
    return head | rest | {"n_rows": 4096, "n_groups": GROUPS, "confusion": table}


def prediction() -> dict[str, Any]:
    """Return a loss that falls with depth and rises a little at block 9."""
    loss = [5.9, 5.2, 4.6, 4.1, 3.75, 3.4, 3.1, 2.85, 2.78, 2.85, 2.7, 2.31]
    rows = [{"site": s, "value": v, "se": 0.02} for s, v in zip(SITES, loss, strict=True)]
    head = {"sites": rows, "unigram": 6.1, "final": 2.31, "unit": "nats"}
    return head | {"n_rows": 4096, "n_groups": GROUPS}


def versus(rng: np.random.Generator) -> dict[str, Any]:
    """Return an OTHER that differs a little."""
    auroc = 0.52 + 0.14 * np.sin(np.arange(12) / 11 * 2.8)
    edges = np.linspace(0, 60, 31)
    data = np.histogram(rng.gamma(9, 2, 899), edges)[0]
    other = np.histogram(np.r_[rng.gamma(9, 2, 577), rng.gamma(22, 2, 23)], edges)[0]
    shift = [
        {"site": s, "auroc": float(v), "low": float(v - 0.05), "high": float(v + 0.05), "p": 3e-6 if v > 0.6 else 0.2}
        for s, v in zip(SITES, auroc, strict=True)
    ]  # fmt: skip
    alarm = {"detector": "mahalanobis", "sites": SITES, "alpha": 0.01, "rate": 0.038, "low": 0.026}
    alarm |= {
        "high": 0.054,
        "threshold": 38.2,
        "n_cal": 899,
        "n": 600,
        "p": 4e-8,
        "guarantee": "marginal",
    }
    scores = {"edges": edges.tolist(), "counts_data": data.tolist()}
    scores |= {"counts_other": other.tolist(), "threshold": 38.2}
    rows = [
        {"id": f"ticket-{311 + 37 * i:04d}", "score": 58.1 - 1.3 * i, "p": 1 / 900}
        for i in range(12)
    ]
    detectors = [
        {"method": m, "site": SITES[i], "auroc": v, "low": v - 0.05, "high": v + 0.05}
        for m, i, v in (("Mahalanobis", 11, 0.68), ("KNN", 11, 0.64), ("Mahalanobis", 6, 0.61))
    ]
    profiles = [
        {"site": s, "values": {"spread": {"value": 4.4 + 1.1 * i, "se": None, "null": None}}}
        for i, s in enumerate(SITES)
    ]
    head = {
        "n_data": GROUPS,
        "n_other": 600,
        "detectors": detectors,
        "profiles": profiles,
        "sites": shift,
        "length_auroc": 0.53,
        "best": SITES[6],
    }
    lead = alarm | {
        "sites": SITES[11:],
        "rate": 0.067,
        "low": 0.042,
        "high": 0.102,
        "n": 300,
        "p": 2e-9,
    }
    return head | {"alarm": alarm, "lead": lead, "scores": scores, "rows": rows}


def rows(rng: np.random.Generator) -> dict[str, Any]:
    """Return named rows and a map with one cluster for each class."""
    centre = rng.normal(0, 4, (len(CLASSES), 2))
    points = []
    for i in range(400):
        k = int(rng.integers(len(CLASSES)))
        x, y = centre[k] + rng.normal(0, 1.1, 2)
        points.append(
            {
                "x": round(float(x), 3),
                "y": round(float(y), 3),
                "id": f"ticket-{i:04d}",
                "label": CLASSES[k],
            }
        )
    return {
        "mislabelled": [
            {"id": f"ticket-{1201 - 61 * i:04d}", "label": "refund", "predicted": "billing", "share": 1 - 0.05 * (i % 2)}
            for i in range(8)
        ],
        "far": [{"id": f"ticket-{900 + i:04d}", "site": SITES[0], "z": 6.4 - 0.3 * i} for i in range(6)],
        "duplicates": [{"ids": ["ticket-0007", "ticket-0008"], "n": 2, "labels": ["billing"]}],
        "near_duplicates": [{"id": "ticket-0100", "id2": "ticket-0512", "site": SITES[0], "ratio": 0.02}],
        "map": {"site": SITES[7], "axes": [0.31, 0.18], "by": "label", "points": points},
        "answers": answered(),
    }  # fmt: skip


def answered() -> list[dict[str, Any]]:
    """Return two wrong rows, the first with its place and a finding, and a right one."""
    return [
        {
            "id": "ticket-1201", "truth": "refund", "answer": "billing", "confidence": 0.97,
            "loss": 4.31, "right": False, "group": "c-88", "findings": {"SND034": 1.0},
            "places": ["support.jsonl, line 1201"],
        },
        {
            "id": "ticket-77", "truth": "shipping", "answer": "delivery", "confidence": 0.81,
            "loss": 2.1, "right": False, "group": "c-3", "findings": {},
        },
        {
            "id": "ticket-9", "truth": "alarm", "answer": "alarm", "confidence": 0.99,
            "loss": 0.01, "right": True, "group": "c-9", "findings": {},
        },
    ]  # fmt: skip


def units(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return bands of the units' rms and one unit that stands out."""
    out = []
    for i, site in enumerate(SITES):
        rms = np.sort(rng.lognormal(-1 + 0.1 * i, 0.5, DIM))
        if i in (2, 3):
            rms[:431] = 0.0
        bands = [float(v) for v in np.quantile(rms, [0, 0.25, 0.5, 0.75, 1])]
        big = {
            "unit": 447,
            "rms": 90.0 + i,
            "zero_share": 0.0,
            "max": 102.0 + i,
            "codes": ["SND016"],
        }
        row = {"site": site, "bands": bands, "n_dead": 431 if i in (2, 3) else 2, "n_constant": 0}
        out.append(row | {"named": [big] if i else []})
    return out


def provenance() -> dict[str, Any]:
    """Return where the report comes from."""
    data = {"n_examples": N, "n_rows": N, "n_groups": GROUPS, "group_column": "customer"}
    data |= {"label_column": "topic", "n_skipped": 2, "n_truncated": 14}
    model = {"name": "my-model", "fingerprint": "9c1fe0b3a6d2714f", "config_hash": "5d20b1c4"}
    model |= {"class": "LlamaForCausalLM", "n_parameters": 124_439_808, "dtype": "float32"}
    return {
        "model": model | {"device": "cpu", "attention": "sdpa", "mode": "eval"},
        "data": {"name": "support.jsonl", "fingerprint": "f00d5eed"} | data,
        "other": {"name": "other.jsonl", "fingerprint": "0ddba11", "n_examples": 600, "n_rows": 600},
        "reducer": "mean", "special_tokens": "left out (1,797 tokens)", "sites": "blocks", "seed": 0,
        "unit_size": 256, "workers": 1, "threads": 2, "thresholds": {"SND025.below": 0.05},
        "instruments": [
            {"name": "Moments(scatter='full')", "sites": 12, "rows": "pooled", "n_rows": N},
            {"name": "Moments(scatter='diag')", "sites": 12, "rows": "tokens", "n_rows": 81_204},
            {"name": "HashSample(2048)", "sites": 12, "rows": "pooled", "n_rows": N},
        ],
        "versions": {"python": "3.11.2", "sonde": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "started": "2026-11-20T09:15:02Z", "wall_seconds": 84.2, "peak_memory_bytes": 2_310_000_000,
        "state_id": "b2:77e1",
        "command": "sonde scan my-model support.jsonl --label-column topic --group customer --versus other.jsonl",
    }  # fmt: skip


def example() -> dict[str, Any]:
    """Return the whole report."""
    rng = np.random.default_rng(7)
    found = [*serious(), *notes()]
    states = checks(found)
    verdict = {level: sum(f["level"] == level and not f["ignored"] for f in found) for level in ("error", "warning", "note")}  # fmt: skip
    verdict |= {s: sum(c["state"] == s for c in states) for s in ("clear", "withheld", "not_applicable", "failed")}  # fmt: skip
    return {
        "schema": "sonde-scan/1", "verdict": verdict | {"ignored": 1}, "answers": answers(), "findings": found, "checks": states,
        "sites": sites(rng), "similarity": similarity(rng), "units": units(rng), "labels": labels(),
        "prediction": prediction(), "versus": versus(rng), "rows": rows(rng),
        "measures": [
            {"method": "two_nn", "site": site, "value": 5.0 + i, "se": 0.2, "n": 899, "unit": "",
             "n_values": 1, "direction": "higher", "flags": []}
            for i, site in enumerate(SITES)
        ],
        "not_measured": [{"method": "v_information", "reason": "it needs labels"}],
        "limits": [
            "Only this data was seen: another data set may show other things.",
            "Only the listed sites were read.",
            "Rows are averages over tokens; what happens to single tokens is hidden in them.",
            "No cause was tested: nothing was switched off.",
        ],
        "shows_inputs": False, "partial": None, "provenance": provenance(),
    }  # fmt: skip


def rounded(value: Any) -> Any:
    """Round every float to six significant digits, so that the file is the same everywhere."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    PATH.write_text(json.dumps(rounded(example()), indent=1) + "\n", "utf-8")
