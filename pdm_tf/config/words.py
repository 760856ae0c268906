"""JSON and command-line words <-> nested frozen dataclasses. Knows no field: each says all of itself.

A section is a frozen dataclass whose fields are made by `setting`, or are sections again. A field is named by
a dotted key, such as "optimizer.learning_rate".
"""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import typing
from collections.abc import Mapping

from pdm_tf.errors import UserError, one_line


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a field may hold and where it counts."""

    help: str  # one sentence
    choices: tuple = ()  # the values it may have; (): any
    least: typing.Any = None  # the smallest value; of a tuple, that of each
    most: typing.Any = None
    above: typing.Any = None
    below: typing.Any = None
    may_change: bool = False  # between the parts of one run, because no train step depends on it
    shared: bool = False  # experts of one model must have the same
    of: tuple[str, ...] = ()  # the samplers, kinds of network or edits that read it; (): all do

    def problem(self, value: typing.Any) -> str:
        """What to use instead of `value`, or "" if it will do."""
        if self.choices:
            allowed = ", ".join(map(str, self.choices))
            return "" if value in self.choices else f"use one of {allowed}"
        values = value if isinstance(value, tuple) else (value,)
        if any(isinstance(v, float) and not math.isfinite(v) for v in values):
            return "use a finite number"
        limits = ((operator.ge, self.least), (operator.le, self.most))
        limits += ((operator.gt, self.above), (operator.lt, self.below))
        within = all(limit is None or within(v, limit) for within, limit in limits for v in values)
        return "" if within else f"use {self.range}"

    @property
    def range(self) -> str:
        """The range in words; "" without one."""
        if all(limit is None for limit in (self.least, self.most, self.above, self.below)):
            return ""
        lower = f"from {self.least}" if self.least is not None else f"above {self.above}"
        if self.most is None and self.below is None:
            return f"{self.least} or more" if self.least is not None else f"a number {lower}"
        return f"a number {lower} " + (f"to {self.most}" if self.most is not None else f"up to {self.below}")


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One field: its type, its default and its rule."""

    kind: typing.Any
    default: typing.Any
    rule: Rule


def setting(default: typing.Any, help: str, **rule) -> typing.Any:
    """A field of a section; `rule` are the attributes of `Rule`."""
    return dataclasses.field(default=default, metadata={"rule": Rule(help, **rule)})


def choice(choices: tuple[str, ...], help: str, **rule) -> typing.Any:
    """A field of some choices, the first of which is the default."""
    return setting(choices[0], help, choices=choices, **rule)


def leaves(cls: type) -> dict[str, Leaf]:
    """All settings of a section class and of the sections in it, by dotted key."""
    found, hints = {}, typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = _without_none(hints[field.name])
        if dataclasses.is_dataclass(kind):
            found.update({f"{field.name}.{inner}": leaf for inner, leaf in leaves(kind).items()})
        elif "rule" in field.metadata:
            found[field.name] = Leaf(kind, field.default, field.metadata["rule"])
    return found


def _without_none(kind: typing.Any) -> typing.Any:
    """The type T of Optional[T]; another as it is."""
    kinds = [arg for arg in typing.get_args(kind) if arg is not type(None)]
    return kinds[0] if typing.get_origin(kind) is typing.Union and len(kinds) == 1 else kind


def get(section: typing.Any, key: str) -> typing.Any:
    return operator.attrgetter(key)(section)


def replace(section: typing.Any, values: Mapping[str, typing.Any]) -> typing.Any:
    """A copy of a section with dotted keys, of whatever depth, set."""
    direct: dict[str, typing.Any] = {}
    inner: dict[str, dict[str, typing.Any]] = {}
    for key, value in values.items():
        name, _, rest = key.partition(".")
        if rest:
            inner.setdefault(name, {})[rest] = value
        else:
            direct[name] = value
    parts = {name: replace(getattr(section, name), rest) for name, rest in inner.items()}
    return dataclasses.replace(section, **direct, **parts)


def differences(old: typing.Any, new: typing.Any) -> dict[str, tuple[typing.Any, typing.Any]]:
    """The dotted keys in which two sections of one class differ, each with its old and new value."""
    pairs = {key: (get(old, key), get(new, key)) for key in leaves(type(old))}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def options_of(section: typing.Any, name: str, shared: bool = False) -> dict[str, typing.Any]:
    """The fields of a section that are `of` the sampler or kind of network `name`, with their values.

    `shared`: also those that are of all.
    """
    rules = {key: leaf.rule for key, leaf in leaves(type(section)).items()}
    return {
        k: getattr(section, k) for k, rule in rules.items() if name in rule.of or (shared and not rule.of)
    }


def check(section: typing.Any, prefix: str = "") -> None:
    """Raises UserError for the first field whose value its rule does not allow; `prefix` begins its key."""
    check_values(type(section), {key: get(section, key) for key in leaves(type(section))}, prefix)


def check_values(cls: type, values: Mapping[str, typing.Any], prefix: str = "") -> None:
    """As `check`, for values by dotted key of a section class."""
    known = leaves(cls)
    for key, value in values.items():
        problem = known[key].rule.problem(value)
        require(not problem, f"{prefix}{key}={word(value)}: {problem}")


def word(value: typing.Any) -> str:
    """A value as it is written on a command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def require(condition: bool, message: str) -> None:
    """Raises UserError(message) unless the condition holds."""
    if not condition:
        raise UserError(message)


def from_json(cls: type, text: str | bytes, where: str) -> typing.Any:
    """Reads a section as JSON; what is not named has its default. `where` names the file in errors.

    UserError for what is not JSON, an unknown key or a value of the wrong type.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not valid JSON ({one_line(error)}); restore it") from error
    return _from_dict(cls, values, where)


def parse(text: str, kind: typing.Any, where: str) -> typing.Any:
    """Reads a value of type `kind` from a command-line word; `where` names it in errors."""
    if typing.get_origin(kind) is tuple:
        return _convert([part for part in text.split(",") if part], kind, where)
    if kind is bool:
        known = {"true": True, "1": True, "false": False, "0": False}
        require(text.lower() in known, f"{where}={text}: use true or false")
        return known[text.lower()]
    if kind is str:
        return text
    try:
        return kind(text)
    except ValueError as error:
        raise UserError(f"{where}={text}: use {_article(kind)}") from error


def _convert(value: typing.Any, kind: typing.Any, where: str) -> typing.Any:
    """Checks a JSON value against `kind`; lists become tuples."""
    if typing.get_origin(kind) is tuple:
        kinds = typing.get_args(kind)
        require(isinstance(value, list), f"{where}: use a list")
        if kinds[-1] is not Ellipsis:
            require(len(value) == len(kinds), f"{where}: use {len(kinds)} values")
        read = [parse if isinstance(part, str) else _convert for part in value]
        return tuple(one(part, kinds[0], where) for one, part in zip(read, value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return value
    fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    require(fits, f"{where}={value!r}: use {_article(kind)}")
    return value


def _article(kind: type) -> str:
    return {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}[kind]


def _from_dict(cls: type, values: typing.Any, where: str) -> typing.Any:
    require(isinstance(values, dict), f"{where}: expected an object with keys")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    require(
        not unknown,
        f"{where}: unknown key {', '.join(unknown)}: another version of pdm_tf wrote it; use that one, or "
        "take the key out of the file",
    )
    made = {}
    for name, value in values.items():
        kind, place = hints[name], f"{where}: {name}"
        made[name] = (
            _from_dict(kind, value, place) if dataclasses.is_dataclass(kind) else _convert(value, kind, place)
        )
    return cls(**made)
