"""What the questions of a recording came to: counts, refusals, and a page with examples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from flagscale_vla.data.shards import list_shards
from flagscale_vla.reports.outputs import replace_text
from flagscale_vla.reports.pages import write_report
from flagscale_vla.robots.embodiments import Embodiment, save_embodiments
from flagscale_vla.sim.questions.asking import Refusal
from flagscale_vla.sim.questions.pictures import read_examples
from flagscale_vla.sim.questions.wording import Kind

REFUSED = "refused.jsonl"
EXAMPLES = 3
"""Of each kind on the page."""

Counts = Mapping[tuple[str, str], int]
"""(task, kind) to samples, held-out ones among them"""


def count_questions(counts: Counts, refused: Sequence[Refusal]) -> dict[str, object]:
    """The figures of `summary.json`."""
    kinds: Counter[str] = Counter()
    for (_, kind), number in counts.items():
        kinds[kind] += number
    return {
        "questions": sum(kinds.values()),
        "questions_per_kind": {kind.value: kinds[kind.value] for kind in Kind},
        "questions_refused": len(refused),
        "questions_refused_per_kind": dict(Counter(refusal.kind for refusal in refused)),
    }


def conclude_questions(
    folder: Path, embodiments: Sequence[Embodiment], counts: Counts, refused: Sequence[Refusal]
) -> None:
    """Write embodiments, refusals and page beside the shards of questions."""
    folder.mkdir(exist_ok=True)
    save_embodiments(folder, embodiments)
    replace_text(folder / REFUSED, "".join(json.dumps(asdict(refusal)) + "\n" for refusal in refused))
    tasks = list(dict.fromkeys(task for task, _ in counts))
    rows = [{"task": task, "counts": [counts.get((task, kind.value), 0) for kind in Kind]} for task in tasks]
    reasons = Counter((refusal.kind, refusal.reason) for refusal in refused)
    values = {
        "figures": count_questions(counts, refused),
        "kinds": [kind.value for kind in Kind],
        "rows": rows,
        "reasons": reasons.most_common(),
        "refused": REFUSED,
        "examples": read_examples(list_shards(folder, "train"), EXAMPLES),
    }
    write_report(folder, "questions.html.j2", values)
