"""The diagnostic questions that the synthetic hospitals' labels answer."""

from __future__ import annotations

from typing import Any, Final

FINDINGS: Final = ("normal", "nodule", "diffuse", "effusion")
DEFAULT_TASK: Final = "finding"

TASKS: Final[dict[str, tuple[str, ...]]] = {
    "finding": FINDINGS,
    "malignant": ("no", "yes"),
    "urgent": ("no", "yes"),
}
"""Label column -> its classes, in the order of a model's outputs. The same in every modality.

finding: a compact nodule, diffuse disease (consolidation, oedema), or a layer of fluid (pleural, subdural).
malignant: a nodule with spicules. urgent: disease that takes up much of the organ.
"""

STUDIES: Final[dict[str, dict[str, Any]]] = {
    "outline": {"labels": "mask", "classes": ["background", "disease"]},
    "place": {"labels": "points", "classes": ["none", "nodule"]},
    "scan": {"label_column": DEFAULT_TASK, "classes": list(FINDINGS), "kind": "volume", "depth": 6},
    "scan-and-patient": {
        "label_column": DEFAULT_TASK,
        "classes": list(FINDINGS),
        "kind": "inputs",
        "inputs": [
            {"name": "scan", "kind": "volume", "depth": 6},
            {
                "name": "patient",
                "kind": "table",
                "features": ["age", "female"],
                "centre": [55, 0.5],
                "spread": [15, 0.5],
            },
        ],
    },
}
"""What can be learned from whole studies -> what it changes in the task.

outline: where disease is, pixel by pixel. place: where nodules are. scan: a finding from all slices of a series.
scan-and-patient: the same, with age and sex beside it.
"""


def is_of_series(task: Any) -> bool:
    """Whether an example of the task is made of a series. task: a `wardround.task.Task`."""
    return any(each.kind == "volume" for each in task.examples)
