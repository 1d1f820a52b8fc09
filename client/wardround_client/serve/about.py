"""What every result says of itself: which model made it, what that model cost in privacy, and what it is not."""

from __future__ import annotations

from dataclasses import dataclass

from wardround import __version__
from wardround_client.serve.models import Served
from wardround_client.serve.study import MAKER

NO_DEVICE = "Not a medical device. Not a diagnosis."


@dataclass(frozen=True)
class About:
    """Of one model at one hospital. intended_use: the hospital's own words."""

    served: Served
    intended_use: str

    @property
    def title(self) -> str:
        """For a list of series: PS3.5 allows 64 characters."""
        return f"{self.served.name[:36]}: not a diagnosis"

    @property
    def epsilon(self) -> str:
        """What taking part cost each hospital's patients, as agreed, and what adapting did."""
        epsilon = self.served.adapted.federation.privacy.epsilon
        return f"epsilon {epsilon:g} for each patient of the hospitals that took part, over the whole run; adapted here"

    def lines(self) -> list[tuple[str, str]]:
        """By name; each at most 500 characters."""
        adapted = self.served.adapted
        release = adapted.release
        return [
            ("notice", NO_DEVICE),
            ("intended use", self.intended_use),
            ("model", self.served.name),
            ("model SHA-256", self.served.digest),
            ("federation", adapted.federation.name),
            ("federation SHA-256", release.federation),
            ("run and round", f"{release.run} {release.round}"),
            ("algorithm", adapted.federation.algorithm.name),
            ("privacy", self.epsilon),
            ("software", f"{MAKER} {__version__}"),
        ]
