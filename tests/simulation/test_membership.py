"""An attacker finds who took part where nothing protects them, and no more than the promise allows where it does."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydicom import dcmread
from scipy.stats import multivariate_normal

from wardround.config import Federation
from wardround.models import Objective, build_model
from wardround_client.cohort.examples import Examples
from wardround_client.consent.agreement import Agreement
from wardround_client.hospital import Hospital
from wardround_client.privacy.ledger import Ledger
from wardround_client.privacy.per_patient import clipped_sum
from wardround_client.privacy.private_cohort import PrivateCohort
from wardround_client.round import OpenCohort
from wardround_simulation import membership
from wardround_simulation.audited import NO_STRANGERS, Recorder, infer_membership, summary
from wardround_simulation.exact import ExactCohort
from wardround_simulation.federation import changed, embedded, to_toml
from wardround_simulation.local import local_rounds
from wardround_simulation.membership.attacks import (
    Overlaps,
    answer_weights,
    calibrated,
    confidence,
    loss,
    patient_gradients,
)
from wardround_simulation.membership.pool import Candidates, joined, only, twin_of
from wardround_simulation.membership.shadows import shadow_runs
from wardround_simulation.opening import Ready
from wardround_simulation.phantoms import make_profiles, write_hospital
from wardround_simulation.settings import RUN, Settings
from wardround_simulation.sites import Site, hospital_toml
from wardround_simulation.watch import JsonWatch

FEATURES, CLASSES, MEMBERS, OTHERS = 40, 32, 20, 400
FEDERATION = Federation.model_validate(
    {
        "name": "overfit",
        "task": {
            "label_column": "y",
            "classes": [f"code-{i}" for i in range(CLASSES)],
            "kind": "table",
            "features": [f"f{i}" for i in range(FEATURES)],
        },
        "model": {"family": "logistic"},
        "outer": {"learning_rate": 10.0, "momentum": 0.8},
        "rounds": {"rounds": 40, "quorum": 2},
    }
)


def strangers(count: int, seed: int, images: int = 1) -> Examples:
    """Patients whose labels say nothing about their features: what a model knows of them, it has memorised."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count * images, FEATURES, generator=generator)
    y = torch.randint(CLASSES, (count,), generator=generator).repeat_interleave(images)
    return Examples(z, y, torch.arange(count).repeat_interleave(images), z, CLASSES)


class HospitalOf(Hospital):
    """A hospital that is given its examples."""

    def __init__(self, home: Path, cohort: Examples) -> None:
        of = Hospital.open(home, ledger=Ledger(None))
        super().__init__(home, of.config, of.ledger)
        self._cohort = cohort

    def examples(self, agreement: Agreement) -> Examples:
        return self._cohort


def run(folder: Path, federation: Federation, open_cohort: OpenCohort) -> tuple[list[Candidates], membership.Released]:
    """Train two small hospitals, and make their strangers."""
    (folder / "out").mkdir(parents=True)
    file = folder / "federation.toml"
    file.write_text(to_toml(federation))
    sites, hospitals, agreements, pools = [], [], [], []
    for number, name in enumerate(("a", "b")):
        site = Site(name, folder / name, folder / name, took_part=True, declared_patients=MEMBERS)
        Hospital.create(site.home, hospital_toml(site, federation, "cpu"), ledger=Ledger(None))
        hospital = HospitalOf(site.home, strangers(MEMBERS, number))
        agreement = hospital.approvals.approve(file)
        sites.append(site)
        hospitals.append(hospital)
        agreements.append(agreement)
        pools.append(Candidates.of(hospital, agreement, strangers(OTHERS // 2, 10 + number)))
    private = open_cohort is PrivateCohort
    settings = Settings(federation, folder, folder / "out", hospitals=2, privacy=private, workers=1)
    ready = Ready(settings, sites, hospitals, agreements, open_cohort)
    recorder = Recorder(ready, RUN)
    for event, state in local_rounds(ready):
        recorder.note(event, state)
    return pools, recorder.released()


def silent(stage: str, done: int, total: int) -> None:
    pass


def attacked(folder: Path, federation: Federation, open_cohort: OpenCohort) -> dict[str, Any]:
    pools, released = run(folder, federation, open_cohort)
    return membership.infer(pools, released, open_cohort, step=silent, shadows=4)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return attacked(tmp_path_factory.mktemp("exact"), FEDERATION, ExactCohort)


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    federation = changed(FEDERATION, privacy={"epsilon": 1.0})
    return attacked(tmp_path_factory.mktemp("private"), federation, PrivateCohort)


def by_name(found: dict[str, Any]) -> dict[str, Any]:
    return {attack["name"]: attack for attack in found["attacks"]}


def test_an_overfitted_model_without_privacy_gives_its_patients_away(exact: dict[str, Any]) -> None:
    attacks = by_name(exact)
    assert list(attacks) == ["loss", "calibrated", "deltas", "candidates", "everyone-else"]
    for name in ("loss", "calibrated"):
        point = attacks[name]["points"][1]
        assert point["fpr_high"] < point["tpr_low"]
        assert attacks[name]["auc"] > 0.85
    for name in ("candidates", "everyone-else"):  # nothing hides in sums without noise
        assert [point["tpr"] for point in attacks[name]["points"]] == [1.0, 1.0]
        assert attacks[name]["auc"] == 1.0
    assert exact["ceiling"] is None
    assert not any(point["passes_the_promise"] for attack in attacks.values() for point in attack["points"])


def test_under_epsilon_1_every_attack_stays_below_the_ceiling(private: dict[str, Any]) -> None:
    """P61: "Membership inference on the released model is reported as TPR at 0.1 % FPR." """
    attacks = by_name(private)
    assert len(attacks) == 5
    ceiling = dict(map(tuple, private["ceiling"]["tpr"]))
    assert 0.001 < ceiling[0.001] < 0.01 and 0.01 < ceiling[0.01] < 0.06
    for attack in attacks.values():
        for point in attack["points"]:
            assert not point["passes_the_promise"]
            assert point["fpr"] <= max(point["fpr_asked"], private["resolution"])
        assert attack["auc"] < 0.85


def test_a_promise_that_is_not_kept_is_noticed(tmp_path: Path) -> None:
    """The noise that is promised is left out: what is found passes what the promise allows."""
    federation = changed(FEDERATION, privacy={"epsilon": 1.0})
    pools, released = run(tmp_path, federation, ExactCohort)
    found = membership.infer(pools, replace(released, private=True), ExactCohort, step=silent, shadows=0)
    for name in ("loss", "everyone-else"):
        assert all(point["passes_the_promise"] for point in by_name(found)[name]["points"]), name


def test_the_finding_says_how_many_people_and_what_the_least_fpr_is(private: dict[str, Any]) -> None:
    assert (private["members"], private["non_members"]) == (2 * MEMBERS, OTHERS)
    assert private["resolution"] == 1 / (OTHERS + 1)
    assert not any(attack["points"][0]["resolved"] for attack in private["attacks"])  # 0.1 % of 400 is nobody
    assert all(attack["points"][0]["false_positives"] == 0 for attack in private["attacks"])
    assert (private["rounds_used"], private["rounds"], private["shadow_runs"]) == (40, 40, 4)


def test_the_finding_is_json_and_an_event_leaves_the_curves_out(private: dict[str, Any]) -> None:
    assert json.loads(json.dumps(private)) == private
    short = summary(private)
    assert "curve" not in short["ceiling"] and "roc" not in short["attacks"][0]
    assert len(json.dumps(short)) < 8000
    assert private["attacks"][0]["roc"][-1] == [1.0, 1.0]


@pytest.mark.parametrize("seed", range(3))
def test_who_knows_everybody_else_gets_the_likelihood_ratio(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    member = torch.tensor([True, False, True, True, False, False])
    answer = parts[member].sum(0) + torch.randn(9, generator=generator, dtype=torch.float64)
    scores = Overlaps(parts @ parts.T, parts @ answer, member, 1).everyone_else()
    for i in range(6):
        others = member.clone()
        others[i] = False
        rest = answer - parts[others].sum(0)
        ratio = -((rest - parts[i]).square().sum() - rest.square().sum()) / 2
        assert scores[i] == pytest.approx(float(ratio))


@pytest.mark.parametrize("seed", range(3))
def test_who_holds_every_candidate_gets_the_ratio_under_gaussian_others(seed: int) -> None:
    """By a dense computation: the others' coins replaced by a Gaussian of their mean and variance."""
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    member = torch.tensor([True, False, True, False, False])
    answer = parts[member].sum(0) + torch.randn(7, generator=generator, dtype=torch.float64)
    scores = Overlaps(parts @ parts.T, parts @ answer, member, 1).candidates()
    share = 2 / 5
    for i in range(5):
        rest = parts[torch.arange(5) != i]
        covariance = torch.eye(7, dtype=torch.float64) + share * (1 - share) * rest.T @ rest
        normal = multivariate_normal((share * rest.sum(0)).numpy(), covariance.numpy())
        assert scores[i] == pytest.approx(float(normal.logpdf(answer - parts[i]) - normal.logpdf(answer)))


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"name": "reptile", "local_steps": 3, "local_learning_rate": 0.5}, [0.5, 0.5, 0.5]),
        ({"name": "fedavg", "local_steps": 2, "local_learning_rate": 0.1}, [0.1, 0.1]),
        ({"name": "fomaml", "local_steps": 2, "local_learning_rate": 0.2}, [0.0, 0.0, 0.2]),
    ],
)
def test_what_a_delta_is_made_of_is_found_out_from_the_algorithm(choice: dict[str, Any], expected: list[float]) -> None:
    weights = answer_weights(changed(FEDERATION, algorithm=choice).algorithm)
    assert weights is not None and weights.tolist() == pytest.approx(expected)


def test_an_algorithm_of_episodes_is_left_out_with_a_reason(tmp_path: Path) -> None:
    federation = changed(FEDERATION, algorithm={"name": "maml"}, rounds={"rounds": 2}, privacy={"epsilon": 4.0})
    assert federation.algorithm.question == "episode_gradient"
    assert answer_weights(federation.algorithm) is None
    found = attacked(tmp_path, federation, PrivateCohort)
    assert list(by_name(found)) == ["loss", "calibrated"]
    assert len(found["left_out"]) == 3 and "not sums over single patients" in "".join(found["left_out"].values())


def test_gradients_of_candidates_are_what_their_hospital_adds_up() -> None:
    model = build_model(FEDERATION)
    objective = Objective(model, torch.zeros(FEATURES), torch.ones(FEATURES), None)
    theta = torch.randn(model.layout.size, generator=torch.Generator().manual_seed(1))
    cohort = strangers(9, 4)
    rows = torch.arange(9).unsqueeze(1)
    added = clipped_sum(objective, theta, cohort, rows, torch.ones_like(rows, dtype=torch.bool), 0.3)
    assert torch.allclose(patient_gradients(objective, theta, cohort, 0.3).sum(0), added, atol=1e-6)
    # Of several images each is clipped alone, and the patient adds one of them: on average their mean.
    several = strangers(3, 5, images=4)
    each = patient_gradients(objective, theta, flat(several), 0.3).view(3, 4, -1)
    assert torch.allclose(patient_gradients(objective, theta, several, 0.3), each.mean(1))
    assert float(patient_gradients(objective, theta, several, 0.3).norm(dim=1).max()) <= 0.3


def test_shadows_leave_every_candidate_out_of_half_of_them_and_have_the_size_of_the_run(tmp_path: Path) -> None:
    pools, released = run(tmp_path, changed(FEDERATION, rounds={"rounds": 2}), ExactCohort)
    told: list[tuple[int, int]] = []
    shadows = shadow_runs(pools, ExactCohort, runs=4, seed=0, told=lambda *done: told.append(done))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for place in range(2):
        masks = np.stack([shadow.took_part[place] for shadow in shadows])
        assert masks.sum(1).tolist() == [MEMBERS] * 4
        assert not (masks[0] & masks[1]).any() and not (masks[2] & masks[3]).any()
    # A candidate that no shadow has seen is compared with the mean over all of them.
    scores = calibrated(pools[0], released, shadows, 0)
    never = ~np.stack([shadow.took_part[0] for shadow in shadows]).any(0)
    mean = np.mean([confidence(pools[0], shadow.state) for shadow in shadows], axis=0)
    assert scores[never] == pytest.approx((confidence(pools[0], released.final) - mean)[never])


def test_a_loss_is_a_patients_mean_over_images(tmp_path: Path) -> None:
    pools, released = run(tmp_path, changed(FEDERATION, rounds={"rounds": 1}), ExactCohort)
    several = replace(pools[0], examples=strangers(5, 3, images=3))
    alone = replace(several, examples=flat(several.examples))
    assert loss(several, released) == pytest.approx(loss(alone, released).reshape(5, 3).mean(1))


def flat(examples: Examples) -> Examples:
    """Every image a patient of its own."""
    return replace(examples, patient=torch.arange(len(examples.y)))


def test_pools_are_joined_and_taken_apart_by_patient() -> None:
    first, second = strangers(3, 0, images=2), strangers(4, 1)
    both = joined(first, second)
    assert both.patients == 7 and len(both.y) == 10
    assert both.patient[-4:].tolist() == [3, 4, 5, 6]
    some = only(both, torch.tensor([5, 1]))
    assert some.patients == 2
    assert torch.equal(some.z, torch.cat([first.z[2:4], second.z[2:3]]))


def test_a_twin_has_the_same_scanners_and_other_patients(tmp_path: Path) -> None:
    profile = make_profiles(1, patients=(8, 8), seed=3)[0]
    twin = twin_of(profile, 8)  # as many, so that only the seed can make other people of them
    assert (twin.scanners, twin.prevalence, twin.name) == (profile.scanners, profile.prevalence, profile.name)
    people, pixels = [], []
    for name, one in (("own", profile), ("twin", twin)):
        with write_hospital(one, tmp_path / name).open(newline="") as file:
            people.append({row["PatientID"] for row in csv.DictReader(file)})
        pixels.append({dcmread(path).PixelData for path in (tmp_path / name).rglob("IM*")})
    assert [len(each) for each in people] == [8, 8] and not people[0] & people[1]
    assert len(pixels[0]) >= 8 and not pixels[0] & pixels[1]


def test_without_patients_of_the_same_kind_nothing_is_inferred_and_it_says_why(tmp_path: Path) -> None:
    ready = Ready(Settings(embedded(), tmp_path, tmp_path, data=tmp_path), [], [], [], PrivateCohort)
    assert infer_membership(ready, Recorder(ready, RUN), JsonWatch(io.StringIO())) == {"skipped": NO_STRANGERS}
