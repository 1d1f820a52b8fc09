"""What to agree on for a new task."""

from __future__ import annotations

from wardround.experience.row import Settings

DEFAULT: Settings = {
    "algorithm.name": "reptile",
    "algorithm.local_steps": 1.0,
    "algorithm.local_learning_rate": 1.0,
    "outer.learning_rate": 10.0,
    "privacy.clip_norm": 1.0,
    "rounds.rounds": 40.0,
}
"""What `wardround coordinator init` writes where nobody asked for anything else."""
