"""The report of an evaluation: its table, its notes, and evaluation.json."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pdm_tf import stack
from pdm_tf.atomic import atomic_json
from pdm_tf.evaluation import copies
from pdm_tf.evaluation.copies import CopyCheck
from pdm_tf.evaluation.features import Detector, Features
from pdm_tf.evaluation.image_sets import ImageSet
from pdm_tf.evaluation.metrics import Comparison, Measurement
from pdm_tf.evaluation.references import Reference
from pdm_tf.images import write_png
from pdm_tf.paths import as_path

PAPERS_COUNT = 50_000  # samples that published FIDs are of


def report(
    detector: Detector,
    reference: Reference,
    image_sets: Iterable[ImageSet],
    out: str | os.PathLike,
    copy_check: CopyCheck | str,
) -> None:
    """Measures sets of images, prints the table, and writes evaluation.json and pictures to the folder `out`.

    Args:
      image_sets: each is done with before the next is asked for.
      copy_check: looks for copies of the reference; or the reason why that is not done.
    """
    out = as_path(out)
    comparison = Comparison(detector, reference)
    rows = []
    results = []
    lines = []
    pictures = []
    ledgers = []
    for number, image_set in enumerate(image_sets, 1):
        metrics = comparison.measure(image_set.features)
        count = len(image_set.features.pooled) // detector.rows
        notes = notes_on(detector, reference, image_set)
        result = {**image_set.details, **_result(image_set.title, count, metrics), "notes": notes}
        if isinstance(copy_check, CopyCheck):
            found = copy_check.search(image_set.features.pooled)
            picture = out / ("nearest.png" if number == 1 else f"nearest_{number}.png")
            pictures.append(picture)
            write_png(picture, copy_check.picture(image_set, found))
            result["copies"] = found
            lines.append(f"copies, {image_set.title}: {copies.in_words(found)} {picture}")
        rows.append((image_set.title, count, metrics))
        results.append(result)
        if image_set.ledger:
            ledgers.append(image_set.ledger)
    if isinstance(copy_check, CopyCheck):
        held_out = copy_check.held_out
        metrics = comparison.measure(Features(held_out.features))
        rows.append((held_out.title, len(held_out.features), metrics))
        results.append({**held_out.details, **_result(*rows[-1])})
        searched = len(reference.features)
        if searched < reference.count:
            lines.append(f"note: copies are looked for among {searched:,} of {reference.count:,} images")
        if copy_check.twins:
            count = len(held_out.features)
            lines.append(
                f"note: {copy_check.twins:,} of {count:,} held-out images are training images, too: the "
                "others say what is near"
            )
    else:
        lines.append(f"copies: not looked for, because {copy_check}")
    evaluation = {
        "detector": {"name": detector.name, "sha256": detector.sha256, "resize": detector.resize},
        "reference": {**reference.details, "title": reference.title, "images": reference.count},
        "results": results,
        "stack": stack.versions(),
    }
    atomic_json(out / "evaluation.json", evaluation)
    for picture in out.glob("nearest*.png"):
        if re.fullmatch(r"nearest(_\d+)?\.png", picture.name) and picture not in pictures:
            picture.unlink()  # of an earlier evaluation
    print(f"reference: {reference.title}; detector: {detector.name}")
    print(table(rows))
    notes = dict.fromkeys(note for result in results for note in result.get("notes", ()))
    print("\n".join([*(f"note: {note}" for note in notes), *lines, f"evaluation: {out}/evaluation.json"]))
    for ledger in ledgers:
        ledger.remove()


def _result(title: str, count: int, metrics: Mapping[str, Measurement]) -> dict[str, Any]:
    values = {name: measurement.to_json() for name, measurement in metrics.items()}
    return {"title": title, "images": count, "metrics": values}


def notes_on(detector: Detector, reference: Reference, image_set: ImageSet) -> list[str]:
    """Caveats for a reader who compares the numbers of some images with others'."""
    notes = []
    dimension = len(reference.moments.mean)
    count = len(image_set.features.pooled) // detector.rows
    if detector.name == "inception" and count != PAPERS_COUNT:
        notes.append(
            f"{count:,} images: published FIDs are of {PAPERS_COUNT:,}; fewer give larger ones, so these "
            "cannot be compared"
        )
    if count <= dimension or (reference.count or dimension + 1) <= dimension:
        notes.append(
            f"{count:,} images on one side and {reference.count or 'unknown many'} on the other are few for "
            f"{dimension} features: compare {detector.title('frechet')} only at equal numbers, or "
            f"{detector.title('kernel')}, which has no bias"
        )
    if detector.name != "inception":
        notes.append(f"the detector is {detector.name}: these numbers are not FID")
    if "statistics" in reference.details:
        notes.append(
            f"{reference.details['path']} does not name the network and resize of its statistics: distances "
            f"to them mean something only if these are {detector.name} and {detector.resize}"
        )
    sizes = [shape and shape[:2] for shape in (image_set.image_shape, reference.image_shape)]
    if None not in sizes and sizes[0] != sizes[1]:
        shown = [f"{height} x {width}" for height, width in sizes]
        notes.append(
            f"the images are {shown[0]} pixels and the reference's {shown[1]}: the detector resizes both, "
            "and distances count the difference"
        )
    return notes


def table(rows: Sequence[tuple[str, int, Mapping[str, Measurement]]]) -> str:
    """(title, N, metrics) of each set -> a table in Markdown."""
    names = list(dict.fromkeys(name for _, _, metrics in rows for name in metrics))
    lines = [["images", "N", *names], ["---"] * (2 + len(names))]
    for title, count, metrics in rows:
        lines.append([title, f"{count:,}", *(str(metrics.get(name, "-")) for name in names)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
