"""What README and the pages of docs/ show: commands, Python, settings, links. Text in, text out."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "REPRODUCTION.md", *sorted((ROOT / "docs").glob("*.md"))]
# What a span of code begins with that is a command, beside the interpreters and pips of some environment.
PROGRAMS = {"make", "pytest", "uv", "tfds", "tensorboard", "docker", "apt", "npm", "git", "."}
PROGRAMS |= {"sh", "bash", "curl", "gcloud", "gsutil", "jupyter", "pyenv", "kubectl"}
LANGUAGES = {"bash", "python", "bibtex", "text"}


class Block(NamedTuple):
    """A fenced block of code."""

    line: int
    language: str
    text: str


class Item(NamedTuple):
    """Something that a page shows and a reader may run: the words of a command, or a block of Python."""

    where: str
    words: tuple[str, ...]
    environment: dict[str, str]
    python: str = ""


def copy_tracked_files(folder: Path) -> Path:
    """Copies the working tree, as a clone would hold it, to a new folder."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks_and_prose(page: Path) -> tuple[list[Block], str]:
    """The fenced blocks of code, and the rest of the page with as many lines."""
    blocks = []

    def taken_out(match: re.Match) -> str:
        blocks.append(Block(page.read_text().count("\n", 0, match.start()) + 1, match[1].strip(), match[2]))
        return "\n" * match[0].count("\n")

    prose = re.sub(r"^```(.*)\n((?:.*\n)*?)```$", taken_out, page.read_text(), flags=re.MULTILINE)
    return blocks, prose


def spans(page: Path) -> list[tuple[int, str]]:
    """The spans of code in the prose, each with its line, on one line."""
    _, prose = blocks_and_prose(page)
    found = re.finditer(r"(?<!`)(`+)(?!`)((?:(?!\n\s*\n).)+?)(?<!`)\1(?!`)", prose, re.DOTALL)
    return [(prose.count("\n", 0, m.start()) + 1, " ".join(m[2].split())) for m in found]


def items(page: Path) -> Iterator[Item]:
    """All that may be run, in the order of the page."""
    found = []
    for block in blocks_and_prose(page)[0]:
        if block.language == "python":
            found.append((block.line, Item(f"{name_of(page)}:{block.line}", (), {}, block.text)))
        elif block.language == "bash":
            environment = {}
            for line, words in _commands(block):
                if words[0] == "export":
                    environment = {**environment, **_assignments(words[1:])}
                else:
                    found.append((line, _item(page, line, words, environment)))
    for line, text in spans(page):
        if re.match(rf"(\S*/)?(python[\d.]*|pip) |({'|'.join(map(re.escape, PROGRAMS))}) ", text):
            found.append((line, _item(page, line, shlex.split(text), {})))
    return (item for _, item in sorted(found, key=lambda pair: pair[0]))


def _commands(block: Block) -> Iterator[tuple[int, list[str]]]:
    text = ""
    for number, line in enumerate(block.text.splitlines(), block.line + 1):
        text += line
        if text.endswith("\\"):
            text = text[:-1]
            continue
        # A comment may hold an apostrophe, and a word a #.
        words = shlex.split(re.sub(r"(^|\s)#.*", "", text))
        text = ""
        while "&&" in words:
            yield number, words[: words.index("&&")]
            words = words[words.index("&&") + 1 :]
        if words:
            yield number, words


def _item(page: Path, line: int, words: list[str], environment: dict[str, str]) -> Item:
    first = next(n for n, word in enumerate(words) if not re.match(r"[A-Z_]+=", word))
    environment = {**environment, **_assignments(words[:first])}
    return Item(f"{name_of(page)}:{line}", tuple(words[first:]), environment)


def _assignments(words: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words)


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", blocks_and_prose(page)[1], re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    """The targets of links and pictures, those in HTML too, but for other sites'."""
    prose = re.sub(r"`[^`]*`", "", blocks_and_prose(page)[1])
    found = map("".join, re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", prose))
    return [link for link in found if "://" not in link]
