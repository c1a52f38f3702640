import itertools

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from matplotlib.text import Text

from server.pictures import curves, style
from server.pictures.partition import plot_partition

CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
LONG_CLASSES = tuple(f"a rather long name of disease {number}" for number in range(8))


def some_rounds(num_rounds, prompted=True):
    steps = np.arange(1, num_rounds + 1)
    columns = {
        "round": steps,
        "val_balanced_accuracy": 0.5 - 0.01 * (steps - 3) ** 2,
        "val_mcc": 0.04 * steps - 0.1,
        "val_recall_head": 0.8 + 0 * steps,
        "val_recall_medium": 0.5 + 0 * steps,
        "val_recall_tail": 0.1 + 0 * steps,
        "val_worst_site_balanced_accuracy": 0.3 + 0 * steps,
        "train_loss": 3.0 / steps,
    }
    if prompted:
        columns |= {"prior": 0.2 / steps, "prior_clean": 0.2 + 0 * steps}
    return pd.DataFrame(columns)


def some_counts(num_clients, num_classes=8):
    counts = np.random.default_rng(0).integers(0, 30, (num_clients, num_classes)) ** 2
    counts[:, 0] += 1
    return counts.astype(np.int64)


def texts(artist):
    return [text for text in artist.findobj(Text) if text.get_visible() and text.get_text()]


def boxes(figure):
    return {text.get_text(): text.get_window_extent() for text in texts(figure)}


def verticals(axes):
    return [line.get_xdata()[0] for line in axes.lines if list(line.get_ydata()) == [0, 1]]


@pytest.mark.parametrize(
    ("num_rounds", "prompted", "panels"), [(1, True, 4), (1, False, 3), (60, True, 4)]
)
def test_curves_have_a_panel_for_prompts_only_if_there_were_any(
    drawn, tmp_path, num_rounds, prompted, panels
):
    curves.plot_curves(some_rounds(num_rounds, prompted), tmp_path / "curves.png", "title")
    assert len(drawn[0].axes) == panels
    assert [axes.get_title(loc="left")[:3] for axes in drawn[0].axes][3:] == ["FPG"] * prompted


def test_curves_show_the_numbers_given(drawn, tmp_path):
    rounds = some_rounds(5)
    curves.plot_curves(rounds, tmp_path / "curves.png", "title")
    lines = {
        line.get_label(): line.get_ydata() for axes in drawn[0].axes for line in axes.get_lines()
    }
    for label, column in (
        ("balanced accuracy", "val_balanced_accuracy"),
        ("MCC", "val_mcc"),
        ("worst hospital", "val_worst_site_balanced_accuracy"),
        ("head", "val_recall_head"),
        ("medium", "val_recall_medium"),
        ("tail", "val_recall_tail"),
        ("loss", "train_loss"),
        ("prompted images", "prior"),
        ("plain images", "prior_clean"),
    ):
        assert np.array_equal(lines[label], rounds[column]), label


def test_the_best_validation_round_is_marked_unless_another_is_given(drawn, tmp_path):
    curves.plot_curves(some_rounds(6), tmp_path / "curves.png", "title")
    curves.plot_curves(some_rounds(6), tmp_path / "curves.png", "title", best_round=5)
    assert [verticals(axes) for axes in drawn[0].axes] == [[3]] * 4
    assert [verticals(axes) for axes in drawn[1].axes] == [[5]] * 4
    assert "best round: 5" in {text.get_text() for text in texts(drawn[1])}


def test_undefined_scores_leave_a_gap_and_no_mark(drawn, tmp_path):
    rounds = some_rounds(3, prompted=False)
    rounds["val_balanced_accuracy"] = np.nan
    rounds["prior"] = np.nan
    curves.plot_curves(rounds, tmp_path / "curves.png", "title")
    assert len(drawn[0].axes) == 3
    assert verticals(drawn[0].axes[0]) == []


def test_curves_of_no_round_are_refused(tmp_path):
    with pytest.raises(ValueError, match="0 rows"):
        curves.plot_curves(some_rounds(0), tmp_path / "curves.png", "title")


@pytest.mark.parametrize("num_clients", [1, 20])
def test_partition_bars_and_cells_show_the_counts(drawn, tmp_path, num_clients):
    counts = some_counts(num_clients)
    names = [f"client-{number}" for number in range(num_clients)]
    plot_partition(counts, names, CLASSES, tmp_path / "partition.png", "title")
    bars, table = drawn[0].axes
    widths = np.array([bar.get_width() for bar in bars.patches]).reshape(8, num_clients).T
    assert np.array_equal(widths, counts)
    ends = [bar.get_x() + bar.get_width() for bar in bars.patches[-num_clients:]]
    assert np.array_equal(ends, counts.sum(axis=1))
    cells = [text.get_text() for text in table.texts]
    assert cells == [f"{count:,}" for count in counts.flat]
    assert [text.get_text() for text in bars.get_yticklabels()] == names
    assert [text.get_text() for text in table.get_xticklabels()] == list(CLASSES)


def test_absent_classes_are_hatched_and_no_other(drawn, tmp_path):
    counts = np.array([[5, 0, 1], [0, 0, 1000]])
    plot_partition(counts, ("a", "b"), CLASSES[:3], tmp_path / "partition.png", "title")
    hatched = [
        (round(patch.get_y() + 0.5), round(patch.get_x() + 0.5))
        for patch in drawn[0].axes[1].patches
        if patch.get_hatch()
    ]
    assert hatched == [(0, 1), (1, 0), (1, 1)]


def test_swatches_over_the_columns_have_the_colours_of_the_bars(drawn, tmp_path):
    plot_partition(some_counts(2), ("a", "b"), CLASSES, tmp_path / "partition.png", "title")
    bars, table = drawn[0].axes
    swatches = [tick.tick2line.get_markeredgecolor() for tick in table.xaxis.get_major_ticks()]
    stacked = [matplotlib.colors.to_hex(bar.get_facecolor()).upper() for bar in bars.patches[::2]]
    assert swatches == stacked
    assert len(set(swatches)) == 8


@pytest.mark.parametrize("num_clients", [1, 4, 20])
def test_long_names_stay_on_the_picture_and_apart(drawn, tmp_path, num_clients):
    names = [f"{number} University Hospital of a Large Town" * 5 for number in range(num_clients)]
    plot_partition(
        some_counts(num_clients), names, LONG_CLASSES, tmp_path / "partition.png", "A title"
    )
    figure, (bars, table) = drawn[0], drawn[0].axes
    width, height = figure.canvas.get_width_height()
    for text, box in boxes(figure).items():
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= width, text
        assert box.y1 <= height, text
    labels = [text.get_window_extent() for text in bars.get_yticklabels()]
    assert not any(one.overlaps(other) for one, other in itertools.pairwise(labels))
    assert max(box.x1 for box in labels) <= bars.get_window_extent().x0
    assert bars.get_tightbbox().x1 <= table.get_window_extent().x0
    title = boxes(figure)["A title"]
    assert title.y0 >= max(text.get_window_extent().y1 for text in table.get_xticklabels())


def test_more_classes_than_colours_and_an_empty_table_can_be_drawn(tmp_path):
    names = [f"class {number}" for number in range(14)]
    assert len(set(style.class_colours(24))) == 24
    assert len(style.class_colours(60)) == 60
    plot_partition(np.zeros((2, 14), np.int64), ("a", "b"), names, tmp_path / "p.png", "none")
    assert imread(tmp_path / "p.png").std() > 0


def test_names_that_differ_at_one_end_only_still_differ_when_shortened(drawn, tmp_path):
    names = [f"ulcerative colitis of a long name, grade {grade}" for grade in ("0-1", "1-2")]
    plot_partition(some_counts(2, 2), names, names, tmp_path / "partition.png", "title")
    bars, table = drawn[0].axes
    for labels in (bars.get_yticklabels(), table.get_xticklabels()):
        shown = [text.get_text() for text in labels]
        assert shown == ["ulcerative col…me, grade 0-1", "ulcerative col…me, grade 1-2"]


def test_thin_bars_of_many_classes_are_not_covered_by_lines(drawn, tmp_path):
    for num_classes in (8, 9):
        plot_partition(
            some_counts(2, num_classes), ("a", "b"), [*"abcdefghi"][:num_classes],
            tmp_path / "partition.png", "title",
        )  # fmt: skip
    widths = [figure.axes[0].patches[0].get_linewidth() for figure in drawn]
    assert widths[0] > 0
    assert widths[1] == 0


def test_dollar_signs_in_names_are_text(drawn, tmp_path):
    plot_partition(some_counts(1, 2), (r"$\bad$",), ("a$", "$b"), tmp_path / "p.png", r"a $\title")
    assert r"a $\title" in {text.get_text() for text in texts(drawn[0])}


def test_equal_data_give_equal_files_and_global_settings_stay(tmp_path):
    before = dict(matplotlib.rcParams)
    for name in ("one.png", "two.png"):
        curves.plot_curves(some_rounds(4), tmp_path / name, "title")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert dict(matplotlib.rcParams) == before


def test_a_failed_write_leaves_the_old_picture_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "new folder" / "curves.png"
    curves.plot_curves(some_rounds(4), path, "title")
    before = path.read_bytes()

    def fail(self, target, **options):
        target.write_bytes(b"half a picture")
        raise OSError("disk full")

    monkeypatch.setattr(curves.Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        curves.plot_curves(some_rounds(4), path, "title")
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
