"""The meta-learners, one file each with both halves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wardround.plugins import Kind

if TYPE_CHECKING:
    from wardround.meta.base import Algorithm

ALGORITHMS: Kind[Algorithm] = Kind("algorithm", "wardround.algorithms", "algorithm", "wardround.algorithms")
