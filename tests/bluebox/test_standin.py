"""The stand-in for RTMaps refuses what the runtime refuses; a block that passes here would else prove nothing."""

import sys

import numpy as np
import pytest

from hps_lightning.bluebox.standin import STANDIN_FOLDER, load_standin

standin = load_standin()

from rtmaps import RefusedError, core, types  # noqa: E402
from rtmaps.base_component import BaseComponent  # noqa: E402


class Block(BaseComponent):
    """Declares a port of each kind, and does what a test sets as ``core`` or ``birth``."""

    core = birth = death = staticmethod(lambda block: None)

    def __init__(self):
        BaseComponent.__init__(self)
        self.Dynamic()

    def Dynamic(self):
        self.add_input("image", types.IPL_IMAGE)
        self.add_output("whole", types.INTEGER32)
        self.add_output("long", types.INTEGER64)
        self.add_output("real", types.FLOAT64)
        self.add_output("reals", types.FLOAT64, 3)
        self.add_output("single", types.FLOAT32, 3)
        self.add_output("text", types.TEXT_ASCII, 5)
        self.add_output("picture", types.IPL_IMAGE)
        self.add_output("any", types.ANY)
        self.add_property("order", "2|1|auto|bgr", types.ENUM)
        self.add_property("path", "", types.FILE)
        self.add_property("count", 3)

    def Birth(self):
        self.birth(self)

    def Core(self):
        self.core(self)

    def Death(self):
        self.death(self)


def running(core, style="init", **options):
    block = type("Made", (Block,), {"core": staticmethod(core)})
    runtime = standin.Runtime(block, style, **options)
    runtime.start()
    return runtime


def test_it_is_the_stand_in_that_is_found():
    assert sys.modules["rtmaps"].__file__.startswith(str(STANDIN_FOLDER))
    assert sys.path.count(str(STANDIN_FOLDER)) == 1
    load_standin()
    assert sys.path.count(str(STANDIN_FOLDER)) == 1


@pytest.mark.parametrize("style", ["dynamic", "init"])
def test_what_a_block_writes_is_what_a_step_returns(style):
    def core(block):
        element = types.Ioelt()
        element.ts, element.data = block.inputs["image"].ioelt.ts, 7
        block.outputs["whole"].write(element)
        block.write("text", "four")

    runtime = running(core, style)
    assert runtime.step(12, np.zeros((2, 2, 3), np.uint8)) == {"whole": (12, 7), "text": (None, "four")}
    runtime.stop()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("whole", 2**31 - 1),
        ("long", 2**62),
        ("real", 0.5),
        ("reals", [0.5, 1.0]),
        ("reals", np.zeros(3)),
        ("single", np.zeros(3, np.float32)),
        ("text", ""),
        ("picture", types.IplImage()),
        ("any", object()),
    ],
)
def test_values_of_the_declared_type_are_written(name, value):
    runtime = running(lambda block: block.write(name, value))
    stamp, written = runtime.step(data=1)[name]
    assert stamp is None
    assert np.array_equal(written, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("whole", 0.5),
        ("whole", True),
        ("whole", np.int64(3)),
        ("whole", 2**31),
        ("whole", "3"),
        ("whole", None),
        ("long", 2**63),
        ("real", 1),
        ("real", np.float32(1)),
        ("real", [0.5, 0.5]),
        ("real", None),
        ("reals", [1, 2]),
        ("reals", np.zeros(4)),
        ("reals", np.zeros((1, 3))),
        ("reals", np.zeros(3, np.float32)),
        ("single", np.zeros(3)),
        ("text", "fives"),
        ("text", b"four"),
        ("text", "fünf"),
        ("text", 4),
        ("picture", np.zeros((2, 2, 3), np.uint8)),
        ("any", None),
        ("undeclared", 1),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_other_values_are_refused(name, value, wrapped):
    if wrapped:
        element = types.Ioelt()
        element.data = value
        value = element
    runtime = running(lambda block: block.write(name, value))
    with pytest.raises(RefusedError):
        runtime.step(data=1)


@pytest.mark.parametrize("stamp", [None, 0.5, "1", np.int64(3)])
def test_a_time_stamp_is_an_integer(stamp):
    def core(block):
        element = types.Ioelt()
        element.ts, element.data = stamp, 1
        block.write("whole", element)

    with pytest.raises(RefusedError, match="a time stamp of"):
        running(core).step(data=1)


@pytest.mark.parametrize("when", ["birth", "core", "death"])
@pytest.mark.parametrize(
    "declare",
    [
        lambda block: block.add_input("more", types.ANY),
        lambda block: block.add_output("whole", types.INTEGER32),
        lambda block: block.add_property("count", 3),
    ],
)
def test_nothing_is_declared_while_the_diagram_runs(when, declare):
    runtime = standin.Runtime(type("Made", (Block,), {when: staticmethod(declare)}))

    def run():
        runtime.start()
        runtime.step(data=1)
        runtime.stop()

    with pytest.raises(RefusedError, match="while the diagram runs"):
        run()


@pytest.mark.parametrize(
    "declare",
    [
        lambda block: block.add_input("image", types.ANY),
        lambda block: block.add_output("whole", types.INTEGER64),
        lambda block: block.add_output("text", types.TEXT_ASCII, 6),
        lambda block: block.add_property("count", 4),
        lambda block: block.add_property("path", ""),
    ],
)
def test_nothing_is_declared_again_as_something_else(declare):
    def dynamic(block):
        Block.Dynamic(block)
        declare(block)

    for style in ("dynamic", "init"):
        with pytest.raises(RefusedError, match="declared again, as something else"):
            standin.Runtime(type("Made", (Block,), {"Dynamic": dynamic}), style)


@pytest.mark.parametrize(
    "declare",
    [
        lambda block: block.add_input("", types.ANY),
        lambda block: block.add_input("more", 3),
        lambda block: block.add_output("more", 0),
        lambda block: block.add_output("more", types.ENUM),
        lambda block: block.add_output("more", types.FLOAT64, 0),
        lambda block: block.add_output("more", types.FLOAT64, 2.0),
        lambda block: block.add_property("more", None),
        lambda block: block.add_property("more", "2|0|a|b", types.ANY),
        lambda block: block.add_property("more", "a|b", types.ENUM),
        lambda block: block.add_property("more", "3|0|a|b", types.ENUM),
        lambda block: block.add_property("more", "2|2|a|b", types.ENUM),
        lambda block: block.outputs.__setitem__("more", 1),
        lambda block: block.outputs["more"],
        lambda block: block.get_property("more"),
    ],
)
def test_declarations_that_are_none(declare):
    with pytest.raises(RefusedError):
        standin.Runtime(type("Made", (Block,), {"Dynamic": declare}), "init")


def test_a_runtime_with_dynamic_forgets_what_the_constructor_declared():
    class Old(Block):
        def __init__(self):
            BaseComponent.__init__(self)
            Block.Dynamic(self)

        def Dynamic(self):
            pass

    assert "image" in standin.Runtime(Old, "init").component.inputs
    assert "image" not in standin.Runtime(Old, "dynamic").component.inputs
    with pytest.raises(RefusedError, match="declared outside of Dynamic"):
        standin.Runtime(Old, "dynamic only")


def test_an_old_runtime_knows_no_dynamic():
    class New(Block):
        def __init__(self):
            BaseComponent.__init__(self)

    assert not standin.Runtime(New, "init").component.inputs
    assert "image" in standin.Runtime(New, "dynamic only").component.inputs


def test_dynamic_is_called_often_and_a_property_keeps_its_value():
    calls = []

    def dynamic(block):
        calls.append(block)
        Block.Dynamic(block)

    runtime = standin.Runtime(type("Made", (Block,), {"Dynamic": dynamic}))
    assert len(calls) == 4
    runtime.set_property("count", 8)
    runtime.design()
    assert runtime.component.get_property("count") == 8
    runtime.start()
    with pytest.raises(RefusedError, match="not changed while it runs"):
        runtime.design()
    with pytest.raises(RefusedError, match="set while the diagram runs"):
        runtime.set_property("count", 9)


@pytest.mark.parametrize(
    ("enumeration", "values"),
    [("index", (1, 0)), ("label", ("bgr", "auto")), ("description", ("2|1|auto|bgr", "2|0|auto|bgr"))],
)
def test_the_value_of_an_enumeration_differs_by_version(enumeration, values):
    runtime = standin.Runtime(Block, enumeration=enumeration)
    assert runtime.component.properties["order"].data == values[0]
    runtime.set_property("order", "auto")
    assert runtime.component.properties["order"].data == values[1]
    with pytest.raises(RefusedError, match="has no label 'rgb'"):
        runtime.set_property("order", "rgb")
    with pytest.raises(RefusedError, match="there is no property 'more'"):
        runtime.set_property("more", 1)


def test_an_empty_input_is_none_or_an_exception():
    seen = []
    running(lambda block: seen.append(block.inputs["image"].ioelt)).step()
    assert seen == [None]
    with pytest.raises(LookupError, match="nothing yet"):
        running(lambda block: block.inputs["image"].ioelt, empty=LookupError("nothing yet")).step()


def test_images_state_their_channels():
    seen = []
    runtime = running(lambda block: seen.append(block.inputs["image"].ioelt.data))
    runtime.step(0, np.zeros((2, 2, 3), np.uint8), "RGB")
    runtime.step(0, np.zeros((2, 2), np.uint8), "GRAY")
    assert [(image.color_model, image.channel_seq) for image in seen] == [("COLR", "RGB"), ("MONO", "GRAY")]


def test_a_frame_is_neither_changed_nor_kept():
    kept = []

    def change(block):
        block.inputs["image"].ioelt.data.image_data[0] = 5

    with pytest.raises(RefusedError, match="Core changed the frame"):
        running(change).step(0, np.zeros((2, 2, 3), np.uint8))
    frame = np.zeros((2, 2, 3), np.uint8)
    running(lambda block: kept.append(block.inputs["image"].ioelt.data.image_data)).step(0, frame)
    assert kept[0].all(), "what a block keeps turns into rubbish"
    assert not frame.any()
    running(change, strict=False).step(0, frame)
    assert frame.any()


def test_nothing_is_written_or_stepped_outside_of_a_run():
    runtime = standin.Runtime(Block)
    with pytest.raises(RefusedError, match="does not run"):
        runtime.component.write("whole", 1)
    with pytest.raises(RefusedError, match="does not run"):
        runtime.step(data=1)
    with pytest.raises(RefusedError, match="does not run"):
        runtime.stop()
    runtime.start()
    assert runtime.running
    with pytest.raises(RefusedError, match="runs already"):
        runtime.start()
    runtime.stop()
    assert not runtime.running
    runtime.start()
    runtime.component.write("whole", 1)


def test_a_block_calls_its_base_class():
    with pytest.raises(RefusedError, match=r"does not call BaseComponent\.__init__"):
        standin.Runtime(type("Made", (BaseComponent,), {"__init__": lambda self: None}))


def test_reports_are_kept_until_they_are_taken():
    standin.reports()
    core.report_info("one")
    core.report_warning("two")
    core.report_error("three")
    assert standin.reports() == [("info", "one"), ("warning", "two"), ("error", "three")]
    core.report_error("four")
    core.report_info("five")
    assert standin.reports("error") == ["four"]
    assert standin.reports() == []
    for text in (b"bytes", None, "fünf"):
        with pytest.raises(RefusedError):
            core.report_error(text)
    assert isinstance(core.current_time(), int)


def test_numbers_of_types_are_nobodys_guess():
    numbers = [*types.PORT_TYPES, *types.PROPERTY_TYPES]
    assert len(set(numbers)) == len(numbers)
    assert min(numbers) > 1000


def test_a_file_without_a_block(tmp_path):
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(RefusedError, match="defines no class rtmaps_python"):
        standin.load_block(str(tmp_path / "empty.py"))
