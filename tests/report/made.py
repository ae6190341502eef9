"""Made trainings: TensorBoard logs and configs as `hps fit` leaves them, with values of choice."""

import yaml
from torch.utils.tensorboard import SummaryWriter

STEPS = 10


def log(folder, epochs, value=lambda series, epoch: epoch / 100, series=("train/accuracy", "val/accuracy")):
    """Adds a log file with the given epochs, counted from 1, as Lightning writes it."""
    writer = SummaryWriter(str(folder))
    for epoch in epochs:
        step = STEPS * epoch - 1
        for name in series:
            writer.add_scalar(name, value(name, epoch), step)
            writer.add_scalar("epoch", epoch - 1, step)
        # Logged more often than once an epoch.
        writer.add_scalar("lr-SGD", 0.1, step - 3)
    writer.close()


def configure(folder, dataset="digits", protocol="holdout", seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    config = {"seed_everything": seed, "data": {"dataset": dataset, "protocol": protocol}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def run(runs, name="hps_06_05x", dataset="digits", version=0, epochs=(1, 2, 3), **arguments):
    """The folder of a made training."""
    folder = runs / f"{name}-{dataset}" / f"version_{version}"
    configure(folder, dataset, arguments.pop("protocol", "holdout"), arguments.pop("seed", 0))
    log(folder, epochs, **arguments)
    return folder
