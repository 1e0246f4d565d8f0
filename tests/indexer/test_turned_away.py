"""The line on what was turned away, whatever peers call their classes."""

from indexer.sources.pushed.turned_away import TurnedAway

CT = "1.2.840.10008.5.1.4.1.1.2"


def test_it_counts_by_reason_and_class() -> None:
    told = TurnedAway()
    assert not told
    assert str(told) == "0 refused"
    for sop_class in (CT, CT, "1.2.3"):
        told.note(0x0122, "why", sop_class)
    told.note(0xA700, "no room", CT)
    assert told
    assert str(told) == (
        f"4 refused (2 of SOP class {CT}: 0x0122, why; 1 of SOP class 1.2.3: 0x0122, why; "
        f"1 of SOP class {CT}: 0xA700, no room)"
    )


def test_it_stays_short_and_repeats_no_text_of_a_peer() -> None:
    told = TurnedAway()
    for number in range(1000):
        told.note(0x0122, "why", f"1.2.{number}")
    told.note(0x0122, "why", "HIDDEN\nforged line")
    told.note_proposed(["HIDDEN", *(f"1.3.{number}" for number in range(30))])
    line = str(told)
    assert line.startswith("1001 refused (")
    assert "981: 0x0122, why" in line
    assert line.endswith("1.3.9 and 20 more")
    assert len(line) < 1500
    assert "HIDDEN" not in line
    assert "\n" not in line
