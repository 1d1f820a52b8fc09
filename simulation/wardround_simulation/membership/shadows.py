"""Shadow runs: the same federation on random patients of the pools, to learn how a model looks without a patient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wardround.errors import WardroundError
from wardround_client.audit.walls import OneAgreement
from wardround_client.cohort.examples import Examples
from wardround_client.consent.agreement import Agreement
from wardround_client.hospital import Hospital
from wardround_client.privacy.ledger import Ledger
from wardround_client.round import OpenCohort, answer
from wardround_server.checkpoint import State
from wardround_server.rounds import run
from wardround_simulation.exact import ExactCohort
from wardround_simulation.in_memory import InMemoryCheckpointer
from wardround_simulation.membership.pool import Candidates, only

Told = Callable[[int, int], None]


@dataclass(frozen=True)
class Shadow:
    """One shadow run: the released state, and for each pool who took part in it, bool [candidates]."""

    state: State
    took_part: Sequence[npt.NDArray[np.bool_]]


def shadow_runs(
    pools: Sequence[Candidates], open_cohort: OpenCohort, *, runs: int, seed: int, told: Told
) -> list[Shadow]:
    """Train on random cohorts of the members' sizes, drawn from members and strangers alike.

    Two runs in a row share no patient as long as a pool has two strangers and members alike in number, so every
    candidate is absent from half of the runs at least.

    Args:
        pools: one a hospital, at least as many strangers as members in each.
        open_cohort: with or without privacy, as the run under attack.
        runs: how many.
        seed: of the draws.
        told: (done, total) after each.
    """
    generator = torch.Generator().manual_seed(seed)
    shadows: list[Shadow] = []
    orders: list[Tensor] = []
    for number in range(runs):
        if number % 2 == 0:
            orders = [torch.randperm(pool.examples.patients, generator=generator) for pool in pools]
        start = number % 2
        drawn = [order[start * pool.members :][: pool.members] for pool, order in zip(pools, orders, strict=True)]
        shadows.append(
            Shadow(_trained(pools, drawn, open_cohort), [_mask(p, d) for p, d in zip(pools, drawn, strict=True)])
        )
        told(number + 1, runs)
    return shadows


def _mask(pool: Candidates, drawn: Tensor) -> npt.NDArray[np.bool_]:
    mask = np.zeros(pool.examples.patients, dtype=np.bool_)
    mask[drawn.numpy()] = True
    return mask


def _trained(pools: Sequence[Candidates], drawn: Sequence[Tensor], open_cohort: OpenCohort) -> State:
    """The state after the federation's own round loop over stand-ins of the hospitals."""
    stand_ins = {p.name: _StandIn(p, only(p.examples, chosen)) for p, chosen in zip(pools, drawn, strict=True)}
    agreement = pools[0].agreement
    kept = InMemoryCheckpointer()
    transport, private = _Direct(stand_ins, open_cohort), open_cohort is not ExactCohort
    for _ in run(agreement.federation, agreement.model, transport, kept, run_name="shadow", private=private):
        pass
    assert kept.state is not None
    return kept.state


class _StandIn(Hospital):
    """A hospital with another cohort and a ledger of its own, which nobody's budget is counted in."""

    def __init__(self, pool: Candidates, cohort: Examples) -> None:
        super().__init__(pool.hospital.home, pool.hospital.config, Ledger(None))
        self.approvals, self._cohort = OneAgreement(self, pool.agreement), cohort

    def examples(self, agreement: Agreement) -> Examples:
        """The drawn cohort."""
        return self._cohort


class _Direct:
    """A `Transport` that is a function call."""

    def __init__(self, hospitals: Mapping[str, Hospital], open_cohort: OpenCohort) -> None:
        self._hospitals, self._open_cohort = hospitals, open_cohort

    def hospitals(self) -> Sequence[str]:
        """Everybody."""
        return sorted(self._hospitals)

    def declared_patients(self, name: str) -> int | None:
        """As in hospital.toml."""
        return self._hospitals[name].config.hospital.declared_patients

    def exchange(
        self, requests: Mapping[str, bytes], deadline_s: float
    ) -> Iterator[tuple[str, bytes | WardroundError]]:
        """One after the other."""
        for name, blob in requests.items():
            yield name, answer(self._hospitals[name], blob, self._open_cohort)
