"""Makes text from files safe to print: no character of it moves a cursor or hides other text."""

from __future__ import annotations

import re
from typing import Final

# C0 and C1 controls, DEL, line and paragraph separators, and what changes the direction of text
# (Unicode Technical Report 36, "Bidirectional Text Spoofing"; CVE-2021-42574), lone surrogates.
_UNSAFE: Final = re.compile(
    "[\0-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str, keep: str = "") -> str:
    r"""Return `text` with every character that controls a terminal spelled out, ESC as "\x1b".

    Args:
        text: Text of any origin, for example the name of a metric.
        keep: Control characters that pass, for example "\n" for text of several lines.
    """
    if text.isprintable():
        return text
    return _UNSAFE.sub(lambda found: found[0] if found[0] in keep else _spelled(found[0]), text)


def _spelled(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()
