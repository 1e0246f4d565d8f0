"""The answer to a request to store: a Store Instances Response (PS3.18, I.2) as JSON or XML."""

import json
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from pydicom.datadict import keyword_for_tag

from api.http.dicomweb_store.instance import Outcome
from api.http.dicomweb_store.media import XML
from api.http.dicomweb_store.refusals import OUT_OF_RESOURCES

__all__ = ["content_of", "document_of", "status_of"]

_COMMENT = "00000902"
_SOP_CLASS, _SOP, _URL = "00081150", "00081155", "00081190"
_WARNING, _REASON = "00081196", "00081197"
_FAILED, _STORED, _OTHERS = "00081198", "00081199", "0008119A"
_NAMESPACE = "http://dicom.nema.org/PS3.19/models/NativeDICOM"

_Document = dict[str, dict[str, Any]]


def status_of(outcomes: Sequence[Outcome]) -> int:
    """200: all are stored; 202: some are, or with warnings; 409: none is; 503: none is, for want of
    room, and all may be sent again later (PS3.18, table 10.5.3-1)."""
    refused = [one.refusal for one in outcomes if one.refusal is not None]
    if len(refused) < len(outcomes):
        return 202 if refused or any(one.warning for one in outcomes) else 200
    return 503 if all(one.reason == OUT_OF_RESOURCES for one in refused) else 409


def document_of(outcomes: Sequence[Outcome]) -> _Document:
    """The answer in the DICOM JSON model (PS3.18, annex F).

    Of what is no instance, or none that can be told, Other Failures Sequence has an item. Error
    Comment says why in words.
    """
    stored: list[_Document] = []
    failed: list[_Document] = []
    others: list[_Document] = []
    for one in outcomes:
        item: _Document = {}
        if one.identity is not None:
            item[_SOP_CLASS] = _value("UI", one.identity.sop_class)
            item[_SOP] = _value("UI", one.identity.sop)
        if one.refusal is None:
            # Nothing is retrieved here.
            item[_URL] = {"vr": "UR"}
            if one.warning is not None:
                item[_WARNING] = _value("US", one.warning)
            stored.append(item)
        else:
            item = {_COMMENT: _value("LO", one.refusal.comment), **item}
            item[_REASON] = _value("US", one.refusal.reason)
            (others if one.identity is None else failed).append(item)
    document: _Document = {_URL: {"vr": "UR"}}
    for tag, items in ((_FAILED, failed), (_STORED, stored), (_OTHERS, others)):
        if items:
            document[tag] = {"vr": "SQ", "Value": items}
    return document


def content_of(document: _Document, kind: str) -> bytes:
    """The document in bytes. kind: media type, JSON or XML."""
    if kind == XML:
        root = ElementTree.Element("NativeDicomModel", {"xmlns": _NAMESPACE})
        _fill(root, document)
        content: bytes = ElementTree.tostring(root, "utf-8", xml_declaration=True)
        return content
    return json.dumps(document, separators=(",", ":")).encode()


def _value(vr: str, value: str | int) -> dict[str, Any]:
    return {"vr": vr, "Value": [value]}


def _fill(parent: ElementTree.Element, document: _Document) -> None:
    """The elements of a data set in the Native DICOM Model (PS3.19, A.1)."""
    for tag, element in document.items():
        about = {"tag": tag, "vr": element["vr"], "keyword": keyword_for_tag(tag)}
        made = ElementTree.SubElement(parent, "DicomAttribute", about)
        for number, value in enumerate(element.get("Value", ()), start=1):
            if element["vr"] == "SQ":
                _fill(ElementTree.SubElement(made, "Item", {"number": str(number)}), value)
            else:
                ElementTree.SubElement(made, "Value", {"number": str(number)}).text = str(value)
