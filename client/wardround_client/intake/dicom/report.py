"""What a structured report says is in images: its codes only, free text is never read (PS3.3 C.17.3, PS3.16 TID 1500).

A finding is a coded item called Finding, Impression, Conclusion or Diagnosis, or any coded evaluation among
measurements, whose value is a word of the task; or an evaluation called like one, whose value says that it is present.
What is asked for, recommended, or was seen before is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from pydicom.dataset import Dataset

from wardround_client.intake.dicom.attributes import UnusableError, text

REPORTS = {f"1.2.840.10008.5.1.4.1.1.88.{part}" for part in (11, 22, 33, 34, 35)}
"""Basic Text, Enhanced, Comprehensive, Comprehensive 3D and Extensible SR."""

MOST_ITEMS, DEEPEST = 1 << 16, 64
"""Content items of a report, and how deep they may stand."""

_FINDING = {"121071", "121073", "121077", "439401001", "282291009"}  # Finding, Impression, Conclusion, Diagnosis
_GROUPS = {"126010", "125007", "C0034375"}  # Imaging Measurements, Measurement Group, Qualitative Evaluations
# History, Request, procedures, Previous Findings and Finding, Recommendations and one, Indications, Presentation.
_ELSEWHERE = {
    *("121060", "121062", "121064", "121065", "121066", "121068", "121069", "121074", "121075", "121109", "121110"),
}
# Finding Site, Laterality, Topographical modifier, Method, Derivation, Procedure reported: of a finding, and none.
_DESCRIBE = {
    *("363698007", "G-C0E3", "272741003", "G-C171", "106233006", "G-A1F8", "370129005", "G-C306", "121401", "121058"),
}
_INTO = {"", "CONTAINS", "HAS PROPERTIES", "INFERRED FROM", "SELECTED FROM"}
_PRESENT = {"present", "yes", "positive", "true", "seen", "identified", "detected", "confirmed present", "confirmed"}
_ABSENT = {
    *("absent", "no", "negative", "false", "none", "not present", "not seen", "not identified", "not detected"),
    *("known absent", "confirmed absent", "excluded", "ruled out", "refuted", "absence"),
}
_UNSURE = {
    *("possible", "possibly", "possibly present", "probable", "probably present", "suspected", "suspicious", "likely"),
    *("unlikely", "probably absent", "equivocal", "uncertain", "indeterminate", "undetermined", "unknown", "maybe"),
    *("not assessed", "not evaluated", "cannot be excluded", "questionable", "differential diagnosis", "provisional"),
}
_WHETHER = ("presence", "certainty", "likelihood", "probability", "existence", "status", "assertion", "negation")

_SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66."


@dataclass(frozen=True)
class Said:
    """Of the same images: words of the task that are there, and that are not; unsure: or it cannot be told.

    images: SOP Instance UIDs; () for all of the study.
    """

    present: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()
    unsure: bool = False
    images: tuple[str, ...] = ()


@dataclass
class _Node:
    """A content item, and what stands above it."""

    item: Dataset
    above: _Node | None
    code: str
    name: str
    relation: str
    kind: str
    evaluated: bool
    elsewhere: bool
    below: list[_Node] = field(default_factory=list)
    images: dict[str, None] = field(default_factory=dict)

    @cached_property
    def value(self) -> tuple[str, str]:
        """Of a coded item: code and meaning."""
        return _code(self.item, "ConceptCodeSequence")

    @cached_property
    def named(self) -> tuple[str, ...]:
        """The images of it and of all below it."""
        return tuple(self.images)

    @cached_property
    def group_holds(self) -> bool | None:
        """What a group of measurements says of its finding as a whole: False where it is absent, None if unsure."""
        for each in self.below:
            if each.kind == "CODE" and folded(each.name).removesuffix(" of finding") in _WHETHER:
                meaning = folded(each.value[1])
                if meaning in _ABSENT | _UNSURE:
                    return False if meaning in _ABSENT else None
        return True


class Words:
    """A task's words, by how a code may write them: case and blanks do not count.

    words: the classes, and the texts that mean one. column: the task's label column; an evaluation called so is its
    answer, whatever the word; elsewhere "present" and "no" are no finding.
    """

    def __init__(self, words: tuple[str, ...], column: str) -> None:
        self._column, self._words = folded(column), {word: word for word in words}
        near: dict[str, str] = {}
        for word in words:  # where two differ in case only, neither is found in another case
            near[folded(word)] = "" if folded(word) in near else word
        self._near = near

    def find(self, code: tuple[str, str]) -> str:
        """The word that a code's meaning or value is, or ""."""
        for name in (code[1], code[0]):
            if word := self._words.get(name) or self._near.get(folded(name)):
                return word
        return ""

    def asks(self, name: str) -> bool:
        """Whether an evaluation is the task's own question."""
        return folded(name) == self._column


def folded(name: str) -> str:
    """As it is compared."""
    return " ".join(name.casefold().split())


def said(dataset: Dataset, words: Words) -> tuple[Said, ...]:
    """What a report says, by which images it is about. Raises: UnusableError: too large, too deep, or damaged."""
    nodes = _nodes(dataset)
    root = nodes[0]
    everywhere = tuple(dict.fromkeys([*root.images, *_evidence(dataset)]))
    found: dict[int, tuple[_Node, dict[str, bool | None]]] = {}
    for node in nodes:
        for word, there in _claims(node, words):
            about = _about(node, root)
            of = found.setdefault(id(about), (about, {}))[1]
            of[word] = there if of.get(word, there) is there else None
    return tuple(
        Said(
            frozenset(word for word, there in of.items() if there),
            frozenset(word for word, there in of.items() if there is False),
            None in of.values(),
            everywhere if about is root else about.named,
        )
        for about, of in found.values()
    )


def _nodes(dataset: Dataset) -> list[_Node]:
    """Every content item, each after what it stands in; references to other items of the report are not followed."""
    nodes: list[_Node] = []
    todo: list[tuple[Dataset, _Node | None, int]] = [(dataset, None, 0)]
    while todo:
        item, above, depth = todo.pop()
        if len(nodes) >= MOST_ITEMS or depth > DEEPEST:
            raise UnusableError("a report is larger or deeper than the limit", f"{MOST_ITEMS} items, {DEEPEST} deep")
        code, meaning = _code(item, "ConceptNameCodeSequence")
        relation = text(item, "RelationshipType").upper()
        node = _Node(
            item,
            above,
            code,
            meaning,
            relation,
            text(item, "ValueType").upper(),
            evaluated=code in _GROUPS or (above is not None and above.evaluated),
            elsewhere=code in _ELSEWHERE or relation not in _INTO or (above is not None and above.elsewhere),
        )
        nodes.append(node)
        if above is not None:
            above.below.append(node)
        for each in _images(item) if node.kind == "IMAGE" and not node.elsewhere else ():
            up: _Node | None = node
            while up is not None:
                up.images[each] = None
                up = up.above
        todo.extend((each, node, depth + 1) for each in reversed(item.get("ContentSequence") or []))
    return nodes


def _claims(node: _Node, words: Words) -> Iterator[tuple[str, bool | None]]:
    """Words and whether they are there; None where that is not sure."""
    if node.kind != "CODE" or node.elsewhere:
        return
    word, meaning = words.find(node.value), folded(node.value[1])
    if words.asks(node.name):
        if word:
            yield word, _holds(node)
    elif about := words.find((node.code, node.name)):  # Pneumothorax: Absent
        yield about, False if meaning in _ABSENT else _holds(node) if meaning in _PRESENT else None
    elif word and meaning not in _PRESENT | _ABSENT | _UNSURE and _is_finding(node):
        yield word, _holds(node)


def _is_finding(node: _Node) -> bool:
    return node.code in _FINDING or (node.evaluated and node.code not in _DESCRIBE)


def _holds(node: _Node) -> bool | None:
    """Whether a finding stands as it is written: what is said below it, and of its group, may take it back."""
    for each in node.below:
        meaning = folded(each.value[1]) if each.kind == "CODE" else ""
        if meaning in _ABSENT:
            # Its calcification is absent, or it is: where that cannot be told, nothing is.
            told = folded(each.name).startswith(_WHETHER) or each.relation == "HAS CONCEPT MOD"
            return False if told else None
        if meaning in _UNSURE:
            return None
    return node.above.group_holds if node.above and node.above.evaluated else True


def _about(node: _Node, root: _Node) -> _Node:
    """The nearest item, from a finding outwards, that names images; the root: the whole report."""
    at = node
    while not at.images and at.above is not None:
        at = at.above
    return at


def _images(item: Dataset) -> Iterator[str]:
    for each in item.get("ReferencedSOPSequence") or []:
        if not text(each, "ReferencedSOPClassUID").startswith(_SEGMENTATION):
            yield text(each, "ReferencedSOPInstanceUID")


def _evidence(dataset: Dataset) -> Iterator[str]:
    """PS3.3 C.17.2: what the report was made from."""
    for study in dataset.get("CurrentRequestedProcedureEvidenceSequence") or []:
        for series in study.get("ReferencedSeriesSequence") or []:
            yield from _images(series)


def _code(item: Dataset, keyword: str) -> tuple[str, str]:
    """Value and meaning of a code (PS3.3 section 8.8); "" where there is none."""
    for each in item.get(keyword) or []:
        value = text(each, "CodeValue") or text(each, "LongCodeValue") or text(each, "URNCodeValue")
        return value, text(each, "CodeMeaning")
    return "", ""
