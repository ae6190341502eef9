"""`hps plot`: the curves of trainings in one picture."""

import argparse
from pathlib import Path

from hps_lightning.cli.parser import OneLineParser
from hps_lightning.errors import UserError

_DESCRIPTION = """Draws training (dashed) and validation (solid) of one or more trainings, from their TensorBoard logs.

  hps plot runs/hps_06_05x-cifar10/version_0 runs/hps_06_1x-cifar10/version_0 --output curves.png
"""


def run_plot(argv: list[str]) -> int:
    """Runs `hps plot` with the arguments that follow it; returns the exit status.

    Raises:
        UserError: a run cannot be read, the runs do not belong into one picture, or a file cannot be written.
    """
    parser = OneLineParser(
        prog="hps plot", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="a training's folder, runs/NAME/version_N; a folder above it, for the newest training in it; or a CSV of "
        "curves",
    )
    parser.add_argument(
        "--metric", choices=("accuracy", "loss"), default="accuracy", help="what is drawn (default: %(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, help="the picture, .png or .svg (default: curves.png, or none where there is --csv)"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="keep the curves of a single run as CSV")
    arguments = parser.parse_args(argv)
    if arguments.csv and len(arguments.runs) > 1:
        raise UserError(f"--csv keeps the curves of a single run, but {len(arguments.runs)} were given.")
    from hps_lightning.report.curves import read_run, write_csv
    from hps_lightning.report.plots import curves_figure, run_titles, write_figure

    runs = [read_run(path) for path in arguments.runs]
    if arguments.csv:
        write_csv(runs[0], arguments.csv)
        print(f"Wrote {arguments.csv}.")
    output = arguments.output or (None if arguments.csv else Path("curves.png"))
    if output:
        figure = curves_figure(runs, run_titles(runs, arguments.runs), arguments.metric)
        write_figure(figure, output)
        print(f"Wrote {output}.")
    return 0
