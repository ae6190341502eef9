from pathlib import Path

import pytest
from matplotlib.colors import to_hex
from PIL import Image

from hps_lightning.errors import UserError
from hps_lightning.report import plots
from hps_lightning.report.curves import Run


def run(name="hps_06_05x", dataset="cifar10", protocol="holdout", seed="0", **series):
    series = series or {"train": {1: 0.4, 2: 0.5}, "val": {1: 0.45, 2: 0.5625}}
    return Run(name, dataset, protocol, seed, {f"{stage}/accuracy": values for stage, values in series.items()})


def lines(figure):
    (axes,) = figure.axes
    return axes.get_lines()


def legend(figure):
    (found,) = figure.legends
    return [text.get_text().strip() for text in found.get_texts()]


def test_training_is_dashed_validation_solid_and_a_run_has_one_colour():
    runs = [run(), run("hps_06_1x")]
    figure = plots.curves_figure(runs, ["one", "two"])
    styles = [(line.get_linestyle(), to_hex(line.get_color()).upper()) for line in lines(figure)]
    assert styles == [("--", plots.BLUE), ("-", plots.BLUE), ("--", plots.VERMILLION), ("-", plots.VERMILLION)]
    # And one marker, for whom the colours are alike.
    markers = [line.get_marker() for line in lines(figure)]
    assert markers[0] == markers[1] != markers[2] == markers[3]
    assert legend(figure)[1] == "one, validation: 56.25 % after epoch 2"
    assert list(lines(figure)[1].get_ydata()) == [45, 56.25]


def test_a_run_that_validates_nothing_has_one_curve():
    figure = plots.curves_figure([run(protocol="full", train={1: 0.4})], ["one"])
    assert legend(figure) == ["one, training: 40.00 % after epoch 1"]
    assert figure.axes[0].get_title() == "Training on CIFAR-10"


def test_a_loss_is_no_percentage():
    runs = [Run("a", "cifar10", "paper", "", {"val/loss": {1: 1.5, 2: 0.25}})]
    figure = plots.curves_figure(runs, ["a"], "loss")
    assert legend(figure) == ["a, validation: 0.250 after epoch 2"]
    assert "the test images" in figure.axes[0].get_title()
    with pytest.raises(UserError, match="a has logged no accuracy"):
        plots.curves_figure(runs, ["a"])


def test_runs_of_different_data_sets_and_too_many_are_refused():
    with pytest.raises(UserError, match="hps_06_05x is trained on cifar10, hps_14_1x is trained on cifar100"):
        plots.check_comparable([run(), run("hps_14_1x", "cifar100")])
    with pytest.raises(UserError, match="8 runs"):
        plots.check_comparable([run()] * 8)
    plots.check_comparable([run()] * 7)


@pytest.mark.parametrize(
    ("runs", "titles"),
    [
        ([run(), run("hps_06_1x")], ["hps_06_05x", "hps_06_1x"]),
        ([run(), run(seed="1")], ["hps_06_05x, seed 0", "hps_06_05x, seed 1"]),
        ([run(), run(protocol="full")], ["hps_06_05x, holdout", "hps_06_05x, full"]),
        ([run(), run()], ["hps_06_05x (a/version_0)", "hps_06_05x (b/version_0)"]),
    ],
    ids=["names", "seeds", "protocols", "paths"],
)
def test_titles_tell_runs_apart(runs, titles):
    assert plots.run_titles(runs, [Path("runs/a/version_0"), Path("runs/b/version_0")]) == titles


def groups():
    printed = [plots.Point("HPS-06-1x", 1.24, 86.8, also_x=1.15), plots.Point("HPS-06-0.5x", 0.37, 82.4)]
    twins = [plots.Point("a", 5.0, 92.0), plots.Point("b", 5.0, 92.0)]
    return [plots.Group("the paper", printed, plots.VERMILLION, "s"), plots.Group("others", twins, plots.BLUE, "o")]


def test_points_have_their_names_and_where_they_coincide_one_label():
    figure = plots.size_figure(groups(), "cifar10")
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert {"HPS-06-1x", "HPS-06-0.5x", "a, b"} <= texts
    assert legend(figure) == ["the paper", "others"]
    joined = [list(line.get_xdata()) for line in lines(figure) if len(line.get_xdata()) == 2]
    assert joined == [[1.24, 1.15]]


def test_times_are_drawn_on_two_logarithmic_axes_with_plain_numbers():
    figure = plots.time_figure(
        [plots.Group("ours", [plots.Point("a", 67_670, 22), plots.Point("b", 7e5, 56)], "k", "o")]
    )
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert "100,000" in [label.get_text() for label in axes.get_xticklabels()]


@pytest.mark.parametrize("suffix", plots.FORMATS)
def test_the_same_figure_gives_the_same_file(tmp_path, suffix):
    for name in ("one", "two"):
        plots.write_figure(plots.curves_figure([run()], ["a $title_"]), tmp_path / (name + suffix))
    one, two = ((tmp_path / (name + suffix)).read_bytes() for name in ("one", "two"))
    assert one == two
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"one{suffix}", f"two{suffix}"]


def test_a_png_has_200_dots_an_inch(tmp_path):
    figure = plots.curves_figure([run()], ["a"])
    plots.write_figure(figure, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.width == round(200 * figure.get_size_inches()[0])


def test_other_formats_and_places_are_refused(tmp_path):
    figure = plots.curves_figure([run()], ["a"])
    with pytest.raises(UserError, match=r"\.png or \.svg"):
        plots.write_figure(figure, tmp_path / "a.jpeg")
    with pytest.raises(UserError, match=r"nowhere/a\.png cannot be written"):
        plots.write_figure(figure, tmp_path / "nowhere" / "a.png")
    assert list(tmp_path.iterdir()) == []
