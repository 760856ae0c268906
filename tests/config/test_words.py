"""Sections of settings in general: fields that this project does not have."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import pytest

from pdm_tf.config import words
from pdm_tf.config.words import Rule, setting
from pdm_tf.errors import UserError


@dataclass(frozen=True)
class Inner:
    size: int = setting(3, "A size.", above=0)
    names: tuple[str, ...] = setting((), "Names.", may_change=True)


@dataclass(frozen=True)
class Middle:
    inner: Inner = field(default_factory=Inner)
    rate: float = setting(0.5, "A rate.", least=0, below=1, of=("fast",))
    wide: bool = setting(False, "Whether it is wide.", of=("slow",))


@dataclass(frozen=True)
class Outer:
    middle: Middle = field(default_factory=Middle)
    kind: str = setting("slow", "Which.", choices=("slow", "fast"))


def test_keys_of_any_depth_are_read_and_replaced():
    outer = words.replace(Outer(), {"middle.inner.size": 7, "middle.rate": 0.25, "kind": "fast"})
    assert words.get(outer, "middle.inner.size") == 7 and outer.middle.rate == 0.25
    assert words.differences(Outer(), outer) == {
        "middle.inner.size": (3, 7), "middle.rate": (0.5, 0.25), "kind": ("slow", "fast"),
    }  # fmt: skip
    assert words.replace(outer, {}) == outer and words.differences(outer, outer) == {}
    assert list(words.leaves(Outer)) == [
        "middle.inner.size", "middle.inner.names", "middle.rate", "middle.wide", "kind",
    ]  # fmt: skip


def test_json_gives_back_what_it_was_given_and_defaults_for_the_rest():
    outer = words.replace(Outer(), {"middle.inner.names": ("a", "b"), "middle.wide": True})
    assert words.from_json(Outer, words.to_json(outer), "f.json") == outer
    assert words.from_json(Outer, '{"middle": {"rate": 0}}', "f.json").middle == Middle(rate=0)
    with pytest.raises(UserError, match=r"f\.json: middle: inner: unknown key depth: another version"):
        words.from_json(Outer, '{"middle": {"inner": {"depth": 1}}}', "f.json")
    with pytest.raises(UserError, match="is not valid JSON"):
        words.from_json(Outer, "[" * 100_000, "f.json")


@pytest.mark.parametrize(
    ("rule", "good", "bad", "advice"),
    [
        ({"above": 0}, 1, 0, "use a number above 0"),
        ({"least": 0, "below": 1}, 0.999, 1, "use a number from 0 up to 1"),
        ({"choices": ("a", "b")}, "a", "c", "use one of a, b"),
    ],
)
def test_a_rule_says_what_to_use_instead(rule, good, bad, advice):
    rule = Rule("Help.", **rule)
    assert rule.problem(good) == "" and rule.problem(bad) == advice
    section = dataclasses.make_dataclass(
        "Section",
        [("field", type(bad), dataclasses.field(default=bad, metadata={"rule": rule}))],
        frozen=True,
    )
    with pytest.raises(UserError, match=r"^field="):
        words.check(section())
