"""Damage: bytes, JSON, PNGs, TFRecords and .npz files -> others that a disk, a tool or a person may leave."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
import zlib
from typing import Any

NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
VALUES = (
    None, True, -1, 0, 1, 3, 2**31, 2**63, 2**64, 10**400, 0.5, 1e308, "", "a", "1", "a\nb", "\udcff", "é",
    "../..", [], [[]], [None], [0, -1], ["a"], {}, {"a": 1},
)  # fmt: skip


def damaged(data: bytes, chance: random.Random) -> bytes:
    """One to four changes, more of them near the beginning, where headers are."""
    found = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        if not found:
            break
        near = chance.random() < 0.6
        place = chance.randrange(min(len(found), 300) if near else len(found))
        end = min(len(found), place + chance.choice((1, 2, 4, 16, 200)))
        kind = chance.randrange(7)
        if kind == 0:
            found[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            size = chance.choice((1, 2, 4))
            number = chance.choice(NUMBERS) & (256**size - 1)
            found[place : place + size] = number.to_bytes(size, chance.choice(("little", "big")))
        elif kind == 2:
            del found[place:end]
        elif kind == 3:
            found[place:place] = found[place:end]
        elif kind == 4:
            found[place:place] = chance.randbytes(end - place)
        elif kind == 5:
            found[place:end] = bytes(end - place)
        elif not near:
            del found[place:]
    return bytes(found)


def with_checksums(png: bytes) -> bytes:
    """A PNG whose chunks have the checksums of what they hold now, so that readers look further."""
    found, place = bytearray(png[:8]), 8
    while place + 12 <= len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        body = png[place + 4 : place + 8 + length]
        found += png[place : place + 4] + body + struct.pack(">I", zlib.crc32(body))
        place += 12 + length
    return bytes(found)


def damaged_image(data: bytes, chance: random.Random) -> bytes:
    """As `damaged`; half of the PNGs with good checksums."""
    found = damaged(data, chance)
    return with_checksums(found) if found.startswith(b"\x89PNG") and chance.random() < 0.5 else found


def damaged_json(text: str, chance: random.Random) -> bytes:
    """A value replaced, a key lost or added; or as `damaged`."""
    if chance.random() < 0.3:
        return damaged(text.encode(), chance)
    value = json.loads(text)
    for _ in range(chance.randint(1, 2)):
        value = _changed(value, chance)
    return json.dumps(value).encode()


def _changed(value: Any, chance: random.Random) -> Any:
    inner = isinstance(value, (dict, list)) and value and chance.random() < 0.9
    if not inner:
        return chance.choice(VALUES)
    found = value.copy()
    if isinstance(value, dict):
        key, kind = chance.choice(sorted(value)), chance.randrange(8)
        if kind == 0:
            del found[key]
        elif kind == 1:
            found[chance.choice(("a", "", key + "x"))] = found[key]
        else:
            found[key] = _changed(value[key], chance)
    else:
        place = chance.randrange(len(value))
        found[place] = _changed(value[place], chance)
    return found


def damaged_npz(data: bytes, chance: random.Random) -> bytes:
    """As `damaged`; or a whole archive whose members are damaged, are gone, or have other names."""
    if chance.random() < 0.4:
        return damaged(data, chance)
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        names = old.namelist()
        one = chance.choice(names)
        for name in names:
            content = old.read(name)
            if name != one:
                new.writestr(name, content)
            elif chance.random() < 0.8:
                new.writestr(name, damaged(content, chance))
            elif chance.random() < 0.5:
                new.writestr("other.npy", content)
    return buffer.getvalue()
