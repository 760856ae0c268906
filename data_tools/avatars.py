"""Faces, as many and as large as wanted, drawn by DiceBear in the styles of nine artists, the classes.

    python -m data_tools.avatars --size 256 --count 20000 --held_out 2000 --output data/avatars256
    python main.py --mode=train --dataset=avatars256

Needs Node.js 18 or newer; its npm fetches the drawing packages once, in exact versions, into --packages.
All faces differ, so that none is held out and also learnt from. The output's README.md names the artists.
"""

from __future__ import annotations

import functools
import json
import shlex
import subprocess
import sys
from pathlib import Path

from PIL import Image

from data_tools import convert
from data_tools.shards import Item
from pdm_tf.atomic import atomic_folder, atomic_text
from pdm_tf.errors import UserError, one_line, run

DICEBEAR = "9.4.3"
RESVG = "2.6.2"
# Of DiceBear's styles those in CC0 or CC BY 4.0 that look like a face at 64 and at 256 pixels.
STYLES = (
    "adventurer", "big-ears", "big-smile", "lorelei", "micah", "open-peeps", "personas", "pixel-art",
    "toon-head",
)  # fmt: skip
PACKAGES = {f"@dicebear/{name}": DICEBEAR for name in ("core", *STYLES)} | {"@resvg/resvg-js": RESVG}
CACHE = Path.home() / ".cache" / "pdm_tf" / f"dicebear-{DICEBEAR}-resvg-{RESVG}"
SCRIPT = Path(__file__).with_suffix(".mjs")


# --- Node.js and its packages --------------------------------------------------------------------


def install(packages: Path) -> None:
    """Has npm fetch the drawing packages into a folder, unless it holds them; all of them or none."""
    wanted = json.dumps({"private": True, "dependencies": PACKAGES}, indent=1)
    if packages.exists():
        found = packages / "package.json"
        if not found.is_file() or found.read_text() != wanted:
            raise UserError(
                f"{packages} holds something else than this version's packages: choose other --packages"
            )
        return
    print(f"npm fetches DiceBear {DICEBEAR} and resvg {RESVG} into {packages}", flush=True)
    with atomic_folder(packages) as folder:
        (folder / "package.json").write_text(wanted)
        _output(
            "npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--no-package-lock", cwd=folder
        )


def _output(program: str, *arguments: str, cwd: Path | None = None) -> str:
    """What a program prints; raises UserError if it is not there, or fails."""
    try:
        done = subprocess.run(
            [program, *arguments],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        )
    except FileNotFoundError as error:
        raise UserError(
            f"data_tools.avatars draws with Node.js, and there is no {program} here: install it"
            " (https://nodejs.org; Debian, Ubuntu: apt install nodejs npm) and run the same command again"
        ) from error
    except subprocess.CalledProcessError as error:
        raise UserError(
            f"{program} failed ({one_line(error.stderr)}); mend that, then run the same command again"
        ) from error
    return done.stdout


@functools.lru_cache(maxsize=1)
def _drawer(packages: Path, size: int) -> subprocess.Popen:
    """A Node.js process that draws until its input is closed."""
    command = ["node", str(SCRIPT), str(packages), "draw", str(size)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


# --- faces ---------------------------------------------------------------------------------------


def list_items(packages: Path, count: int) -> tuple[list[Item], dict[str, dict]]:
    """The first `count` faces, all of them different, from the styles in turn.

    Returns:
      the items, whose names are STYLE/NUMBER, and each style's `meta` as its package tells it.
    """
    shares = {style: len(range(label, count, len(STYLES))) for label, style in enumerate(STYLES)}
    found = json.loads(_output("node", str(SCRIPT), str(packages), "list", json.dumps(shares)))
    items = [
        Item(f"{style}/{number}", None, label)
        for label, style in enumerate(STYLES)
        for number in found[style]["numbers"]
    ]
    return items, {style: found[style]["meta"] for style in STYLES}


def load(item: Item, *, packages: Path, size: int) -> Image.Image:
    """Draws one face: RGB, size x size."""
    drawer = _drawer(packages, size)
    try:
        drawer.stdin.write(f"{item.name}\n".encode())
        drawer.stdin.flush()
    except BrokenPipeError:
        pass  # it has ended: there is nothing to read either
    pixels = drawer.stdout.read(3 * size**2)
    if len(pixels) < 3 * size**2:
        raise UserError(
            f"Node.js ended while it drew {item.name} (out of memory?); run the same command again, with"
            " fewer --workers: finished shards are kept"
        )
    return Image.frombytes("RGB", (size, size), pixels)


# --- the data set --------------------------------------------------------------------------------


def card(name: str, size: int, count: int, held_out: int, command: str, styles: dict[str, dict]) -> str:
    """The data set's README: what it is, and whose."""
    rows = [
        f"| `{style}` | [{meta['title']}]({meta['source']}) | [{meta['creator']}]({meta['homepage']})"
        f" | [{meta['license']['name']}]({meta['license']['url']}) |"
        for style, meta in styles.items()
    ]
    return f"""# {name}

{count + held_out:,} faces as {size} x {size} RGB images, no two the same: {count:,} in `train`,
{held_out:,} held out in `validation`; the style is the label ({len(STYLES)} classes). Inside TFRecord,
in the layout of TensorFlow Datasets.

**Source and licences.** Each face is put together by [DiceBear](https://www.dicebear.com) {DICEBEAR}
(code: MIT) from the parts of a style, as a function of the style and a number, and rasterised by
[resvg](https://github.com/thx/resvg-js) {RESVG}. The drawings are their artists':

| class | style | artist | licence |
|---|---|---|---|
{chr(10).join(rows)}

Changes made: DiceBear's remixes of the artists' parts, chosen by chance, on one of eight plain colours, as
pixels. Who passes these images on names the artists of the CC BY styles, as this table does.

**How it was made**, from the root of the project, with Node.js:

    python -m data_tools.avatars {command}
"""


def main(argv: list[str] | None = None) -> None:
    parser = convert.tool_parser(
        __doc__, "--packages", default=CACHE, help="folder for what npm fetches, default in ~/.cache/pdm_tf"
    )
    parser.add_argument("--size", type=int, default=64, help="pixels of a side, 16 to 2048; default 64")
    parser.add_argument("--count", type=int, default=20_000, help="training images, default 20000")
    parser.add_argument("--held_out", type=int, default=2000, help="images held out, default 2000")
    parser.set_defaults(validation_fraction=None, shard_mb=16)
    options = parser.parse_args(argv)
    size = options.size
    total = options.count + options.held_out
    if options.validation_fraction is not None:
        raise UserError("--validation_fraction: say how many faces are held out with --held_out")
    if not 16 <= size <= 2048:
        raise UserError(f"--size={size}: must be in 16..2048")
    if options.count < 1 or options.held_out < 0:
        raise UserError("--count must be at least 1, and --held_out at least 0")
    options.validation_fraction = options.held_out / total
    convert.checked(options)
    install(options.input)
    items, styles = list_items(options.input, total)
    description = (
        f"Faces of {len(STYLES)} styles, drawn by DiceBear {DICEBEAR} and resvg {RESVG};"
        " README.md names their artists."
    )
    target = convert.Target(f"avatars{size}", (size, size, 3), description, STYLES)
    convert.convert(items, functools.partial(load, packages=options.input, size=size), target, options)
    command = shlex.join(sys.argv[1:] if argv is None else argv)
    text = card(target.name, size, options.count, options.held_out, command, styles)
    atomic_text(options.output / "README.md", text)


if __name__ == "__main__":
    sys.exit(run(main))
