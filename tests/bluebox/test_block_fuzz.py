"""10,000 frames and properties gone wrong: nothing gets out of the block, and the next sound frame is answered.

Each case is drawn by its number alone, which a failure names: ``hostile.frame(random.Random(NUMBER))``.
"""

import contextlib
import math
import os
import random
import traceback

import numpy as np
import pytest
import torch

from . import hostile

OUTPUTS = {"class_index", "label", "top", "probabilities", "latency_ms"}
FRAMES = 9000
ELEMENTS = 500
PROPERTIES = 500
SOUND = np.random.RandomState(5).randint(0, 256, (40, 56, 3)).astype(np.uint8)


class Block:
    """A bundle's block under the stand-in, and what must hold whatever comes."""

    def __init__(self, standin, folder):
        self.standin = standin
        self.runtime = standin.Runtime(standin.load_block(str(folder / "rtmaps_block.py")), strict=False)
        self.defaults = {name: each.data for name, each in self.runtime.component.properties.items()}
        self.runtime.start()
        self.expected = self.runtime.step(1, SOUND)["probabilities"][1]
        self.restart()

    def restart(self):
        """Reports begin anew with each start."""
        self.runtime.stop()
        self.check_reports()
        self.runtime.start()
        assert self.check_reports() == ["info"]

    def check_reports(self):
        """Their levels; each is a line of bounded length that the log takes."""
        reports = self.standin.reports()
        for _, text in reports:
            assert text.startswith("hps: ")
            assert text.isprintable()
            assert len(text) <= 505
        return [level for level, _ in reports]

    def check_sound(self):
        """A sound frame is still answered correctly."""
        written = self.runtime.step(77, SOUND)
        assert set(written) == OUTPUTS
        assert {stamp for stamp, _ in written.values()} == {77}
        assert np.array_equal(written["probabilities"][1], self.expected)
        assert written["class_index"][1] == self.expected.argmax()

    def check_answer(self, written):
        """Whatever is answered is whole."""
        assert written.keys() <= OUTPUTS
        if written:
            assert set(written) == OUTPUTS
            assert math.isclose(written["probabilities"][1].sum(), 1, abs_tol=1e-5)
            assert -1 <= written["class_index"][1] < 3


@pytest.fixture
def block(standin, bundle):
    block = Block(standin, bundle)
    yield block
    if block.runtime.running:
        block.runtime.stop()


@contextlib.contextmanager
def case(number):
    """Names the case that fails; pytest's own words on a hostile value would call its methods."""
    try:
        yield random.Random(number)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        pytest.fail(f"case {number}: {type(error).__name__} in {place.filename}, line {place.lineno}", pytrace=False)


def test_no_frame_gets_an_exception_out_of_the_block(block, tally):
    answered = 0
    for number in range(FRAMES):
        with case(number) as source:
            data, stamp = hostile.frame(source), hostile.stamp(source) if number % 10 == 0 else number
            written = block.runtime.step(stamp, data=data)
            block.check_answer(written)
            answered += bool(written)
            block.check_reports()
            if number % 5 == 0:
                block.check_sound()
            if number % 200 == 0:
                block.restart()
    # Neither all of them are refused, nor all sound.
    assert FRAMES // 20 < answered < FRAMES // 2
    tally("bad inputs tried", FRAMES)


def test_no_element_gets_an_exception_out_of_the_block(block, tally):
    port = block.runtime.component.inputs["image"]
    for number in range(ELEMENTS):
        with case(number) as source:
            port.element = hostile.element(source)
            block.runtime.component.Core()
            block.check_reports()
            if number % 20 == 0:
                block.check_sound()
                block.restart()
    tally("bad inputs tried", ELEMENTS)


@pytest.fixture
def paths(tmp_path, bundle):
    """Places that exist, and are no bundle or an odd one."""
    odd = tmp_path / "a\nb \u00f6"
    odd.symlink_to(bundle)
    names = ["pipe", "folder", "empty", "loop", "deep" * 50]
    folders = [tmp_path / name for name in names]
    for folder in folders:
        folder.mkdir()
    os.mkfifo(folders[0] / "frames.py")
    (folders[1] / "frames.py").mkdir()
    (folders[3] / "frames.py").symlink_to("frames.py")
    os.mkfifo(tmp_path / "pipe.json")
    return [
        str(path) for path in (odd, bundle / "manifest.json", bundle / "weights.pt", tmp_path / "pipe.json", *folders)
    ]


def test_no_property_gets_an_exception_out_of_the_block(block, paths, tally):
    properties, threads = block.runtime.component.properties, torch.get_num_threads()
    block.runtime.stop()
    block.check_reports()
    running = 0
    for number in range(PROPERTIES):
        with case(number) as source:
            for name in source.sample(sorted(block.defaults), source.choice([1, 1, 2, 6])):
                value = source.choice(paths) if source.random() < 0.2 else hostile.value(source)
                if source.random() < 0.05:
                    value = hostile.RaisingField("data", source.choice(hostile.FAILURES))
                    dict.__setitem__(properties, name, value)
                else:
                    properties[name].data = value
            block.runtime.start()
            levels = block.check_reports()
            written = block.runtime.step(3, SOUND)
            assert set(written) == (OUTPUTS if levels == ["info"] else set())
            assert levels in (["info"], ["error"])
            block.check_answer(written)
            block.runtime.stop()
            assert block.check_reports() == []
            assert torch.get_num_threads() == threads
            running += bool(written)
            for name, default in block.defaults.items():
                dict.__setitem__(properties, name, block.standin.base_component.Property(default, default, None))
            if number % 50 == 0:
                block.runtime.start()
                block.check_sound()
                block.runtime.stop()
                block.check_reports()
    assert PROPERTIES // 50 < running < PROPERTIES // 2
    tally("bad inputs tried", PROPERTIES)


def test_reports_of_values_and_paths_are_one_line_each(block, tmp_path):
    properties = block.runtime.component.properties
    block.runtime.stop()
    block.standin.reports()
    for name, value, expected in [
        ("top_k", "1\n2", "property top_k must be from 1 to 1000, got '1\\n2'"),
        ("top_k", 10**5000, "property top_k must be from 1 to 1000, got a value of type int"),
        ("threshold", "9" * 10**6, "property threshold must be from 0 to 1, got '999999"),
        ("bundle", 3, "property bundle must be a path, got 3"),
        ("bundle", "no\nwhere", "no where"),
        ("bundle", "\0", "property bundle: there is no "),
        ("resize", hostile.Raising(SystemExit("x")), "hps: x"),
    ]:
        default = properties[name].data
        properties[name].data = value
        block.runtime.start()
        (report,) = block.standin.reports("error")
        assert expected in report
        assert "\n" not in report
        block.runtime.stop()
        properties[name].data = default
