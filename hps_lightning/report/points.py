"""What the plots of accuracy against size and of time against parameters show."""

from collections.abc import Sequence
from pathlib import Path

from hps_lightning.report import plots
from hps_lightning.report.measured import Measured, train_speeds
from hps_lightning.report.public import public_networks
from hps_lightning.report.reproduction import MODULE, Row, cost
from hps_lightning.report.wording import cell, short, table


def size_groups(table_rows: Sequence[Row], ours: Sequence[Measured], dataset: str) -> list[plots.Group]:
    """Accuracy (percent) against size (MB) on a data set: the paper, ours, and public small networks."""
    printed = [
        plots.Point(
            short(row.printed.model),
            row.printed.size_mb,
            row.printed.accuracy,
            None if MODULE in row.explained_by else row.cost.size_mb[MODULE],
        )
        for row in _distinct(table_rows, dataset)
    ]
    measured = [
        plots.Point(f"ours: {run.name}{', distilled' if run.teacher else ''}", run.size_mb, run.accuracies[0])
        for run in ours
        if run.dataset == dataset and run.size_mb is not None
    ]
    groups = [plots.Group("the paper, printed size; a line leads to the computed size", printed, plots.VERMILLION, "s")]
    if measured:
        groups.append(plots.Group("ours", measured, plots.BLUE, "*"))
    public: dict[str, list[plots.Point]] = {}
    for network in public_networks():
        if network.dataset == dataset:
            point = plots.Point(network.name, 4 * network.parameters / 1e6, network.accuracy)
            public.setdefault(network.publisher, []).append(point)
    markers = dict(zip(dict.fromkeys(network.publisher for network in public_networks()), "o^Dvph", strict=False))
    for publisher, points in public.items():
        groups.append(plots.Group(f"public: {publisher}", points, "#666666", markers[publisher], filled=False))
    return groups


def times(
    table_rows: Sequence[Row], ours: Sequence[Measured], others: Sequence[Measured], results: Path | None
) -> tuple[list[plots.Group], str]:
    """Seconds per epoch against parameters, a group for each kind of machine; and ours as a Markdown table."""
    groups, lines = [], []
    # What a row prints for CIFAR-100 is the same network with a larger classifier.
    for dataset, colour, marker in (("cifar10", plots.VERMILLION, "s"), ("cifar100", plots.ORANGE, "D")):
        points = [
            plots.Point(short(row.printed.model), row.cost.parameters, row.printed.seconds_per_epoch)
            for row in _distinct(table_rows, dataset)
        ]
        groups.append(plots.Group(f"the paper, {plots.TITLES[dataset]}, its authors' GPU", points, colour, marker))
    by_machine: dict[str, list[plots.Point]] = {}
    for run in [*ours, *others]:
        # A teacher's forward passes are in the time of those that it taught.
        name = f"{run.name}{', distilled' * bool(run.teacher)}"
        by_machine.setdefault(run.hardware, []).append(plots.Point(name, run.parameters, run.epoch_seconds))
        kind = "training and validation" if run.validates else "training"
        kind += f", with {run.teacher} as its teacher" * bool(run.teacher)
        lines.append((cell(run.name), f"{run.epoch_seconds:.1f}", cell(kind), cell(run.hardware), f"`{run.source}`"))
    for speed in train_speeds(results) if results else []:
        parameters = cost(speed.name, speed.dataset).parameters
        point = plots.Point(f"{speed.name}, by its speed", parameters, speed.epoch_seconds)
        by_machine.setdefault(speed.hardware, []).append(point)
        loop = f"the usual loop here: {speed.reference_seconds:.1f} s"
        lines.append(
            (
                cell(speed.name),
                f"{speed.epoch_seconds:.1f}",
                f"training, by its images a second ({loop})",
                cell(speed.hardware),
                f"`{speed.source}`",
            )
        )
    styles = ((plots.BLUE, "o"), (plots.GREEN, "^"), (plots.PURPLE, "v"), (plots.SKY, "P"), (plots.BLACK, "X"))
    for index, (machine, points) in enumerate(by_machine.items()):
        colour, marker = styles[index % len(styles)]
        groups.append(plots.Group(f"ours, {machine}", points, colour, marker))
    if not lines:
        return groups, "No times of ours are recorded in the results that this page was made from."
    return groups, table(("run", "seconds per epoch", "of", "machine", "file"), lines)


def _distinct(table_rows: Sequence[Row], dataset: str) -> list[Row]:
    """The rows of a data set, each network once: from Tables 2 and 3, which print configurations, if it is there."""
    order = sorted(table_rows, key=lambda row: row.printed.table not in "23")
    kept = {row.variant.name: row for row in reversed(order) if row.printed.dataset == dataset}
    return [row for row in table_rows if kept.get(row.variant.name) is row]
