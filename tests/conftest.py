import gc
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch.utils.data import BatchSampler, DataLoader

# Two threads on two busy cores wait for each other longer than they compute on networks this small.
torch.set_num_threads(1)

# The same cases in each run, so that no commit fails by chance; `--hypothesis-profile soak` looks for new ones.
settings.register_profile(
    "ci", derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck), max_examples=100
)
settings.register_profile("soak", settings.get_profile("ci"), derandomize=False, max_examples=1000)
settings.load_profile("ci")


# Those that take longest, the longest first: what comes last is short, so that both processes end at the same time.
LONGEST = (
    "test_readme.py",
    "test_distributed.py",
    "explore/test_many_workers.py",
    "cli/test_seeds.py",
    "cli/test_fit.py",
    "bluebox/test_onnx_export.py",
    "test_cifar_training.py",
    "test_quickstart.py",
    "test_pretrained.py",
    "test_hostile_inputs.py",
    "test_checkpoint_io.py",
)


def pytest_collection_modifyitems(items):
    """Brings the longest files to the front; all else keeps its order."""
    ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def pytest_collection_finish():
    """Spares Python's garbage collector the libraries and tests, which stay to the end anyway.

    They are 550,000 objects, which each full collection would look through, for 0.3 s.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def untouched_loaders(monkeypatch):
    """Gives torch's loaders back as they were: Lightning leaves them wrapped where a module refuses to make one."""
    for kind in (DataLoader, BatchSampler):
        for name in {"__init__", "__setattr__", "__delattr__"} & vars(kind).keys():
            monkeypatch.setattr(kind, name, vars(kind)[name])


@pytest.fixture
def tally(record_property):
    """Counts for the end of pytest's output: `tally("bad inputs tried")` once for each; a failed test counts nothing.

    The others are "malicious files refused" and "kills survived".
    """

    def count(what, number=1):
        record_property("tally", (what, number))

    return count


def pytest_terminal_summary(terminalreporter):
    # Reports come from the processes of pytest-xdist too.
    counts = Counter()
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties if report.when == "call" else ():
            if name == "tally":
                counts[value[0]] += value[1]
    if counts:
        terminalreporter.write_line(", ".join(f"{what}: {number}" for what, number in sorted(counts.items())))


@pytest.fixture(autouse=True)
def same_threads():
    """Gives each test one thread, whatever the one before it left: their number changes what sums add up to."""
    yield
    torch.set_num_threads(1)
