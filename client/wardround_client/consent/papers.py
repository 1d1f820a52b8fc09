"""Papers that the law asks for: the record of processing, a draft of the impact assessment, a skeleton for the AI Act.

What the agreements, hospital.toml and the ledger say is filled in, with its source; all else is a gap. Law: GDPR =
Regulation (EU) 2016/679, AI Act = Regulation (EU) 2024/1689.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from wardround.labels import LABEL_KINDS
from wardround.schedule import QUESTIONS, Schedule
from wardround.text import counted, listed
from wardround_client.consent.facts import Agreed, Fact, Facts, Paper, gap, of_entries

_SPECIFICATION = "docs/privacy-specification.md"
_ONE_IN = 1000  # a guesser who may be wrong about one patient in so many


def papers(facts: Facts) -> tuple[Paper, ...]:
    """All of them."""
    return record_of_processing(facts), impact_assessment(facts), technical_file(facts)


def record_of_processing(facts: Facts) -> Paper:
    """GDPR, Article 30(1), a to g."""
    return Paper(
        "record-of-processing.md",
        "Record of processing activities",
        "Article 30(1) of the GDPR",
        [
            (
                "(a) The controller",
                [
                    facts.hospital.fact("the hospital, as the federation calls it", "hospital.name"),
                    gap("controller", "legal name and contact details"),
                    gap(
                        "joint controllers",
                        "the coordinator and the other hospitals, or why they are none (Article 26)",
                    ),
                    gap("representative", "name and contact details, or that none is needed (Article 27)"),
                    gap("data protection officer", "name and contact details"),
                ],
            ),
            (
                "(b) Purposes",
                [
                    *(fact for each in facts.agreements for fact in _purpose(each)),
                    gap("purpose", "what the models are meant for, in your own words"),
                    gap("legal basis", "Articles 6 and 9, and national law"),
                ],
            ),
            ("(c) Categories of data subjects and of personal data", _data(facts)),
            (
                "(d) Recipients",
                [*_recipients(facts), gap("other recipients", "who else is shown the data or the models")],
            ),
            (
                "(e) Transfers to third countries",
                [
                    gap("where the coordinator is", "country; and of each other hospital that gets the shared model"),
                    gap("safeguards", "Chapter V, where one of them is outside the Union"),
                ],
            ),
            (
                "(f) Time limits for erasure",
                [
                    gap("the cohort", "when the stored images and labels are erased"),
                    gap("adapted models and predictions", "when they are erased"),
                    Fact(
                        "the ledger",
                        "kept for as long as any answer may exist: without it nobody knows what was spent",
                        f"{_SPECIFICATION} P34, P36",
                    ),
                ],
            ),
            ("(g) Technical and organisational measures", [*_measures(facts), *_organisation()]),
        ],
    )


def impact_assessment(facts: Facts) -> Paper:
    """GDPR, Article 35(7), a to d."""
    return Paper(
        "impact-assessment.md",
        "Data protection impact assessment",
        "Article 35 of the GDPR",
        [
            (
                "(a) Description of the processing and its purposes",
                [
                    *_data(facts),
                    *(fact for each in facts.agreements for fact in (*_purpose(each), *_asked(each))),
                    *_recipients(facts),
                    gap("purpose", "what the models are meant for, and any legitimate interest"),
                ],
            ),
            (
                "(b) Necessity and proportionality",
                [
                    Fact(
                        "what leaves instead of data",
                        "sums over patients with noise; images, labels and identifiers stay",
                        f"{_SPECIFICATION} P21, P46",
                    ),
                    Fact(
                        "what is stored of a patient",
                        "a pseudonym, images or rows, labels and the scanner's maker",
                        "wardround_client.cohort.store",
                    ),
                    gap("necessity", "why these patients, these labels and this many rounds are needed"),
                    gap("legal basis and information", "Articles 6, 9, 13 and 14; how patients are told"),
                    Fact(
                        "objection and withdrawal",
                        "who withdraws is in no answer from the next round on; what has left cannot be called back",
                        f"{_SPECIFICATION} P57, P58",
                    ),
                    gap("who types a withdrawal", "a person, and within how many days"),
                ],
            ),
            ("(c) Risks to the rights and freedoms of patients", [*_risks(facts), *_open_risks()]),
            ("(d) Measures that address the risks", [*_measures(facts), *_organisation()]),
            (
                "Advice and views",
                [
                    gap("the data protection officer's advice", "Article 35(2)"),
                    gap("the views of patients or their representatives", "Article 35(9)"),
                    gap("residual risk", "whether it is high, and the supervisory authority is consulted (Article 36)"),
                    gap("decision", "who decided, when, and when it is looked at again (Article 35(11))"),
                ],
            ),
        ],
    )


def technical_file(facts: Facts) -> Paper:
    """AI Act, Annex IV, points 1 to 9."""
    models = [fact for each in facts.agreements for fact in _model(each)]
    return Paper(
        "technical-file.md",
        "Technical documentation of an AI system",
        "Article 11 and Annex IV of the AI Act",
        [
            (
                "1. General description",
                [
                    gap("intended purpose, provider, version", "of the system that is put into use; 1(a)"),
                    gap(
                        "whether it is high-risk, and a medical device", "Article 6, Annex I; Regulation (EU) 2017/745"
                    ),
                    *(fact for each in facts.agreements for fact in _purpose(each)),
                    gap("hardware and software around it", "PACS, viewer, worklist; 1(b) to (e)"),
                    gap("user interface and instructions for use", "1(g), (h)"),
                ],
            ),
            (
                "2. Elements and development",
                [
                    *models,
                    *(fact for each in facts.agreements for fact in _asked(each)),
                    gap(
                        "pre-trained parts", "origin and licence of the encoder, and what it was trained on; 2(a), (d)"
                    ),
                    gap("data", "provenance, how it was labelled and by whom, what was set aside and why; 2(d)"),
                    gap("human oversight", "who reads each prediction before it counts; 2(e), Article 14"),
                    gap("pre-determined changes", "when it is adapted anew; 2(f)"),
                    gap("validation", "metrics with intervals, test logs, dated and signed: see the model card; 2(g)"),
                    Fact(
                        "cybersecurity",
                        "what is attacked, by whom, what happens, and the test of it",
                        "docs/threats.md; 2(h)",
                    ),
                ],
            ),
            (
                "3. Monitoring, functioning and control",
                [
                    gap("accuracy for groups of patients", "by scanner at least: see the model card"),
                    gap("foreseeable unintended outcomes", "for health, safety and fundamental rights"),
                    gap("input data", "which studies may be given to it, and which not"),
                ],
            ),
            ("4. Appropriateness of the metrics", [gap("metrics", "why these, for this purpose")]),
            ("5. Risk management", [*_risks(facts), gap("risk management system", "Article 9")]),
            ("6. Changes", [*_history(facts), gap("changes by the provider", "over the lifetime")]),
            ("7. Standards", [gap("harmonised standards", "applied in full or in part, or other solutions")]),
            ("8. Declaration of conformity", [gap("EU declaration of conformity", "a copy; Article 47")]),
            ("9. Post-market monitoring", [gap("post-market monitoring plan", "Article 72")]),
        ],
    )


def _purpose(agreed: Agreed) -> list[Fact]:
    name, settings = agreed.federation.name, agreed.settings
    return [
        settings.fact(f"{name}: what is learned", "task.label_column"),
        settings.fact(f"{name}: the classes", "task.classes"),
    ]


def _data(facts: Facts) -> list[Fact]:
    rows = [facts.hospital.fact("patients, as declared (a round public number)", "hospital.declared_patients")]
    for each in facts.agreements:
        task, name = each.federation.task, each.federation.name
        rows.append(each.settings.fact(f"{name}: data of a patient", "task.kind"))
        if task.features:
            rows.append(each.settings.fact(f"{name}: columns", "task.features"))
        if task.kind != "table" and not task.inputs:
            rows.append(each.settings.fact(f"{name}: side of an image", "task.image_size_px", " px"))
        kind = LABEL_KINDS[task.labels].described
        rows.append(Fact(f"{name}: labels", kind, each.settings.place("task.labels")))
    rows.append(
        Fact(
            "categories",
            "health data of patients (Article 9), pseudonymised in the hospital with a secret key",
            f"{_SPECIFICATION} P2, P69",
        )
    )
    return [*rows, gap("patients", "who they are, from when to when, and who was left out")]


def _recipients(facts: Facts) -> list[Fact]:
    joined = facts.hospital.fact("coordinator", "coordinator.address")
    rows = [joined if facts.config.coordinator.address else gap("coordinator", "none is joined yet")]
    for each in facts.agreements:
        replies, name = each.replies, each.federation.name
        size = sum(entry.body["bytes"] for entry in replies)
        to = listed(sorted({str(entry.body["coordinator"]) for entry in replies}), 5) or "nobody yet"
        rows += [
            Fact(f"{name}: who got answers", to, of_entries(replies)),
            Fact(
                f"{name}: what left", f"{counted(len(replies), 'answer')}, {size:,} bytes in all", of_entries(replies)
            ),
        ]
    return rows


def _asked(agreed: Agreed) -> list[Fact]:
    """What is asked of the cohort, and its price as agreed and as paid."""
    name, settings, schedule = agreed.federation.name, agreed.settings, Schedule.of(agreed.federation)
    questions = "; ".join(
        f"{each} x {schedule.times(each)}: {QUESTIONS[each].described}" for each in schedule.questions
    )
    rows = [
        Fact(f"{name}: agreement", f"digest {agreed.federation.digest}", settings.name),
        Fact(f"{name}: what is asked, with noise", questions, f"follows from {settings.place('rounds.rounds')}"),
        settings.fact(f"{name}: training rounds", "rounds.rounds"),
        settings.fact(f"{name}: epsilon of a run, as agreed", "privacy.epsilon"),
        settings.fact(f"{name}: the most that a patient moves a sum, before noise", "privacy.clip_norm"),
    ]
    if agreed.approved:
        place = f"approved/{agreed.federation.digest[:16]}.../approval.json"
        rows.append(Fact(f"{name}: approved", agreed.approved, place))
    else:
        rows.append(gap(f"{name}: approved", "when"))
    return [*rows, gap(f"{name}: who approved", "name and function")]


def _risks(facts: Facts) -> list[Fact]:
    """What an adversary who sees everything that left learns of one patient, at most."""
    epsilon, delta = facts.spent, facts.config.delta
    allowed = facts.config.budget.epsilon
    delta_place = facts.hospital.place("budget.delta")
    rows = [
        Fact("epsilon spent, over all runs and coordinators", f"{epsilon:.4g}", facts.ledger),
        facts.hospital.fact("epsilon allowed, for all time", "budget.epsilon"),
        Fact(
            "delta",
            f"{delta:.3g}",
            delta_place if facts.config.budget.delta else f"1 / (10 x declared patients + 1), {delta_place}",
        ),
    ]
    for name, value in (("spent", epsilon), ("allowed", allowed)):
        rows += [
            Fact(
                f"who guesses whether a given patient took part, from even odds, is right at most ({name})",
                f"{_up(_right(value, delta))} of the time",
                f"(e^epsilon + delta) / (1 + e^epsilon), from the epsilon {name}",
            ),
            Fact(
                f"who may be wrong about 1 in {_ONE_IN:,} others finds at most ({name})",
                f"{_up(min(1.0, _bounded_exp(value) / _ONE_IN + delta))} of those who took part",
                f"e^epsilon / {_ONE_IN:,} + delta, from the epsilon {name}",
            ),
        ]
    return rows


def _open_risks() -> list[Fact]:
    return [
        Fact(
            "not defended",
            "the hospital's own staff and anyone with root; side channels; a patient at several hospitals; groups",
            "docs/privacy.md, its table of what is not defended",
        ),
        gap("likelihood and severity", "of each risk, for these patients"),
        gap("wrong predictions", "what happens to a patient for whom an adapted model is wrong"),
    ]


def _measures(facts: Facts) -> list[Fact]:
    hospital = facts.hospital
    pinned = facts.config.coordinator.ca_sha256
    return [
        Fact("unit of protection", "a patient with all images and labels", f"{_SPECIFICATION} P2, P3"),
        Fact(
            "clip and noise",
            "each patient's part is clipped, sums get Gaussian noise, rounded to a public grid",
            f"{_SPECIFICATION} P10, P11, P51",
        ),
        Fact(
            "a price before each answer",
            "on the disk before anything is computed; one budget for all runs",
            f"{_SPECIFICATION} P33, P36",
        ),
        hospital.fact("weakest noise that is accepted, in clip norms", "policy.least_noise_multiplier"),
        hospital.fact("epsilon of one run, at most", "policy.greatest_epsilon"),
        hospital.fact("patients, at least", "policy.least_patients"),
        hospital.fact("replies leave on a grid of so many seconds", "policy.reply_grid_s"),
        hospital.fact("text in the pixels", "burned_in.text"),
        hospital.fact("the coordinator's authority, pinned by SHA-256", "coordinator.ca_sha256")
        if pinned
        else gap("the coordinator's authority", "none is pinned: `wardround hospital join`"),
        Fact("approval", "a person approves each agreement by its digest", f"{_SPECIFICATION} P40"),
        Fact("the chain of the ledger, as of now", f"{facts.head}", facts.ledger),
    ]


def _organisation() -> list[Fact]:
    return [
        gap("the machine", "encrypted disk, who has root, where it stands"),
        gap("backups", "of secret.key and of the home; who restores, never without a privacy officer"),
        gap("the ledger's head", "in whose book it is written, how often"),
        gap("audit", "date and lower bound of the last `wardround hospital audit`"),
    ]


def _model(agreed: Agreed) -> list[Fact]:
    name, settings = agreed.federation.name, agreed.settings
    rows = [
        settings.fact(f"{name}: algorithm", "algorithm.name"),
        settings.fact(f"{name}: model family", "model.family"),
        settings.fact(f"{name}: encoder", "model.encoder"),
    ]
    if agreed.federation.model.encoder_sha256:
        rows.append(settings.fact(f"{name}: SHA-256 of the encoder", "model.encoder_sha256"))
    return [*rows, settings.fact(f"{name}: how hospitals' answers become one", "outer.rule")]


def _history(facts: Facts) -> list[Fact]:
    rows = []
    for each in facts.agreements:
        entries = each.entries
        span = f"{entries[0].time} to {entries[-1].time}" if entries else "no round was answered"
        runs = counted(len(each.runs), "run")
        rows.append(Fact(f"{each.federation.name}: rounds at this hospital", f"{runs}, {span}", of_entries(entries)))
    known = {each.federation.digest for each in facts.agreements}
    others: Sequence[str] = sorted({str(entry.body["federation"]) for entry in facts.entries} - known)
    if others:
        said = [entry for entry in facts.entries if entry.body["federation"] in others]
        rows.append(Fact("agreements that are approved no more", listed(others, 5), of_entries(said)))
    return rows


def _bounded_exp(epsilon: float) -> float:
    return math.exp(min(epsilon, 700.0))


def _up(share: float) -> str:
    """In per cent, rounded up: it stands where "at most" is said."""
    return f"{math.ceil(share * 1000) / 10:.1f} %"


def _right(epsilon: float, delta: float) -> float:
    """Kairouz, Oh and Viswanath, 2015: the best test between two outcomes errs with (1 - delta) / (1 + e^epsilon)."""
    return 1 - (1 - delta) / (1 + _bounded_exp(epsilon))
