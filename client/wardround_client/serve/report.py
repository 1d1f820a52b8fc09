"""What was predicted as a DICOM structured report: TID 1500, Measurement Report (PS3.16), in a Comprehensive SR.

Of the patient it holds what the images' own headers say, by which the PACS files it beside them, and nothing else.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator

import highdicom
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from wardround import __version__
from wardround_client.personal.page import Row
from wardround_client.personal.segmentation import complete
from wardround_client.serve.about import NO_DEVICE, About
from wardround_client.serve.predicted import Answer, Predicted
from wardround_client.serve.study import MAKER

SCHEME = "99WARDROUND"
MOST_GROUPS = 200
"""Images that are reported one by one; what they come to stands first, of however many."""

LONGEST = 64  # characters of a code's meaning (PS3.5 6.2, LO)
_OF_STUDY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "IssuerOfPatientID"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName", "StudyDescription"),
)


def report(predicted: Predicted, about: About, uid: Callable[[str], str], series: str) -> Dataset:
    """The report. uid: of a thing that is named. series: UID.

    Raises: whatever highdicom does where the images' headers do not say enough.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names and dates that are not as they should be: they are the source's
        evidence = [complete(source) for source in predicted.sources]
        written = highdicom.sr.ComprehensiveSR(
            evidence=evidence,
            content=_content(predicted, about, uid)[0],
            series_instance_uid=series,
            series_number=9000,
            sop_instance_uid=uid("sr"),
            instance_number=1,
            manufacturer=MAKER,
            is_complete=True,
            is_final=False,
            is_verified=False,
        )
    made_by(written, predicted, about)
    return written


def made_by(written: Dataset, predicted: Predicted, about: About) -> None:
    """What each object says of the study, as its images say it, and of where it comes from."""
    source = complete(predicted.answers[0].sources[0])
    for keyword in _OF_STUDY:
        if keyword in source:
            setattr(written, keyword, source[keyword].value)
    written.SpecificCharacterSet = "ISO_IR 192"
    written.SeriesDescription = about.title
    written.Manufacturer = MAKER
    written.ManufacturerModelName = predicted.served.name[:LONGEST]
    written.SoftwareVersions = __version__
    written.DeviceSerialNumber = predicted.served.digest[:16]


def as_bytes(written: Dataset) -> bytes:
    """The object as a file."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _content(predicted: Predicted, about: About, uid: Callable[[str], str]) -> highdicom.sr.MeasurementReport:
    device = highdicom.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=highdicom.sr.DeviceObserverIdentifyingAttributes(
            uid=uid("device"),
            name=MAKER,
            manufacturer_name=MAKER,
            model_name=predicted.served.name[:LONGEST],
            serial_number=predicted.served.digest[:16],
        ),
    )
    algorithm = highdicom.sr.AlgorithmIdentification(
        name=predicted.served.name[:LONGEST],
        version=predicted.served.digest[:16],
        parameters=[f"{name}: {value}" for name, value in about.lines()],
        family=codes.DCM.ArtificialIntelligence,
        manufacturer=MAKER,
    )
    written = highdicom.sr.MeasurementReport(
        observation_context=highdicom.sr.ObservationContext(observer_device_context=device),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=list(_groups(predicted, algorithm, uid)),
        title=codes.DCM.ImagingMeasurementReport,
    )
    for text in (NO_DEVICE, f"Intended use: {about.intended_use}", *_warnings(predicted)):
        comment = highdicom.sr.TextContentItem(
            name=codes.DCM.Comment, value=text, relationship_type=highdicom.sr.RelationshipTypeValues.CONTAINS
        )
        written[0].ContentSequence.append(comment)
    return written


def _warnings(predicted: Predicted) -> Iterator[str]:
    if predicted.strange:
        yield "Out of distribution: images unlike all that the model was adapted to. Do not rely on this."
    if len(predicted.answers) > MOST_GROUPS:
        yield f"Of {len(predicted.answers)} images {MOST_GROUPS} are reported one by one."


def _groups(
    predicted: Predicted, algorithm: highdicom.sr.AlgorithmIdentification, uid: Callable[[str], str]
) -> Iterator[highdicom.sr.MeasurementsAndQualitativeEvaluations]:
    """What all come to, and, where there are several, image by image."""
    whole = Answer({**predicted.pooled, "out_of_distribution": predicted.strange}, tuple(predicted.sources))
    several = predicted.answers[:MOST_GROUPS] if len(predicted.answers) > 1 else ()
    for number, answer in enumerate((whole, *several)):
        yield highdicom.sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=highdicom.sr.TrackingIdentifier(
                uid=uid(f"group {number}"), identifier=f"image {number}" if number else "study"
            ),
            algorithm_id=algorithm,
            measurements=[
                highdicom.sr.Measurement(name=_code(f"M{place}", name), value=_decimal(value), unit=_unit(name))
                for place, (name, value) in enumerate(predicted.numbers(answer.row).items(), start=1)
            ],
            qualitative_evaluations=list(_evaluations(predicted, answer.row)),
            source_images=[
                highdicom.sr.SourceImageForMeasurementGroup(
                    referenced_sop_class_uid=source.SOPClassUID,
                    referenced_sop_instance_uid=source.SOPInstanceUID,
                    referenced_frame_numbers=[answer.frame] if answer.frame else None,
                )
                for source in answer.sources
            ],
        )


def _evaluations(predicted: Predicted, row: Row) -> Iterator[highdicom.sr.QualitativeEvaluation]:
    classes = predicted.served.adapted.federation.task.classes
    said = row["predicted"]
    value = f"C{classes.index(said) + 1}" if said in classes else "WORDS"
    yield highdicom.sr.QualitativeEvaluation(_code("PREDICTION", "Prediction"), _code(value, said or "nothing"))
    strange = codes.SCT.Yes if row["out_of_distribution"] else codes.SCT.No
    yield highdicom.sr.QualitativeEvaluation(_code("STRANGE", "Out of distribution"), strange)


def _code(value: str, meaning: str) -> CodedConcept:
    return CodedConcept(value, SCHEME, meaning[:LONGEST])


def _unit(name: str) -> CodedConcept:
    return (
        CodedConcept("{pixels}", "UCUM", "pixels") if name.endswith(" in px") else CodedConcept("1", "UCUM", "no units")
    )


def _decimal(value: float) -> float:
    """At most 16 characters (PS3.5 6.2, DS)."""
    return float(f"{value:.6g}")
