"""A command line -> options: each field of a mode's dataclass is a flag, and of its mode alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import pytest

from flags.options import parse_mode, parse_options
from pdm_tf.config.words import setting
from pdm_tf.errors import UserError


@dataclass(frozen=True)
class Bake:
    """Bake bread."""

    loaves: int = setting(2, "Loaves.", above=0)
    heat: Optional[float] = setting(None, "Degrees.", least=0, most=300)
    flour: str = setting("rye", "What to bake of.", choices=("rye", "wheat"))
    sizes: tuple[int, ...] = setting((1, 2), "Sizes.")
    label: tuple[str, ...] = setting((), "Labels.")
    salted: bool = setting(True, "With salt.")


@dataclass(frozen=True)
class Eat:
    """Eat."""

    oven_loaves: int = setting(1, "Loaves.")


MODES = {"bake": Bake, "eat": Eat}


def parsed(*arguments, mode="bake"):
    return parse_options(arguments, mode, tuple(MODES), MODES.__getitem__)


def refusal(*arguments, mode="bake") -> str:
    with pytest.raises(UserError) as caught:
        parsed(*arguments, mode=mode)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_flag_is_a_field_and_what_is_not_given_has_its_default():
    assert parsed() == Bake()
    given = (
        "--loaves=3",
        "--heat",
        "2e2",
        "--flour=wheat",
        "--sizes=3,4",
        "--label=a,b",
        "--label=",
        "--nosalted",
    )
    assert parsed(*given) == Bake(3, 200.0, "wheat", (3, 4), ("a,b", ""), False)


def test_a_command_line_knows_nothing_of_the_one_before():
    assert parsed("--loaves=3", "--label=a") != parsed("--label=a") == Bake(label=("a",))


def test_the_mode_stands_anywhere_and_is_the_first_by_default():
    assert parse_mode([], tuple(MODES)) == "bake"
    assert parse_mode(["--loaves", "3", "--mode", "eat"], tuple(MODES)) == "eat"
    with pytest.raises(UserError, match=r"value should be one of <bake\|eat>"):
        parse_mode(["--mode=burn"], tuple(MODES))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--loaves=0"], "--loaves=0: use a number above 0"),
        (["--heat=301"], "--heat=301.0: use a number from 0 to 300"),
        (["--heat"], "Missing value for flag --heat"),
        (["bread"], "unexpected argument 'bread'; flags are written --name=value"),
        (["--loafs=3"], "there is no flag --loafs; did you mean --loaves?"),
        (
            ["--oven_loaves=3"],
            "--oven_loaves is a flag of --mode=eat and not of --mode=bake; did you mean --loaves?",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(arguments, message):
    assert message in refusal(*arguments)


def test_a_switch_of_another_mode_is_known_by_its_negation_too():
    assert refusal("--nosalted", mode="eat") == "--nosalted is a flag of --mode=bake and not of --mode=eat"
