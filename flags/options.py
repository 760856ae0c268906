"""A command line -> the options of its mode, a frozen dataclass: each of its fields is a flag.

Values are read, and their ranges checked, as those of a config's settings are (`pdm_tf.config.words`). A
tuple of texts is a flag to repeat; a tuple of numbers has commas between them.
"""

from __future__ import annotations

import contextlib
import difflib
import textwrap
import typing
from collections.abc import Callable, Iterator, Sequence

from absl import flags

from pdm_tf.config.words import Leaf, check_values, leaves, parse, word
from pdm_tf.errors import UserError

HELP = {"--help", "-help", "-h"}
Options = typing.TypeVar("Options")


def parse_mode(arguments: Sequence[str], modes: Sequence[str]) -> str:
    """The value of --mode, by default the first of `modes`; all other words are left for `parse_options`."""
    values = flags.FlagValues()
    values.set_gnu_getopt()
    flags.DEFINE_enum("mode", modes[0], modes, "", flag_values=values)
    with _one_line_errors():
        values(["main.py", *arguments], known_only=True)
    return values["mode"].value


def parse_options(
    arguments: Sequence[str], mode: str, modes: Sequence[str], options_of: Callable[[str], type[Options]]
) -> Options:
    """The options of a mode, as far as they are given; each call reads its arguments alone.

    Args:
      arguments: the command line, without the program's name.
      options_of: one of `modes` -> the dataclass of its options.
    Raises:
      UserError: a flag of another mode, or of none, or a value that it cannot have.
    """
    cls = options_of(mode)
    fields, values = leaves(cls), flags.FlagValues()
    flags.DEFINE_string("mode", mode, "", flag_values=values)
    for name, leaf in fields.items():
        define = flags.DEFINE_multi_string if _is_repeated(leaf) else flags.DEFINE_string
        define = flags.DEFINE_boolean if leaf.kind is bool else define
        define(name, None, leaf.rule.help, flag_values=values)
    try:
        with _one_line_errors():
            rest = values(["main.py", *arguments])
    except flags.UnrecognizedFlagError as error:
        raise UserError(_advice(error.flagname, mode, modes, options_of)) from error
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; flags are written --name=value")
    given = {name: values[name].value for name in fields if values[name].present}
    options = {name: _value(name, fields[name], text) for name, text in given.items()}
    check_values(cls, options, "--")
    return cls(**options)


def help_text(mode: str, cls: type) -> str:
    """A mode's flags, one paragraph each."""
    lines = [f"--mode={mode}: {(cls.__doc__ or '').splitlines()[0]}", ""]
    for name, leaf in leaves(cls).items():
        rule, default = leaf.rule, "" if leaf.default in (None, ()) else word(leaf.default)
        allowed = "|".join(map(str, rule.choices)) or rule.range
        notes = [f"default: {default}"] if default and leaf.kind is not bool else []
        notes += [allowed] if allowed else []
        notes += ["repeatable"] if _is_repeated(leaf) else []
        flag = f"--[no]{name}" if leaf.kind is bool else f"--{name}"
        text = f"{flag}: {rule.help}" + (f" ({'; '.join(notes)})" if notes else "")
        lines += textwrap.wrap(text, 100, initial_indent="  ", subsequent_indent="      ")
    return "\n".join(lines)


def _is_repeated(leaf: Leaf) -> bool:
    return typing.get_origin(leaf.kind) is tuple and typing.get_args(leaf.kind)[0] is str


def _value(name: str, leaf: Leaf, given: typing.Any) -> typing.Any:
    if isinstance(given, bool):
        return given
    return tuple(given) if _is_repeated(leaf) else parse(given, leaf.kind, f"--{name}")


def _advice(name: str, mode: str, modes: Sequence[str], options_of: Callable[[str], type[Options]]) -> str:
    """Where a flag that `mode` does not have belongs, and which flag of the mode may be meant."""
    plain = name.removeprefix("no")
    if plain in leaves(options_of(mode)):
        return f"--{plain} is no switch: give it a value, as --{plain}=..."
    close = difflib.get_close_matches(name, leaves(options_of(mode)), n=1)
    meant = f"; did you mean --{close[0]}?" if close else ""
    others = [other for other in modes if {name, plain} & set(leaves(options_of(other)))]
    if not others:
        return f"there is no flag --{name}{meant or f': python main.py --mode={mode} --help lists the flags'}"
    return f"--{name} is a flag of --mode={'|'.join(others)} and not of --mode={mode}{meant}"


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Raises UserError for what absl cannot read, but for unknown flags."""
    try:
        yield
    except flags.UnrecognizedFlagError:
        raise
    except (flags.Error, ValueError) as error:
        raise UserError(f"{error} (python main.py --help lists the flags)") from error
