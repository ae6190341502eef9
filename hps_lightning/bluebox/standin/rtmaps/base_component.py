"""What every block is derived from."""

from . import RefusedError, types

_INTEGERS = {types.INTEGER32: 32, types.INTEGER64: 64}
_FLOATS = {types.FLOAT32: "float32", types.FLOAT64: "float64"}


# What add_* may be called in; the stand-in's runtime sets it before it makes a block.
declare_in_init = [True]


class BaseComponent(object):
    """Ports and properties by their names, and the calls that declare them.

    ``standin`` is the stand-in's own: whether the block runs, and whether it may declare now. It
    is the only name that is not the runtime's, since a block may use any.
    """

    def __init__(self):
        self.standin = _State()
        self.inputs = _Table("input")
        self.outputs = _Table("output")
        self.properties = _Table("property")

    def add_input(self, name, type):
        """Declares an input."""
        _declare(self.standin, self.inputs, name, type, Input(self.standin, type))

    def add_output(self, name, type, buffer_size=None):
        """Declares an output; ``buffer_size`` is the most values, or characters and one, that it holds."""
        if buffer_size is not None and (not _is_integer(buffer_size) or buffer_size < 1):
            raise RefusedError("output {}: a buffer of {!r}".format(name, buffer_size))
        _declare(self.standin, self.outputs, name, (type, buffer_size), Output(self.standin, name, type, buffer_size))

    def add_property(self, name, default, subtype=None):
        """Declares a property; one that is there already keeps its value."""
        if not isinstance(default, (bool, int, float, str)):
            raise RefusedError("property {}: a default of {!r}".format(name, default))
        if subtype is not None and subtype not in types.PROPERTY_TYPES:
            raise RefusedError("property {}: no subtype of a property: {!r}".format(name, subtype))
        value = _selected(name, default) if subtype == types.ENUM else default
        _declare(self.standin, self.properties, name, (default, subtype), Property(value, default, subtype))

    def get_property(self, name):
        """A property's value."""
        return self.properties[name].data

    def write(self, name, value):
        """Writes to an output."""
        self.outputs[name].write(value)


def _declare(state, table, name, declared, made):
    if not isinstance(name, str) or not name:
        raise RefusedError("{!r} is no name of an {}".format(name, table.kind))
    if state.running:
        raise RefusedError("{} {} is declared while the diagram runs".format(table.kind, name))
    if not state.declares:
        raise RefusedError("{} {} is declared outside of {}".format(table.kind, name, state.where))
    if table.kind != "property" and made.type not in types.PORT_TYPES:
        raise RefusedError("{} {}: no type of a port: {!r}".format(table.kind, name, made.type))
    if name in table:
        if table[name].declared != declared:
            raise RefusedError("{} {} is declared again, as something else".format(table.kind, name))
        return
    made.declared = declared
    dict.__setitem__(table, name, made)


class _State(object):
    def __init__(self):
        self.running = False
        self.declares = declare_in_init[0]
        self.where = "__init__" if self.declares else "Dynamic"
        self.empty = None
        self.written = {}


class _Table(dict):
    """Ports or properties; the block reads it alone."""

    def __init__(self, kind):
        super(_Table, self).__init__()
        self.kind = kind

    def __missing__(self, name):
        raise RefusedError("there is no {} {!r}".format(self.kind, name))

    def __setitem__(self, name, value):
        raise RefusedError("{} {!r} is set past add_{}".format(self.kind, name, self.kind))


class Input(object):
    """An input port; ``ioelt`` is what came last."""

    def __init__(self, state, type):
        self._state = state
        self.type = type
        self.element = None

    @property
    def ioelt(self):
        """The element; where nothing has come, None or an exception, as the stand-in was told."""
        if self.element is None and self._state.empty is not None:
            raise self._state.empty
        return self.element


class Output(object):
    """An output port."""

    def __init__(self, state, name, type, buffer_size):
        self._state = state
        self._name = name
        self.type = type
        self.buffer_size = buffer_size

    def write(self, value):
        """Sends a value, or an Ioelt that carries one with its time."""
        if not self._state.running:
            raise RefusedError("output {} is written while the diagram does not run".format(self._name))
        stamp = None
        if isinstance(value, types.Ioelt):
            stamp, value = value.ts, value.data
            if not _is_integer(stamp):
                raise RefusedError("output {}: a time stamp of {!r}".format(self._name, stamp))
        self._check(value)
        if hasattr(value, "copy"):
            # The runtime copies into its own buffer.
            value = value.copy()
        self._state.written.setdefault(self._name, []).append((stamp, value))

    def _check(self, value):
        if self.type in _INTEGERS:
            bits = _INTEGERS[self.type]
            fits = _is_integer(value) and -(2 ** (bits - 1)) <= value < 2 ** (bits - 1)
        elif self.type in _FLOATS:
            fits = self._is_float(value)
        elif self.type == types.TEXT_ASCII:
            fits = self._is_text(value)
        elif self.type == types.IPL_IMAGE:
            fits = isinstance(value, types.IplImage)
        else:
            fits = value is not None
        if not fits:
            raise RefusedError("output {} is not declared for {!r}".format(self._name, value))

    def _is_float(self, value):
        if isinstance(value, float) and type(value).__module__ == "builtins":
            return True
        if isinstance(value, (list, tuple)):
            fits = all(isinstance(item, float) for item in value)
        else:
            # A numpy array, without numpy.
            fits = getattr(value, "ndim", 0) == 1 and str(getattr(value, "dtype", "")) == _FLOATS[self.type]
        if fits and len(value) > (self.buffer_size or 1):
            raise RefusedError(
                "output {}: {} values where {} fit".format(self._name, len(value), self.buffer_size or "no list is")
            )
        return fits

    def _is_text(self, value):
        if not isinstance(value, str):
            return False
        try:
            value.encode("ascii")
        except UnicodeEncodeError:
            return False
        # The runtime cuts it there without a word, and a block that relies on it would go unnoticed.
        if self.buffer_size is None or len(value) > self.buffer_size - 1:
            raise RefusedError(
                "output {}: text of {} characters, of {}".format(self._name, len(value), self.buffer_size)
            )
        return True


class Property(object):
    """A property; ``data`` is its value."""

    def __init__(self, data, default, subtype):
        self.data = data
        self.default = default
        self.subtype = subtype


def _is_integer(value):
    # numpy's integers are none to the runtime, and neither is True.
    return type(value) is int


def _selected(name, description):
    parts = description.split("|") if isinstance(description, str) else []
    try:
        count, selected = int(parts[0]), int(parts[1])
    except (IndexError, ValueError):
        raise RefusedError("property {}: no enumeration: {!r}".format(name, description))
    if len(parts) != count + 2 or not 0 <= selected < count:
        raise RefusedError("property {}: {!r} does not hold the labels that it counts".format(name, description))
    return selected
