"""The figures by which receiving is judged follow from what was measured."""

from bench.stow import judged


def test_stow_is_judged_beside_c_store_and_beside_orthanc() -> None:
    rates = {
        ("Precedent", "C-STORE"): 100,
        ("Precedent", "STOW, 1 a request"): 80,
        ("Precedent", "STOW, 20 a request"): 120,
        ("Orthanc", "C-STORE"): 50,
        ("Orthanc", "STOW, 1 a request"): 25,
        ("Orthanc", "STOW, 20 a request"): 60,
    }
    rows = [{"system": of, "way": way, "instances/s": rate} for (of, way), rate in rates.items()]
    found = judged(rows)
    assert [one["value"] for one in found] == [0.8, 1.2, 0.5, 1.2, 2.0, 3.2, 2.0]
    assert [one["measure"] for one in found if one["may be"]] == [
        "Precedent, STOW, 20 a request / C-STORE"
    ]
