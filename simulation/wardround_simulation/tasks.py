"""The diagnostic questions that the synthetic hospitals' labels answer."""

from __future__ import annotations

from typing import Final

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
