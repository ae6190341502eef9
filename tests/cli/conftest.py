import pytest

from hps_lightning.cli import main

# TensorBoard's pictures, without which such a training takes a third less; one in test_fit.py has them.
UNSEEN = ["--dashboard.samples=0", "--dashboard.graph=false"]

# What a training in a test needs least: two batches an epoch of scikit-learn's digits.
TINY = [
    "--model.width=0.2",
    "--data.dataset=digits",
    "--data.batch_size=16",
    "--trainer.limit_train_batches=2",
    "--trainer.accelerator=cpu",
    *UNSEEN,
]


@pytest.fixture
def hps(tmp_path, monkeypatch, capsys):
    """Runs `hps` in an empty folder; returns the exit status and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        try:
            status = main([str(argument) for argument in argv])
        except SystemExit as error:  # --help and --print_config
            status = error.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
