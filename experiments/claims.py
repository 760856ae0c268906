"""The paper's findings, judged by the numbers of an analysis: no text is written by hand."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np


class Claim(NamedTuple):
    """One finding of the paper, the measurement here, and whether it holds; None: the paper is silent."""

    paper: str
    here: str
    holds: bool | None


HOLDS = {True: "holds", False: "**does not hold**", None: ""}


def fig1a(numbers: dict[str, Any]) -> list[Claim]:
    """Predictions grow blurred, and are near x*."""
    t = numbers["t"]
    claims = []
    for title, energy in {**numbers["energy"], "x*": numbers["energy_optimum"]}.items():
        rise = max(0.0, *np.diff(energy))
        here = (
            f"{title}: {energy[0]:.2f} of the images' gradient energy at t = {t[0]}, {energy[-1]:.2f} at "
            f"t = {t[-1]}, with no rise above {rise:.2f} on the way"
        )
        claims.append(Claim("the larger t, the more blur", here, rise < 0.05 and energy[-1] < energy[0]))
    for title, distance in numbers["rmse_to_optimum"].items():
        far = [at for at, value in zip(t, distance) if value > 0.1]
        where = f"up to t = {far[-1]}" if far else "nowhere"
        here = f"{title}: RMSE to x* {max(distance):.2f} at most, above 0.1 {where}"
        claims.append(Claim("x_theta approximates x*", here, not far))
    return claims


def fig1b(numbers: dict[str, Any]) -> list[Claim]:
    """High frequencies cancel in the mean of samples."""
    cancelled = [1 - kept for kept in numbers["kept_power_by_band"]]
    here = (
        f"of the samples' power {cancelled[0]:.0%} cancels in the lowest band, {cancelled[-1]:.0%} in the top"
    )
    paper = "in the mean of q(x|z_t) high frequencies cancel, and low ones stay"
    return [Claim(paper, here, cancelled[-1] > 2 * cancelled[0])]


def fig2(numbers: dict[str, Any]) -> list[Claim]:
    """Larger patches distort at little noise alone."""
    t = numbers["t"]
    splits = numbers["splits"]
    claims = []
    for title, curve in splits.get("held_out", splits["train"])["ratio_to_smallest"].items():
        title = f"{title} over {numbers['smallest']}"
        known = [(at, value) for at, value in zip(t, curve["value"]) if value is not None]
        at, first = known[0]
        here = f"{title}: {first:.2f} at t = {at}"
        claims.append(Claim("at low t a larger P has noticeably more distortion", here, first > 1.05))
        similar = sum(value <= 1.05 for _, value in known)
        here = f"{title}: at most 1.05 at {similar} of {len(t)} t"
        claims.append(Claim("at most t it is similar or even lower", here, similar > len(t) / 2))
    return claims


def fig3(numbers: dict[str, Any]) -> list[Claim]:
    """L_simple of x, eps and v at the last step that all have."""
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
            if patch_size == 1:
                claims.append(Claim("(P = 1: curves, and nothing said)", here, None))
            elif prediction == "eps":
                paper = "patched models do better with x than with eps"
                claims.append(Claim(paper, here, value > x + margin))
            else:
                similar = abs(value - x) <= max(margin, 0.15 * x)
                claims.append(Claim("and about as well with v", here, similar))
    return claims


def _at(curve: dict[str, Any], step: float) -> tuple[float, float]:
    """Mean and spread at a step of the curve, or the last before it."""
    place = max(number for number, at in enumerate(curve["step"]) if at <= step)
    return curve["mean"][place], curve["spread"][place] if curve["spread"] else 0.0


def fig4(numbers: dict[str, Any]) -> list[Claim]:
    """eps-prediction leaves noise."""
    models = numbers["models"]
    energies = {models[title]["prediction"]: value for title, value in numbers["energy_over_optimum"].items()}
    here = f"gradient energy over that of x*: {energies['eps']:.3g} of eps, {energies['x']:.3g} of x"
    paper = "eps-prediction leaves noise in x_theta, x-prediction does not"
    return [Claim(paper, here, energies["eps"] > 2 * energies["x"])]


def table1(numbers: dict[str, Any]) -> list[Claim]:
    """Larger patches are faster, and farther from the data."""
    rows = sorted(numbers["rows"].values(), key=lambda row: row["patch_size"])
    speeds = [row["images_per_second"] / rows[0]["images_per_second"] for row in rows]
    values = ", ".join(f"{speed:.2f} of P = {row['patch_size']}" for speed, row in zip(speeds, rows))
    faster = Claim(
        "the larger P, the faster (1, 1.41, 2.59 times)", f"times as fast: {values}", speeds == sorted(speeds)
    )
    return [faster, *table1_distances(numbers)]


def table1_distances(numbers: dict[str, Any]) -> list[Claim]:
    """Larger patches are farther from the data; the paper's networks were trained for equal hours."""
    models = numbers["models"]
    rows = sorted(numbers["rows"].items(), key=lambda item: models[item[0]]["patch_size"])
    name = next(name for name in rows[0][1]["metrics"] if name.startswith(("FID", "FD-")))
    distances = [row["metrics"][name]["value"] for _, row in rows]
    values = ", ".join(
        f"{distance:.0f} of P = {models[title]['patch_size']}"
        for (title, _), distance in zip(rows, distances)
    )
    paper = "the larger P, the larger FID (5.7, 7.5, 22.0)"
    return [Claim(paper, f"{name}: {values}", distances == sorted(distances))]


def memory(numbers: dict[str, Any]) -> list[Claim]:
    """Larger patches take less memory."""
    small, *_, large = sorted(numbers["rows"].values(), key=lambda row: row["patch_size"])
    times = large["largest_batch"] / max(small["largest_batch"], 1)
    values = ", ".join(f"{row['largest_batch']} with P = {row['patch_size']}" for row in (large, small))
    return [Claim("4 times the batch fits with P = 4", f"{values}: {times:.1f} times", times >= 3.5)]


def grids(numbers: dict[str, Any]) -> list[Claim]:
    """Patch borders do not show in samples."""
    claims = []
    for title, energy in numbers["border_energy"].items():
        if energy["samples"] is not None:
            samples = energy["samples"]
            data = energy["data"]
            here = f"{title}: energy across borders over elsewhere {samples:.2f}, of data {data:.2f}"
            claims.append(Claim("no artefacts of patching are seen", here, samples <= 1.1 * data))
    return claims


def silent(numbers: dict[str, Any]) -> list[Claim]:
    """No claim."""
    return []
