"""`hps report`: the paper beside computation and our measurements, as one page."""

import argparse
from pathlib import Path

from hps_lightning.cli.parser import OneLineParser
from hps_lightning.errors import UserError

_DESCRIPTION = """Sets what the paper prints beside what its networks cost when they are built, and what our runs
reached: a folder with the page as Markdown and as one HTML file, and its plots as PNG and SVG.

  hps report --output report
  hps report --runs runs/hps_06_05x-cifar10/version_0 runs/hps_06_1x-cifar10/version_0
"""

CURVES = "curves"
"""The folder below the results that holds recorded curves, as `hps plot --csv` writes them."""


def run_report(argv: list[str]) -> int:
    """Runs `hps report` with the arguments that follow it; returns the exit status.

    Raises:
        UserError: a run or a result cannot be read, runs are of different data sets, or the
            folder cannot be written or holds something else.
    """
    parser = OneLineParser(
        prog="hps report", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("report"),
        help="folder to write; an earlier report there is replaced, whole or not at all (default: %(default)s)",
    )
    parser.add_argument(
        "--runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="trainings of one data set whose curves are shown, as `hps plot` takes them (default: those recorded in "
        "the results)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="folder of the benchmarks' results (default: benchmarks/results of the checkout, if there is one)",
    )
    arguments = parser.parse_args(argv)
    results = _results(arguments.results)
    import torch

    from hps_lightning.installed import published_folder
    from hps_lightning.report.curves import read_run
    from hps_lightning.report.page import HTML_FILE, write_report
    from hps_lightning.report.plots import run_titles

    # Next to nothing is computed here; threads would only wait for each other.
    torch.set_num_threads(1)
    paths = arguments.runs
    if paths is None:
        paths = sorted((results / CURVES).glob("*.csv")) if results else []
    runs = [read_run(path) for path in paths]
    titles = run_titles(runs, paths) if runs else []
    files = write_report(arguments.output, published_folder(), results, list(zip(runs, titles, strict=True)))
    print(f"Wrote {arguments.output}: {', '.join(files)}. Open {arguments.output / HTML_FILE}.")
    return 0


def _results(given: Path | None) -> Path | None:
    if given is not None:
        if not given.is_dir():
            raise UserError(f"There is no folder of results {given}.")
        return given
    checkout = Path(__file__).parents[2] / "benchmarks" / "results"
    return checkout if checkout.is_dir() else None
