"""Pictures of prompts are legible with one hospital and with many."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.text import Text

from fedkd.fourier.portrait import Portrait
from fedkd.fourier.quality import Quality
from server.hospital_prompts import STRENGTHS, Example, HospitalPrompts
from server.pictures import prompts
from server.pictures.prompt_curves import drawn_columns, plot_prompt_curves

LONG = "the university hospital with a very long name"


def hospital(number, gain=0.5, examples=2, size=(16, 17)):
    rng = torch.Generator().manual_seed(number)
    gains = gain * torch.randn(5, 3, *size, generator=rng, dtype=torch.float64).clamp(-2, 2)
    shown = tuple(
        Example(
            f"a rather long name of disease {n} (3 of 1000)",
            torch.rand(len(STRENGTHS), 3, *size, generator=rng),
            gains[n],
        )
        for n in range(examples)
    )
    portrait = Portrait(gains, gains[0], 64, 0.3, Quality(0.1, 0.3, 0.5, 4.0, 0.2, 0.9, 0.05))
    return HospitalPrompts(number, f"{LONG} {number}", 3, 100, portrait, shown)


def boxes(figure):
    """Of all texts but those of ticks beyond an axis's end, which are not drawn."""
    axes = [axis for one in figure.axes for axis in (one.xaxis, one.yaxis)]
    beyond = set()
    for axis in axes:
        low, high = sorted(axis.get_view_interval())
        for tick in axis.get_major_ticks():
            if not low <= tick.get_loc() <= high:
                beyond |= {tick.label1, tick.label2}
    found = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    return [(t.get_text(), t.get_window_extent()) for t in found if t not in beyond]


def assert_legible(figure):
    width, height = figure.get_size_inches() * figure.dpi
    found = boxes(figure)
    for name, box in found:
        assert box.x0 >= -1, name
        assert box.y0 >= -1, name
        assert box.x1 <= width + 1, name
        assert box.y1 <= height + 1, name
    for number, (name, box) in enumerate(found):
        for other, another in found[:number]:
            apart = not box.padded(-1.5).overlaps(another.padded(-1.5))
            assert apart, f"{name!r} lies on {other!r}"


@pytest.mark.parametrize("num", [1, 6])
@pytest.mark.parametrize("plot", [prompts.plot_maps, prompts.plot_profiles, prompts.plot_changes])
def test_texts_stay_in_the_picture_and_apart(drawn, tmp_path, plot, num):
    plot([hospital(number) for number in range(num)], tmp_path / "p.png", "A title of the picture")
    assert_legible(drawn[0])


def test_maps_share_one_scale_around_zero_and_have_frequency_0_in_the_middle(drawn, tmp_path):
    many = [hospital(0, 0.1), hospital(1, 0.7)]
    prompts.plot_maps(many, tmp_path / "p.png", "title")
    images = [axes.images[0] for axes in drawn[0].axes if axes.images]
    assert len(images) == 2 * (1 + prompts.NUM_SINGLE)
    low, high = images[0].get_clim()
    assert low == -high
    assert {image.get_clim() for image in images} == {(low, high)}
    assert high == pytest.approx(
        max(float(one.portrait.log_gains[:3].mean(1).abs().max()) for one in many)
    )
    # Of 16 rows and 17 columns, frequency 0 is row 8 and column 8.
    single = many[1].portrait.log_gains[0].mean(0)
    shown = images[1 + prompts.NUM_SINGLE + 1]
    assert shown.get_array()[8, 8] == single[0, 0]
    left, right, bottom, top = shown.get_extent()
    assert (left + right, right - left) == (pytest.approx(0), pytest.approx(2))
    assert top + 8.5 / 16 * (bottom - top) == pytest.approx(0)


@pytest.mark.parametrize("examples", [1, 4])
def test_examples_show_all_strengths_and_two_differences(drawn, tmp_path, examples):
    one = hospital(0, examples=examples)
    scales = prompts.example_scales([one])
    prompts.plot_examples(one, tmp_path / "p.png", "A title", scales)
    assert_legible(drawn[0])
    images = [axes.images[0] for axes in drawn[0].axes if axes.images]
    assert len(images) == examples * (len(STRENGTHS) + 2)
    first = images[: len(STRENGTHS) + 2]
    assert first[0].get_interpolation() == "nearest"
    views = one.examples[0].views
    np.testing.assert_array_equal(first[0].get_array(), views[0].permute(1, 2, 0).numpy())
    np.testing.assert_allclose(first[-2].get_array(), (views[-1] - views[0]).mean(0), rtol=1e-6)
    assert [image.get_clim() for image in first[-2:]] == [(-end, end) for end in scales]


def clients(num_hospitals, num_rounds=4, **columns):
    rows = [
        {"round": r, "partition_id": h, "client": f"{LONG} {h}", "prior": 0.1 + h / 100 + r / 50,
         "prior_clean": 0.3, **columns}
        for r in range(1, num_rounds + 1)
        for h in range(num_hospitals)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize(("num", "named"), [(1, 1), (4, 4), (20, 7)])
def test_curves_name_few_hospitals_and_draw_all(drawn, tmp_path, num, named):
    table = clients(num, prompt_rank=4.0, explore_diversity=1.2, prompt_cosine=float("nan"))
    assert drawn_columns(table) == ["prior", "prompt_rank", "explore_diversity"]
    plot_prompt_curves(table, tmp_path / "p.png", "title", [0, 3, 5, 7, 11, 19][:num])
    assert_legible(drawn[0])
    (legend,) = drawn[0].legends
    names = [text.get_text() for text in legend.get_texts()]
    assert len(names) == named
    assert ("the other 14" in names) == (num == 20)
    rank = drawn[0].axes[1]
    assert sum(len(line.get_xdata()) == 4 for line in rank.lines) == num
    assert [line.get_ydata()[0] for line in rank.lines if line.get_linestyle() == ":"] == [3]


def test_rounds_that_measured_nothing_leave_no_gap(drawn, tmp_path):
    table = clients(1, num_rounds=50)
    table["explore_diversity"] = [1.2 if number % 2 else float("nan") for number in range(50)]
    plot_prompt_curves(table, tmp_path / "p.png", "title", [0])
    (line,) = drawn[0].axes[1].lines
    assert line.get_xdata().tolist() == list(range(2, 51, 2))
    assert np.isfinite(line.get_ydata()).all()


def test_curves_without_a_measure_are_refused(tmp_path):
    table = clients(2).drop(columns=["prior", "prior_clean"])
    assert drawn_columns(table) == []
    with pytest.raises(ValueError, match="no column of clients"):
        plot_prompt_curves(table, tmp_path / "p.png", "title", [0])
