"""Pictures of a run's Fourier prompts: log-gains, their profiles, images under them.

Planes have frequency 0 in the middle and axes in fractions of the highest frequency, 0.5 cycles per
px. Maps are means over the colour channels, which profiles show one by one.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from fedkd.fourier.portrait import radial_profile
from fedkd.fourier.quality import NUM_LATENTS
from server.hospital_prompts import STRENGTHS, HospitalPrompts, profile_frequencies
from server.pictures.style import BLUE, DARK, GREEN, GREY, RED, STYLE, short_name, write_figure

Floats = npt.NDArray[np.float64]
NUM_SINGLE = 3
"""Single prompts that :func:`plot_maps` shows beside the mean."""
_DIVERGING = "RdBu_r"
_HIGHEST = "frequency (1: 0.5 cycles/px)"
_CHANNELS = (("R", RED, "-"), ("G", GREEN, "--"), ("B", BLUE, "-."))
_NAME = 20


def plot_maps(hospitals: Sequence[HospitalPrompts], path: Path, title: str) -> None:
    """Draw mean and single log-gains, a row per hospital, on one scale, as PNG.

    Args:
        hospitals: At least one; each has log-gains.
        path: File to write, replaced as a whole.
        title: Heading.
    """
    rows = []
    for one in hospitals:
        gains = one.portrait.log_gains
        assert gains is not None, "there is no map without log-gains"
        rows.append(torch.cat([gains.mean(0, keepdim=True), gains[:NUM_SINGLE]]).mean(1))
    norm = _around_zero(max(float(planes.abs().max()) for planes in rows))
    headings = [f"mean of {NUM_LATENTS}", *(f"prompt {n + 1}" for n in range(NUM_SINGLE))]
    with rc_context(STYLE):
        figure, grid = _grid(len(rows), len(headings), (1.85, 1.85), title)
        for row, (planes, one) in enumerate(zip(rows, hospitals, strict=True)):
            for axes, plane in zip(grid[row], planes, strict=True):
                _draw_plane(axes, plane, norm, last=row == len(rows) - 1)
            grid[row, 0].set_yticks([-1, 0, 1])
            grid[row, 0].set_ylabel(short_name(one.name, _NAME), fontweight="bold")
        _head(grid, headings)
        figure.supxlabel(_HIGHEST, fontsize=10)
        _scale(figure, grid, norm, "log-gain (nats)")
        write_figure(figure, path)


def plot_profiles(hospitals: Sequence[HospitalPrompts], path: Path, title: str) -> None:
    """Draw radial profiles of the log-gains, mean and standard deviation over prompts, as PNG.

    Arguments are those of :func:`plot_maps`.
    """

    def draw(axes: Axes, one: HospitalPrompts) -> None:
        gains = one.portrait.log_gains
        assert gains is not None, "there is no profile without log-gains"
        profiles = radial_profile(gains)
        _draw_profile(axes, profile_frequencies(gains), profiles.mean(0), profiles.std(0))

    _plot_panels(hospitals, path, title, "log-gain (nats)", draw)


def plot_changes(hospitals: Sequence[HospitalPrompts], path: Path, title: str) -> None:
    """Draw what full prompts do to the amplitude spectrum, log(A~/A), as maps and profiles, as PNG.

    Args:
        hospitals: At least one, a row for each.
        path: File to write, replaced as a whole.
        title: Heading.
    """
    planes = [one.portrait.changes.mean(0) for one in hospitals]
    profiles = [radial_profile(one.portrait.changes) for one in hospitals]
    norm = _around_zero(max(float(plane.abs().max()) for plane in planes))
    reach = max(float(profile.abs().max()) for profile in profiles) or 1.0
    with rc_context(STYLE):
        figure, grid = _grid(len(hospitals), 2, (2.1, 2.1), title, widths=(1.0, 2.0))
        for row, one in enumerate(hospitals):
            last = row == len(hospitals) - 1
            _draw_plane(grid[row, 0], planes[row], norm, last=last)
            grid[row, 0].set_yticks([-1, 0, 1])
            grid[row, 0].set_ylabel(short_name(one.name, _NAME), fontweight="bold")
            _draw_profile(grid[row, 1], profile_frequencies(planes[row]), profiles[row])
            grid[row, 1].set_ylim(-1.1 * reach, 1.1 * reach)
            grid[row, 1].tick_params(labelbottom=last)
        grid[0, 1].legend(ncols=3, loc="best", fontsize=8)
        _head(grid, ["log(A~/A), nats", "by distance from frequency 0"])
        figure.supxlabel(_HIGHEST, fontsize=10)
        _scale(figure, grid[:, :1], norm, "log(A~/A), nats", location="bottom")
        write_figure(figure, path)


def plot_examples(
    one: HospitalPrompts, path: Path, title: str, scales: tuple[float, float]
) -> None:
    """Draw images at all strengths, and what full strength changed, a row for each, as PNG.

    Args:
        one: The hospital.
        path: File to write, replaced as a whole.
        title: Heading.
        scales: Ends of the scales of pixels' and of spectra's differences: see
            :func:`example_scales`, by which hospitals share them.
    """
    norms = [_around_zero(scale) for scale in scales]
    headings = [f"strength {STRENGTHS[0]:g}", *(f"{strength:g}" for strength in STRENGTHS[1:])]
    with rc_context(STYLE):
        num = len(one.examples)
        heights = [*[1.0] * num, 0.08]  # the scales have a row of their own: images stay in line
        cell = (1.42, 1.5 * num / (num + 1))
        figure, cells = _grid(num + 1, len(headings) + 2, cell, title, heights=heights)
        grid = cells[:num]
        for row, example in zip(grid, one.examples, strict=True):
            for axes, view in zip(row, example.views, strict=False):
                image = view.permute(1, 2, 0).clamp(0, 1).float().numpy()
                axes.imshow(image, cmap="grey", interpolation=_interpolation(image))
                axes.set(xticks=[], yticks=[])
            difference = (example.views[-1] - example.views[0]).mean(0)
            _show(row[-2], difference, norms[0])
            row[-2].set(xticks=[], yticks=[])
            _show(row[-1], torch.fft.fftshift(example.change.mean(0)), norms[1])
            row[-1].set(xticks=[], yticks=[])
            row[0].set_ylabel(_broken(example.name), fontsize=9)
        _head(grid, [*headings, "change of\npixels", "change of\nspectrum"])
        for axes in cells[num, :-2]:
            axes.remove()
        for axes, norm, label in zip(
            cells[num, -2:], norms, ("mean of R, G, B", "log(A~/A), nats"), strict=True
        ):
            bar = figure.colorbar(
                ScalarMappable(norm, _DIVERGING), cax=axes, orientation="horizontal"
            )
            bar.set_label(label, fontsize=8)
            axes.tick_params(labelsize=8)
        write_figure(figure, path)


def example_scales(hospitals: Sequence[HospitalPrompts]) -> tuple[float, float]:
    """Ends of common scales of the pixels' and the spectra's differences in all examples.

    The pixels' is the largest difference, the spectra's the 99th percentile: single bins whose
    amplitude is next to nothing change by any factor.
    """
    examples = [example for one in hospitals for example in one.examples]
    pixels = max(float((e.views[-1] - e.views[0]).mean(0).abs().max()) for e in examples)
    spectra = torch.cat([example.change.mean(0).abs().flatten() for example in examples])
    return pixels, float(np.quantile(spectra.numpy(), 0.99))


def _plot_panels(
    hospitals: Sequence[HospitalPrompts],
    path: Path,
    title: str,
    unit: str,
    draw: Callable[[Axes, HospitalPrompts], None],
) -> None:
    """A panel per hospital, up to three in a row, with common axes."""
    num_columns = 2 if len(hospitals) == 4 else min(3, len(hospitals))
    num_rows = -(-len(hospitals) // num_columns)
    with rc_context(STYLE):
        size = (max(3.3 * num_columns, 5.5) + 0.4, 2.5 * num_rows + 1.0)
        figure = Figure(figsize=size, dpi=120)
        figure.suptitle(title, fontsize=13, fontweight="bold")
        figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.08)
        panels = figure.subplots(num_rows, num_columns, squeeze=False, sharex=True, sharey=True)
        for axes, one in zip(panels.flat, hospitals, strict=False):
            draw(axes, one)
            axes.set_title(short_name(one.name, _NAME), loc="left")
        for axes in panels.flat[len(hospitals) :]:
            axes.set_visible(False)
        for row in panels:
            row[0].set_ylabel(unit)
        for axes in panels.flat[max(len(hospitals) - num_columns, 0) : len(hospitals)]:
            axes.tick_params(labelbottom=True)
        panels[0, 0].legend(fontsize=8, ncols=3, handlelength=1.8, columnspacing=1.0)
        figure.supxlabel(_HIGHEST, fontsize=10)
        write_figure(figure, path)


def _draw_profile(
    axes: Axes, frequencies: Tensor, means: Tensor, spreads: Tensor | None = None
) -> None:
    """Lines of the channels; frequency 0, which stands for brightness, as a mark of its own."""
    axes.axhline(0, color=GREY, linewidth=1, zorder=0)
    channels: Sequence[tuple[str, str, str]] = _CHANNELS
    if len(means) != len(_CHANNELS):
        channels = [(f"channel {n}", DARK, "-") for n in range(len(means))]
    for channel, (name, colour, line) in enumerate(channels):
        mean = means[channel]
        axes.plot(frequencies[1:], mean[1:], line, color=colour, linewidth=1.8, label=name)
        spread = None if spreads is None else spreads[channel]
        axes.errorbar(
            # Side by side, so that none hides another.
            0.02 * (channel - 1),
            float(mean[0]),
            None if spread is None else float(spread[0]),
            color=colour,
            marker="o",
            markersize=4,
            capsize=2,
            linewidth=1,
        )
        if spread is not None:
            low, high = (mean - spread)[1:], (mean + spread)[1:]
            axes.fill_between(frequencies[1:], low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xlim(-0.05, 1.02)


def _grid(
    num_rows: int,
    num_columns: int,
    cell: tuple[float, float],
    title: str,
    widths: Sequence[float] | None = None,
    heights: Sequence[float] | None = None,
) -> tuple[Figure, Any]:
    total = sum(widths) if widths else num_columns
    size = (max(cell[0] * total + 1.5, 5.5), cell[1] * num_rows + 1.4)
    figure = Figure(figsize=size, dpi=120)
    figure.suptitle(title, fontsize=13, fontweight="bold")
    figure.set_layout_engine("constrained", w_pad=0.04, h_pad=0.04)
    grid = figure.subplots(
        num_rows, num_columns, squeeze=False, width_ratios=widths, height_ratios=heights
    )
    return figure, grid


def _head(grid: Any, headings: Sequence[str]) -> None:
    for axes, heading in zip(grid[0], headings, strict=True):
        axes.set_title(heading, fontsize=10)


def _draw_plane(axes: Axes, plane: Tensor, norm: Normalize, *, last: bool) -> None:
    """A full plane, unshifted, with frequency 0 in the middle."""
    height, width = plane.shape
    # Bins are squares around their frequencies; that of an even side's lowest row is -1.
    left, top = (-(size // 2) * 2 / size - 1 / size for size in (width, height))
    extent = (left, left + 2, top + 2, top)
    _show(axes, torch.fft.fftshift(plane), norm, extent)
    axes.set(xticks=[-1, 0, 1], yticks=[])
    axes.tick_params(labelbottom=last, labelsize=8)


def _show(
    axes: Axes,
    plane: Tensor,
    norm: Normalize,
    extent: tuple[float, float, float, float] | None = None,
) -> None:
    values: Floats = plane.double().numpy()
    axes.imshow(
        values, cmap=_DIVERGING, norm=norm, extent=extent, interpolation=_interpolation(values)
    )


def _interpolation(image: npt.NDArray[Any]) -> str:
    """Small pictures keep their pixels; large ones would lose some."""
    return "nearest" if max(image.shape[:2]) <= 96 else "antialiased"


def _around_zero(reach: float) -> Normalize:
    return Normalize(-reach, reach) if reach > 0 else Normalize(-1, 1)


def _scale(figure: Figure, grid: Any, norm: Normalize, label: str, location: str = "right") -> None:
    bar = figure.colorbar(
        ScalarMappable(norm, _DIVERGING),
        ax=list(grid.flat),
        location=location,
        fraction=min(0.05, 0.12 / len(grid)) if location == "bottom" else 0.05,
        pad=min(0.05, 0.08 / len(grid)) if location == "bottom" else 0.05,
        shrink=0.9 if location == "bottom" else min(0.9, 2.5 / len(grid)),
        aspect=10 if location == "bottom" else 20,
    )
    bar.set_label(label, fontsize=8 if location == "bottom" else 10)
    bar.ax.tick_params(labelsize=8)


def _broken(name: str) -> str:
    """The class on one line, its counts on the next."""
    first, _, rest = name.rpartition(" (")
    return f"{short_name(first, 16)}\n({rest}"
