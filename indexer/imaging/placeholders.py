"""Recognises patient identifiers that stand for nobody, such as those of de-identified archives."""

import re

__all__ = ["is_placeholder"]

_SEPARATORS = re.compile(r"[\W_]+")

_SPELLED = """
    anon anonid anonym anonyme anonimo anonymous anonymised anonymized anonymouspatient
    anonymisedpatient anonymizedpatient anonpatient anonymouspatientid anonymizedpatientid
    deident deidentified deidentifiedpatient pseudonymised pseudonymized unk unkn unknown
    unknownid unknownpatient notknown inconnu desconocido sconosciuto unbekannt na nan nil
    none null void undefined unspecified notspecified unassigned notavailable notapplicable
    noid noname nopatient nopatientid missing empty blank removed deleted erased hidden masked
    redacted withheld default dummy placeholder test testpatient id patient patientid
    patientidentifier nobody noone 匿名 未知 不明
"""
_WORDS = frozenset(_SPELLED.split())


def is_placeholder(patient_id: str) -> bool:
    """Whether a Patient ID (0010,0020) names no patient: nothing but zeros, crosses or
    punctuation, or a word that stands for "none", whatever its case and separators.

    An identifier with a number of its own, as in "ANON0042", does name one.
    """
    plain = _SEPARATORS.sub("", patient_id.casefold())
    return set(plain) <= {"0"} or set(plain) == {"x"} or plain in _WORDS
