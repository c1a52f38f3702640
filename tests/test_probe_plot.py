import numpy as np
from matplotlib.image import imread

from server.pictures.feature_space import plot_feature_space

CLASSES = tuple(f"disease with a very long name, number {number}" for number in range(23))
SITES = tuple(f"university hospital number {number} of $the$ city" for number in range(30))
PLACES = np.random.default_rng(0).normal(size=(300, 2))


def plot(tmp_path, labels, sites, class_names=CLASSES, site_names=SITES):
    path = tmp_path / "a" / "p.png"
    plot_feature_space(PLACES[: len(labels)], labels, class_names, sites, site_names, path, "title")
    return path


def test_many_long_names_stay_within_the_picture_and_apart(drawn, tmp_path):
    plot(tmp_path, np.arange(300) % 23, np.arange(300) % 30)
    (figure,) = drawn
    width, height = figure.get_size_inches() * figure.dpi
    legends = [axes.get_legend() for axes in figure.axes]
    assert [len(legend.get_texts()) for legend in legends] == [23, 30]
    boxes = [legend.get_window_extent() for legend in legends]
    assert not boxes[0].overlaps(boxes[1])
    for box in boxes:
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height


def test_every_name_has_its_own_colour_and_marker(drawn, tmp_path):
    plot(tmp_path, np.arange(300) % 23, np.arange(300) % 30)
    for axes, num in zip(drawn[0].axes, (23, 30), strict=True):
        kinds = {
            (tuple(dots.get_facecolor()[0]), dots.get_paths()[0].vertices.tobytes())
            for dots in axes.collections
        }
        assert len(kinds) == num


def test_names_without_a_point_are_left_out_and_rare_ones_lie_on_top(drawn, tmp_path):
    plot(tmp_path, np.array([2, 1, 1, 1, 2, 4]), np.zeros(6, int), CLASSES[:5], ("north", "south"))
    classes, sites = drawn[0].axes
    assert [len(dots.get_offsets()) for dots in classes.collections] == [3, 2, 1]
    assert [text.get_text()[-4:] for text in classes.get_legend().get_texts()] == [
        " (3)",
        " (2)",
        " (1)",
    ]
    assert [text.get_text() for text in sites.get_legend().get_texts()] == ["north (6)"]


def test_one_hospital_gives_no_second_panel(drawn, tmp_path):
    plot(tmp_path, np.arange(9) % 2, np.zeros(9, int), ("a", "b"), ("all",))
    assert [axes.get_title(loc="left") for axes in drawn[0].axes] == ["by class"]


def test_the_picture_is_written_into_a_new_folder(tmp_path):
    path = plot(tmp_path, np.arange(9) % 2, np.arange(9) % 3)
    assert imread(path).shape[2] == 4
