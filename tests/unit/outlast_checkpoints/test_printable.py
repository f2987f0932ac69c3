"""Text from files never controls a terminal."""

from __future__ import annotations

import unicodedata

from outlast_checkpoints.printable import printable


def test_every_control_and_format_character_is_spelled_out() -> None:
    everything = "".join(map(chr, range(0x110000)))
    left = printable(everything)
    controls = {"Cc", "Zl", "Zp", "Cs"}
    bidi = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    for character in left:
        assert unicodedata.category(character) not in controls, hex(ord(character))
        assert unicodedata.bidirectional(character) not in bidi, hex(ord(character))


def test_it_can_be_read() -> None:
    assert printable("a\x1b]0;x\x07\n\x9b2J\u202eb\ud800") == r"a\x1b]0;x\x07\n\x9b2J\u202eb\ud800"
    assert printable("a\nb\tc", keep="\n\t") == "a\nb\tc"
    assert printable("größe 損失 \U0001f600 é") == "größe 損失 \U0001f600 é"
