# SPDX-License-Identifier: MIT
"""JSON objects that are text, as the table has them.

What callers hand in was checked before; what is in the file may be another program's. SQLite takes
more for JSON than this package does: a number beyond a double's range, half of a surrogate pair, a
BLOB, and anything behind a NUL, where its functions stop reading. All that can be read is read
here, and what nobody changes stays as it is written. Nothing is known here of sessions.
"""

import json
import re
from typing import Any

_decode = json.JSONDecoder(parse_int=str, parse_float=str).raw_decode  # a number may be any
_SPACE = re.compile(r"[ \t\n\r]*")


def decode(document: str | bytes) -> Any:
    """Return the dict. ValueError or RecursionError: Python cannot read it, though SQLite can."""
    return json.loads(_text(document))


def add_member(document: str | bytes, key: str, value: str) -> str:
    """Add a member, without a look at the others: of equal keys the last one counts."""
    members = _text(document).strip()[1:-1]
    return f"{{{members}{',' if members.strip() else ''}{json.dumps({key: value})[1:]}"


def split(document: str | bytes) -> dict[str, str]:
    """Return the members as they are written, by their keys."""
    text = _text(document)
    members: dict[str, str] = {}
    position = _skip(text, text.index("{") + 1)
    while text[position] != "}":
        key, colon = _decode(text, position)
        _, end = _decode(text, _skip(text, _skip(text, colon) + 1))
        members[key] = text[position:end]
        position = _skip(text, end)
        if text[position] == ",":
            position = _skip(text, position + 1)
    return members


def join(members: dict[str, str]) -> str:
    """Return the object that has these members."""
    return f"{{{','.join(members.values())}}}"


def _text(document: str | bytes) -> str:
    text = document if isinstance(document, str) else document.decode(errors="replace")
    return text.partition("\0")[0]


def _skip(text: str, position: int) -> int:
    """Return where the white space ends."""
    match = _SPACE.match(text, position)
    return position if match is None else match.end()
