"""Runs a block as RTMaps does, step by step, and keeps what it writes and reports."""

import importlib.util
import os

from . import RefusedError, base_component, core, types

STYLES = ("dynamic", "dynamic only", "init")
"""Runtimes that call ``Dynamic``, those that refuse a declaration anywhere else, and those of 2018 without it."""

ENUMERATIONS = ("index", "label", "description")
"""What the value of an enumeration is, by version of the runtime."""

# Written over a frame after Core: the runtime uses its buffers again.
_RUBBISH = 173


def load_block(path, class_name="rtmaps_python"):
    """The block's class out of its file, under a module of its own.

    Raises:
        RefusedError: the file defines no block of that name.
        Exception: whatever the file itself raises.
    """
    name = "rtmaps_block_" + os.path.splitext(os.path.basename(path))[0]
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, class_name):
        raise RefusedError("{} defines no class {}".format(path, class_name))
    return getattr(module, class_name)


class Runtime(object):
    """A diagram with one block.

    Args:
        block: its class.
        style: one of :data:`STYLES`. "dynamic" forgets what ``__init__`` declared, and calls
            ``Dynamic`` three times as "dynamic only" does; "init" never calls it.
        enumeration: one of :data:`ENUMERATIONS`.
        empty: what reading an input without data raises; None has it be None.
        strict: whether ``Core`` is watched: it must leave a frame as it was, and must not keep
            it, for it is overwritten afterwards. Each frame is copied for that.

    Attributes:
        component: the block.
        running: whether it is between ``Birth`` and ``Death``.

    Raises:
        RefusedError: the block declares what the runtime refuses.
    """

    def __init__(self, block, style="dynamic", enumeration="index", empty=None, strict=True):
        if style not in STYLES or enumeration not in ENUMERATIONS:
            raise ValueError("style {!r}, enumeration {!r}".format(style, enumeration))
        self._style = style
        self._enumeration = enumeration
        self._strict = strict
        base_component.declare_in_init[0] = style != "dynamic only"
        try:
            self.component = block()
        finally:
            base_component.declare_in_init[0] = True
        if not hasattr(self.component, "standin"):
            raise RefusedError("__init__ does not call BaseComponent.__init__")
        self._state = self.component.standin
        self._state.declares = False
        self._state.empty = empty
        if style != "init":
            self._state.where = "Dynamic"
            for table in (self.component.inputs, self.component.outputs, self.component.properties):
                table.clear()
            for _ in range(3):
                self.design()
        for declared in self.component.properties.values():
            if declared.subtype == types.ENUM:
                self._select(declared, declared.data)

    @property
    def running(self):
        """Whether the block is between ``Birth`` and ``Death``."""
        return self._state.running

    def design(self):
        """A wire is drawn, say: ``Dynamic``, where the runtime knows it.

        Raises:
            RefusedError: the diagram runs.
        """
        if self._state.running:
            raise RefusedError("the diagram is not changed while it runs")
        if self._style != "init":
            self._state.declares = True
            try:
                self.component.Dynamic()
            finally:
                self._state.declares = False

    def set_property(self, name, value):
        """Sets a property, an enumeration by its label.

        Raises:
            RefusedError: there is no such property or label, or the diagram runs.
        """
        if self._state.running:
            raise RefusedError("property {} is set while the diagram runs".format(name))
        declared = self.component.properties[name]
        if declared.subtype == types.ENUM:
            labels = declared.default.split("|")[2:]
            if value not in labels:
                raise RefusedError("property {} has no label {!r}, only {}".format(name, value, ", ".join(labels)))
            self._select(declared, labels.index(value))
        else:
            declared.data = value

    def _select(self, declared, index):
        labels = declared.default.split("|")[2:]
        if self._enumeration == "index":
            declared.data = index
        elif self._enumeration == "label":
            declared.data = labels[index]
        else:
            declared.data = "|".join([str(len(labels)), str(index)] + labels)

    def start(self):
        """``Birth``."""
        if self._state.running:
            raise RefusedError("the diagram runs already")
        self._state.running = True
        self._take()
        self.component.Birth()

    def step(self, stamp=0, image=None, channel_seq="BGR", data=None, name="image"):
        """``Core``, with what has come at one input.

        Args:
            stamp: the time in microseconds.
            image: numpy array, made an IplImage; None and no ``data``: nothing has come.
            channel_seq: of the image.
            data: anything else in place of an image.
            name: of the input.

        Returns:
            A dict of outputs' names with pairs of time stamp (None where the block gave none)
            and value: the last ones that ``Core`` wrote.

        Raises:
            RefusedError: the diagram does not run, or the block does what is refused.
            Exception: whatever gets out of ``Core``.
        """
        if not self._state.running:
            raise RefusedError("there is no step while the diagram does not run")
        given = image
        if self._strict and given is not None:
            given = image.copy(order="K")
        if given is not None:
            grey = getattr(given, "ndim", 2) == 2
            data = types.IplImage(given, "MONO" if grey else "COLR", channel_seq)
        element = None
        if data is not None:
            element = types.Ioelt()
            element.ts, element.data = stamp, data
        self.component.inputs[name].element = element
        self.component.Core()
        self.component.inputs[name].element = None
        if self._strict and given is not None:
            if (given != image).any():
                raise RefusedError("Core changed the frame")
            given[...] = _RUBBISH
        return self._take()

    def stop(self):
        """``Death``."""
        if not self._state.running:
            raise RefusedError("the diagram does not run")
        self.component.Death()
        self._state.running = False

    def _take(self):
        written = {name: values[-1] for name, values in self._state.written.items()}
        self._state.written.clear()
        return written


def reports(level=None):
    """Texts that were reported since the last call, of one level or of all as pairs; they are forgotten then."""
    taken = core.take_reports()
    return taken if level is None else [text for reported, text in taken if reported == level]
