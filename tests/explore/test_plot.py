import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest
from optuna.trial import TrialState

from hps_lightning.explore.front import rows_of
from hps_lightning.explore.plot import study_figure
from tests.explore.made import trial


def made_rows():
    points = [(0.3, 1e5), (0.2, 2e5), (0.25, 3e5)]
    done = [trial(i, {"error": e, "size_bytes": s, "latency_ms": s / 1e5}) for i, (e, s) in enumerate(points)]
    stopped = trial(3, {"error": 0.6, "size_bytes": 2e5, "latency_ms": 2.0}, TrialState.PRUNED)
    over = trial(4, {"size_bytes": 9e5, "latency_ms": 9.0}, TrialState.PRUNED, over={"size_bytes": 1.0})
    return rows_of([*done, stopped, over])


@pytest.mark.parametrize(
    ("objectives", "limits", "texts"),
    [
        (["error", "size_bytes"], {}, ["ONNX file [kB]"]),
        (["error", "size_bytes", "latency_ms"], {}, ["ONNX file [kB]", "one image, one thread [ms]"]),
        (["error"], {"size_bytes": 5e5}, ["ONNX file [kB]", "over the limits and so not trained: 1"]),
    ],
)
def test_plot_shows_every_objective(tmp_path, objectives, limits, texts):
    figure = study_figure(made_rows(), objectives, limits, "made")
    # With its texts as such.
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(tmp_path / "front.svg")
    root = ElementTree.parse(tmp_path / "front.svg").getroot()
    written = " ".join("".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text"))
    for text in ("error on the hold-out [%]", "beaten by none", "stopped early, error so far", *texts):
        assert text in written
