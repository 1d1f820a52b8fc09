"""What was predicted as a FHIR R4 DiagnosticReport with the Observations that it holds (hl7.org/fhir/R4).

It names the patient and the study by the identifiers that the images have, and is sent nowhere: whoever reads
HOME/serve/fhir takes it from there.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from typing import Any

from wardround_client.serve.about import NO_DEVICE, About
from wardround_client.serve.predicted import MOST_PICTURES, Predicted

_MOST = 10 * MOST_PICTURES  # images that are observed one by one


def as_json(predicted: Predicted, about: About, uid: str) -> bytes:
    """The report. uid: of the structured report that says the same."""
    study = predicted.study
    subject = {"identifier": {"value": study.identity.patient_id}}
    if study.identity.issuer:
        subject["identifier"]["assigner"] = {"display": study.identity.issuer}  # type: ignore[assignment]
    observations = list(_observations(predicted, subject))
    notes = [NO_DEVICE, *(f"{name}: {value}" for name, value in about.lines()[1:])]
    written = {
        "resourceType": "DiagnosticReport",
        "identifier": [{"system": "urn:dicom:uid", "value": f"urn:oid:{uid}"}],
        "contained": observations,
        "status": "preliminary",
        "code": {"text": f"{about.served.name}: prediction from images"},
        "subject": subject,
        "issued": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "result": [{"reference": f"#{each['id']}"} for each in observations],
        "imagingStudy": [{"identifier": {"system": "urn:dicom:uid", "value": f"urn:oid:{study.uid}"}}],
        "conclusion": f"{predicted.pooled['predicted']}. {' '.join(notes)}",
    }
    return (json.dumps(written, indent=1) + "\n").encode()


def _observations(predicted: Predicted, subject: dict[str, Any]) -> Iterator[dict[str, Any]]:
    several = predicted.answers[:_MOST] if len(predicted.answers) > 1 else ()
    rows = [{**predicted.pooled, "out_of_distribution": predicted.strange}, *(answer.row for answer in several)]
    for number, row in enumerate(rows):
        values = [
            {"code": {"text": name}, "valueQuantity": {"value": value}}
            for name, value in predicted.numbers(row).items()
        ]
        strange = {"code": {"text": "out of distribution"}, "valueBoolean": bool(row["out_of_distribution"])}
        yield {
            "resourceType": "Observation",
            "id": f"o{number}",
            "status": "preliminary",
            "code": {"text": f"prediction for image {number}" if number else "prediction for the study"},
            "subject": subject,
            "valueString": row["predicted"] or "nothing",
            "component": [*values, strange],
        }
