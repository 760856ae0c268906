"""The option `labels`: class names and numbers -> class numbers."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Sequence
from typing import Optional

from pdm_tf.config.fields import Config
from pdm_tf.errors import UserError


def class_numbers(texts: Sequence[str], config: Config) -> Optional[list[int]]:
    """The class numbers of texts of names, numbers, or "#" and a number, commas between; None without any."""
    if not texts:
        return None
    if not config.conditional:
        raise UserError("--labels: this model has no classes; leave the flag out")
    numbers = {_composed(name): number for number, name in enumerate(config.data.label_names)}
    words = []
    for text in texts:  # the whole text first: a name may have commas
        words += [text] if _composed(text) in numbers else text.split(",")
    return [_class_number(word.strip(), numbers, config.data.num_classes) for word in words]


def _composed(name: str) -> str:
    """A name with each accented letter as one character: some systems' files have it as two."""
    return unicodedata.normalize("NFC", name)


def _class_number(text: str, names: dict[str, int], classes: int) -> int:
    named, digits = names.get(_composed(text)), text.removeprefix("#")
    number = int(digits) if digits.isdecimal() and len(digits) < 10 and int(digits) < classes else None
    if named is not None and number not in (None, named):
        raise UserError(
            f"--labels={text} is number {number} and the name of number {named}: write #{number} or #{named}"
        )
    if named is None and number is None:
        close = difflib.get_close_matches(text, names, n=5, cutoff=0.4)
        close += [name for name in names if name.lower() == text.lower() and name not in close]
        also = f", or a name such as {', '.join(close or list(names)[:20])}" if names else ""
        raise UserError(f"--labels: there is no class {text!r}; use 0 to {classes - 1}{also}")
    return named if number is None else number
