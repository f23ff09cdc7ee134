"""The page of findings by symptom: what a reader sees, and the codes that look for it."""

from sonde.findings.catalogue import rule_classes
from sonde.findings.symptoms import SYMPTOMS


def symptoms_page() -> str:
    """Return the page; every code stands under a symptom."""
    rules = rule_classes()
    missing = [code for code, cls in rules.items() if not cls.symptoms]
    if missing:
        raise ValueError(f"symptoms: no symptom names {', '.join(missing)}")
    parts = [
        "# Findings by symptom",
        "Each line links to the checks of `sonde scan` that explain the symptom. Run\n"
        "`sonde scan MODEL DATA -o report.html`; the report names the code.",
    ]
    for head, rows in SYMPTOMS.items():
        lines = ["| symptom | findings |", "|---|---|"]
        for name, symptom in rows.items():
            links = "; ".join(
                f"[{cls.title}](findings/{code.lower()}.md)"
                for code, cls in rules.items()
                if name in cls.symptoms
            )
            lines.append(f"| {symptom} | {links} |")
        parts += [f"## {head}", "\n".join(lines)]
    return "\n\n".join(parts)
