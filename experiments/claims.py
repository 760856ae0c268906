"""The paper's statements, and rules that judge them by the numbers of an analysis.

Each rule can fail, and has a test of either outcome.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from pdm_tf.config.fields import DiffusionConfig
from pdm_tf.diffusion.schedules import SCHEDULES
from pdm_tf.evaluation.metrics import Measurement


class Statement(NamedTuple):
    """What the paper says, and where; `left_out`: why this page does not measure it."""

    place: str
    text: str
    left_out: str = ""


STATEMENTS = {
    "blur": Statement("Section 2.2, Fig. 1a", "x* and x_theta lose detail as t grows"),
    "optimum": Statement("Section 2.2, Fig. 1a", "x_theta approximates x*"),
    "cancel": Statement(
        "Section 2.2, Fig. 1b", "in the mean of q(x|z_t) high frequencies cancel, low ones stay"
    ),
    "distortion": Statement("Section 3.1, Fig. 2", "at low t a larger P has noticeably more distortion"),
    "similar": Statement("Section 3.1, Fig. 2", "at most t distortion is similar or even lower"),
    "speed": Statement("Table 1", "the larger P, the faster (1, 1.41, 2.59 times)"),
    "fid": Statement("Table 1", "after equal days, the larger P, the larger FID (5.7, 7.5, 22.0)"),
    "x_prediction": Statement("Section 3.2, Fig. 3", "patched models do better with x than with eps"),
    "v_prediction": Statement("Section 3.2, Fig. 3", "patched models do about as well with v as with x"),
    "magnified": Statement(
        "Section 3.2, Fig. 4", "at t = 970 small errors of eps are large errors of x_theta"
    ),
    "memory": Statement("Section 4.3", "4 times the batch fits with P = 4"),
    "borders": Statement("Section 4, Figs. 5 to 9", "no artefacts of patching are seen"),
    "precision": Statement("Table 2", "w = 2.25 instead of 1.5: more precision"),
    "recall": Statement("Table 2", "w = 2.25 instead of 1.5: less recall"),
    "cost": Statement("Table 2", "FID near ADM's for a thirtieth of its training", "no ADM is trained here"),
    "split": Statement(
        "Section 4.1",
        "two networks by noise level, the second from the first's weights",
        "the paper compares it with nothing",
    ),
    "divergence": Statement(
        "Appendix D", "a Vision Transformer diverges", "not seen at any size here: docs/vit.md"
    ),
}


class Claim(NamedTuple):
    """A measurement of a statement; `holds` is None where it decides nothing."""

    statement: str
    here: str
    holds: bool | None


def verdict(holds: bool | None) -> str:
    """A claim's outcome in words."""
    return {True: "holds", False: "**does not hold**", None: "not judged"}[holds]


def overall(claims: Iterable[Claim]) -> str:
    """The outcome of all claims of a statement in words."""
    found = {claim.holds for claim in claims} - {None}
    return "holds in part" if len(found) == 2 else verdict(found.pop() if found else None)


def fig1a(numbers: Mapping[str, Any]) -> list[Claim]:
    """Gradient energy falls with t, within 0.05; RMSE to x* is at most 0.1 where that averages 50 images.

    At lower t x* is one training image, or a few, which no network should draw.
    """
    t = numbers["t"]
    claims = []
    for title, energy in {**numbers["energy"], "x*": numbers["energy_optimum"]}.items():
        rise = max(0.0, *np.diff(energy))
        here = (
            f"{title}: {energy[0]:.2f} of the images' gradient energy at t = {t[0]}, {energy[-1]:.2f} at "
            f"t = {t[-1]}, with no rise above {rise:.2f} on the way"
        )
        claims.append(Claim("blur", here, rise < 0.05 and energy[-1] < energy[0]))
    for title, distances in numbers["rmse_to_optimum"].items():
        averaged = {at: d for at, d, n in zip(t, distances, numbers["images_averaged"]) if n >= 50}
        others = max((d for at, d in zip(t, distances) if at not in averaged), default=0.0)
        values = ", ".join(f"{value:.3f} at t = {at}" for at, value in averaged.items())
        here = (
            f"{title}: RMSE to x* {values or 'nowhere'}, where it averages 50 images or more; else up to "
            f"{others:.2f}"
        )
        claims.append(Claim("optimum", here, max(averaged.values()) <= 0.1 if averaged else None))
    return claims


def fig1b(numbers: Mapping[str, Any]) -> list[Claim]:
    """At least twice as much of the highest frequencies' power cancels as of the lowest ones'."""
    cancelled = [1 - kept for kept in numbers["kept_power_by_band"]]
    here = (
        f"of the samples' power {cancelled[0]:.0%} cancels in the lowest band, {cancelled[-1]:.0%} in the top"
    )
    return [Claim("cancel", here, cancelled[-1] > 2 * cancelled[0])]


def fig2(numbers: Mapping[str, Any]) -> list[Claim]:
    """RMSE of a larger P over that of the smallest: above 1.05 at the lowest t, at most 1.05 at most t."""
    t = numbers["t"]
    splits = numbers["splits"]
    claims = []
    for title, curve in splits.get("held_out", splits["train"])["ratio_to_smallest"].items():
        title = f"{title} over {numbers['smallest']}"
        known = [(at, value) for at, value in zip(t, curve["value"]) if value is not None]
        at, first = known[0]
        claims.append(Claim("distortion", f"{title}: {first:.2f} at t = {at}", first > 1.05))
        similar = sum(value <= 1.05 for _, value in known)
        here = f"{title}: at most 1.05 at {similar} of {len(t)} t"
        claims.append(Claim("similar", here, similar > len(t) / 2))
    return claims


def fig3(numbers: Mapping[str, Any]) -> list[Claim]:
    """L_simple at the last step that all have: eps's above x's by more than the spread, v's within 15 %."""
    models = numbers["models"]
    curves = {title: curve["simple_loss"] for title, curve in numbers["curves"].items()}
    step = min(curve["step"][-1] for curve in curves.values())
    ends = {
        (models[title]["patch_size"], models[title]["prediction"]): _at(curve, step)
        for title, curve in curves.items()
    }
    claims = []
    for patch_size in sorted({patch_size for patch_size, _ in ends}, reverse=True):
        x, x_spread = ends[patch_size, "x"]
        for prediction in ("eps", "v"):
            value, spread = ends[patch_size, prediction]
            margin = max(math.hypot(spread, x_spread), 0.05 * x)
            here = (
                f"P = {patch_size}, step {step:,.0f}: L_simple of {prediction} is {value / x:.2f} times that "
                "of x"
            )
            if prediction == "eps":
                claim = Claim("x_prediction", here, value > x + margin)
            else:
                claim = Claim("v_prediction", here, abs(value - x) <= max(margin, 0.15 * x))
            # The paper shows curves of P = 1 and says nothing of them.
            claims.append(claim if patch_size > 1 else claim._replace(holds=None))
    return claims


def _at(curve: Mapping[str, Any], step: float) -> tuple[float, float]:
    """Mean and spread at a step of the curve, or the last before it."""
    place = max(number for number, at in enumerate(curve["step"]) if at <= step)
    return curve["mean"][place], curve["spread"][place] if curve["spread"] else 0.0


def fig4(numbers: Mapping[str, Any]) -> list[Claim]:
    """Gradient energy over that of x*: eps's more than twice x's, if eps is off by at most 0.1.

    An eps-network that has hardly learnt has a large error of x_theta by arithmetic.
    """
    predictions = {title: model["prediction"] for title, model in numbers["models"].items()}
    energies = {predictions[title]: value for title, value in numbers["energy_over_optimum"].items()}
    distances = {predictions[title]: value for title, value in numbers["rmse_to_optimum"].items()}
    snr = SCHEDULES["linear"](DiffusionConfig(), 32).snr[numbers["t"]]
    error = distances["eps"] * math.sqrt(snr)
    here = (
        f"gradient energy over that of x*: {energies['eps']:.3g} of eps, whose RMSE of eps is {error:.3f}, "
        f"{energies['x']:.3g} of x"
    )
    return [Claim("magnified", here, energies["eps"] > 2 * energies["x"] if error <= 0.1 else None)]


def table1(numbers: Mapping[str, Any]) -> list[Claim]:
    """Images a second rise with P."""
    rows = sorted(numbers["rows"].values(), key=lambda row: row["patch_size"])
    speeds = [row["images_per_second"] / rows[0]["images_per_second"] for row in rows]
    values = ", ".join(f"{speed:.2f} of P = {row['patch_size']}" for speed, row in zip(speeds, rows))
    return [Claim("speed", f"times as fast: {values}", speeds == sorted(speeds))]


def equal_hours(numbers: Mapping[str, Any]) -> list[Claim]:
    """Distances, and the bits of held-out images, rise with P, if training times are equal within 10 %.

    Distances are judged where recall is above 0.1: below it samples are too far from the data for a detector
    to rank them. Bits, which need no samples, are judged where neighbours in P differ by more than two
    standard errors.
    """
    models = numbers["models"]
    rows = sorted(numbers["rows"].items(), key=lambda item: models[item[0]]["patch_size"])
    name = next(name for name in rows[0][1]["metrics"] if name.startswith(("FID", "FD-")))
    distances = [row["metrics"][name]["value"] for _, row in rows]
    seconds = [86400 * row["device_days"] for _, row in rows]
    recalls = [row["metrics"]["recall"]["value"] for _, row in rows]
    values = ", ".join(
        f"{distance:.0f} of P = {models[title]['patch_size']} ({time:.0f} s, recall {recall:.2f})"
        for (title, _), distance, time, recall in zip(rows, distances, seconds, recalls)
    )
    equal = max(seconds) <= 1.1 * min(seconds)
    rise = distances == sorted(distances)
    claims = [Claim("fid", f"{name}: {values}", rise if equal and min(recalls) > 0.1 else None)]

    sizes = sorted({one["patch_size"] for one in numbers["likelihood"]})
    seeds = [[one for one in numbers["likelihood"] if one["patch_size"] == size] for size in sizes]
    bits = [float(np.mean([one["value"] for one in ones])) for ones in seeds]
    errors = [_error_over_seeds(ones) for ones in seeds]
    values = ", ".join(
        f"{value:.3f} ± {error:.3f} of P = {size}" for size, value, error in zip(sizes, bits, errors)
    )
    clear = all(abs(b - a) > 2 * math.hypot(e, d) for a, b, d, e in zip(bits, bits[1:], errors, errors[1:]))
    here = f"in place of FID, bits per dimension of held-out images: {values}"
    claims.append(Claim("fid", here, bits == sorted(bits) if equal and clear else None))
    return claims


def _error_over_seeds(measured: Sequence[Mapping[str, float]]) -> float:
    """The standard error of a mean over seeds, which were all measured on the same images."""
    of_images = float(np.mean([one["error"] for one in measured]))
    return math.hypot(of_images, Measurement.mean_of([one["value"] for one in measured]).error or 0.0)


def guidance(numbers: Mapping[str, Any]) -> list[Claim]:
    """Precision rises and recall falls from the least to the most guidance of Table 2.

    Judged where the change is more than two standard errors.
    """
    weak, strong = (numbers["rows"][f"w = {guidance}"] for guidance in ("1.5", "2.25"))
    claims = []
    for name, sign in (("precision", 1), ("recall", -1)):
        before = weak["metrics"][name]
        after = strong["metrics"][name]
        change = sign * (after["value"] - before["value"])
        error = math.hypot(before["error"], after["error"]) / math.sqrt(weak["seeds"])
        here = f"{name} {before['value']:.3f} with w = 1.5, {after['value']:.3f} with w = 2.25"
        claims.append(Claim(name, here, change > 0 if abs(change) > 2 * error else None))
    return claims


def memory(numbers: Mapping[str, Any]) -> list[Claim]:
    """The largest batch of the largest P is at least 3.5 times that of the smallest."""
    small, *_, large = sorted(numbers["rows"].values(), key=lambda row: row["patch_size"])
    times = large["largest_batch"] / max(small["largest_batch"], 1)
    values = ", ".join(f"{row['largest_batch']} with P = {row['patch_size']}" for row in (large, small))
    return [Claim("memory", f"{values}: {times:.1f} times", times >= 3.5)]


def grids(numbers: Mapping[str, Any]) -> list[Claim]:
    """Second differences across borders over those beside them: within two standard errors of the data's."""
    claims = []
    for title, sizes in numbers["border_steps"].items():
        for size, ratios in sizes.items():
            samples, samples_error = ratios["samples"]
            data, data_error = ratios["data"]
            here = (
                f"{title}, every {size} pixels: second differences across borders over those beside them "
                f"{samples:.2f} ± {samples_error:.2f}, of data {data:.2f} ± {data_error:.2f}"
            )
            holds = samples - data <= 2 * math.hypot(samples_error, data_error)
            claims.append(Claim("borders", here, holds))
    return claims
