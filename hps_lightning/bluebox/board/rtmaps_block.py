"""The RTMaps Python block: an image in, its class out.

Point RTMaps' Python component at this file; it finds the network in the folder that it lies in,
or in the folder of the property ``bundle``. One report tells what is wrong with a frame or with
the bundle; the diagram goes on. No exception gets out of it but a KeyboardInterrupt: not even a
SystemExit, which would end the runtime.

It keeps to the syntax of Python 3.5. Ports are declared in ``__init__`` as well as in
``Dynamic``, since older versions of RTMaps know the first way alone. numpy, torch and the
bundle's other files are imported in ``Birth``: a diagram can be drawn where they are not.
"""

import contextlib
import importlib.util
import os
import time

import rtmaps.core as rt
import rtmaps.types
from rtmaps.base_component import BaseComponent

UNKNOWN = "unknown"
"""The label below the confidence threshold; its class index is -1."""

# A runtime that executes this file's text, instead of importing it, gives it no name.
_HERE = os.path.dirname(os.path.abspath(__file__)) if "__file__" in globals() else None

_AUTO = "auto"
# As frames.CHANNEL_ORDERS and frames.FITS, which are not read before Birth.
_ORDERS = (_AUTO, "GRAY", "RGB", "BGR", "RGBA", "BGRA", "YUV", "YUYV", "UYVY")
_FITS = ("stretch", "crop", "off")
# Fixed before any bundle is read: texts are cut there, vectors must not be longer.
_TEXT_SIZE = 256
_MOST_CLASSES = 1000
_MOST_REPORTS = 20
# Characters of a report, and of a value in it; both may come from a frame or a diagram gone wrong.
_LONGEST_REPORT = 500
_LONGEST_VALUE = 80
_LONGEST_NUMBER = 64


def _enumeration(labels):
    return "|".join([str(len(labels)), "0"] + list(labels))


class rtmaps_python(BaseComponent):
    """Classifies each image.

    Input ``image``: IPL_IMAGE of any size. Outputs, with the time stamp of the image:
    ``class_index`` (-1 below the threshold), ``label``, ``top`` (the ``top_k`` best as text),
    ``probabilities`` (one for each class) and ``latency_ms`` (of conversion and network).

    Properties: ``bundle`` (its folder or manifest.json, or empty for this file's folder),
    ``channel_order`` ("auto" reads the image's own), ``resize`` (see frames.fit), ``top_k``,
    ``threads`` (0 leaves PyTorch's choice), ``threshold`` (0 to 1).
    """

    def __init__(self):
        BaseComponent.__init__(self)
        # All in one attribute, since nobody knows the names that the base class uses for itself.
        self.hps = _Work(self)
        try:
            self.Dynamic()
        except Exception as error:
            # Then this runtime wants the ports from Dynamic alone, which it is about to call.
            _report(rt.report_info, "ports are left to Dynamic: {}".format(_one_line(error)))

    def Dynamic(self):
        """Declares ports and properties; called often while a diagram is drawn."""
        self.add_input("image", rtmaps.types.IPL_IMAGE)
        self.add_output("class_index", rtmaps.types.INTEGER32)
        self.add_output("label", rtmaps.types.TEXT_ASCII, _TEXT_SIZE)
        self.add_output("top", rtmaps.types.TEXT_ASCII, _TEXT_SIZE)
        self.add_output("probabilities", rtmaps.types.FLOAT64, _MOST_CLASSES)
        self.add_output("latency_ms", rtmaps.types.FLOAT64)
        self.add_property("bundle", "", rtmaps.types.FILE)
        self.add_property("channel_order", _enumeration(_ORDERS), rtmaps.types.ENUM)
        self.add_property("resize", _enumeration(_FITS), rtmaps.types.ENUM)
        self.add_property("top_k", 1)
        self.add_property("threads", 0)
        self.add_property("threshold", 0.0)

    def Birth(self):
        """Reads the properties and the bundle; reports what is wrong with them, once."""
        try:
            self.hps.end()
            self.hps.begin()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            _report(rt.report_error, _one_line(error))
            self.Death()

    def Core(self):
        """Classifies the image that has come, or reports why not and goes on."""
        try:
            self.hps.classify()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self.hps.leave_out(_one_line(error))

    def Death(self):
        """Lets the network go, and says how many images were left out."""
        try:
            self.hps.end()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            _report(rt.report_error, _one_line(error))


class _Work(object):
    """What a block does between ``Birth`` and ``Death``."""

    def __init__(self, component):
        self.component = component
        self.bundle = None
        self.frames = None
        self.torch = None
        self.threads = None
        self.reported = set()
        self.left_out = 0

    def begin(self):
        """Reads the properties and the bundle."""
        self.order = self._choice("channel_order", _ORDERS)
        self.how = self._choice("resize", _FITS)
        self.top_k = self._number("top_k", int, 1, _MOST_CLASSES)
        self.threshold = self._number("threshold", float, 0, 1)
        threads = self._number("threads", int, 0, 256)
        folder = self._folder()
        # Code and manifest are of one export wherever this file lies.
        self.frames = _module(folder, "frames", "to_square")
        bundles = _module(folder, "bundle", "Bundle")
        self.torch = bundles.torch
        if threads:
            self.threads = _set_threads(self.torch, threads)
        bundle = bundles.Bundle(folder)
        if len(bundle.classes) > _MOST_CLASSES:
            raise ValueError("more than {} classes do not fit the output".format(_MOST_CLASSES))
        self.bundle = bundle
        _report(rt.report_info, "{} classes from {}".format(len(bundle.classes), folder))

    def classify(self):
        """Answers the image at the input; nothing without a bundle, of which ``Birth`` has told."""
        if self.bundle is None:
            return
        stamp, data = self._element()
        started = time.perf_counter()
        image = self._square(data)
        probabilities = self.bundle.probabilities(image[None])[0].astype("float64")
        self._write(stamp, probabilities, 1000 * (time.perf_counter() - started))

    def leave_out(self, problem):
        """Reports a problem the first time; a camera repeats its mistake with every frame."""
        self.left_out += 1
        if problem in self.reported or len(self.reported) >= _MOST_REPORTS:
            return
        self.reported.add(problem)
        _report(rt.report_error, "image left out: {}".format(problem))
        if len(self.reported) == _MOST_REPORTS:
            _report(rt.report_warning, "images that are left out for other reasons are no longer reported")

    def end(self):
        """Forgets everything; what follows starts afresh."""
        try:
            if self.left_out:
                _report(rt.report_warning, "images left out: {}".format(self.left_out))
            if self.threads is not None:
                _reset_threads(self.torch, self.threads)
        finally:
            _Work.__init__(self, self.component)

    def _property(self, name):
        try:
            value = self.component.properties[name].data
        except Exception as error:
            raise ValueError("property {} cannot be read: {}".format(name, _one_line(error)))
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value

    def _folder(self):
        path = self._property("bundle")
        if not path:
            if _HERE is None:
                raise ValueError("property bundle must name the bundle's folder: this file does not know its own")
            return _HERE
        if not isinstance(path, str):
            raise ValueError("property bundle must be a path, got {}".format(_shown(path)))
        # The working directory is the runtime's; a relative path would mean something else on each machine.
        path = os.path.join(_HERE or "", path)
        try:
            there = os.path.exists(path)
        except ValueError:
            # Characters that no path holds; newer versions of Python say False.
            there = False
        if not there:
            raise ValueError("property bundle: there is no {}".format(path))
        return path if os.path.isdir(path) else os.path.dirname(os.path.abspath(path))

    def _choice(self, name, labels):
        value = given = self._property(name)
        if isinstance(value, str):
            # Some versions give the whole description back: count, selected, labels.
            parts = value.split("|")
            value = parts[1] if len(parts) > 2 else value.strip()
            for label in labels:
                if label.lower() == value.lower():
                    return label
        index = _as_number(value, int)
        if index is not None and 0 <= index < len(labels):
            return labels[index]
        raise ValueError("property {} must be one of {}, got {}".format(name, ", ".join(labels), _shown(given)))

    def _number(self, name, kind, least, most):
        value = self._property(name)
        number = _as_number(value, kind)
        if number is not None and least <= number <= most:
            return number
        raise ValueError("property {} must be from {} to {}, got {}".format(name, least, most, _shown(value)))

    def _element(self):
        """Time stamp and data of what has come; versions differ in whether nothing is None or an exception."""
        try:
            element = self.component.inputs["image"].ioelt
            stamp, data = element.ts, element.data
        except Exception:
            data = None
        if data is None:
            raise ValueError("there is none at the input")
        return stamp, data

    def _square(self, data):
        frame = self.frames.check(getattr(data, "image_data", data))
        return self.frames.to_square(frame, self._order_of(frame, data), self.bundle.side, self.how)

    def _order_of(self, frame, data):
        if self.order != _AUTO:
            return self.order
        named = getattr(data, "channel_seq", None)
        if frame.ndim == 2 or frame.shape[2] == 1:
            if self.frames.is_mosaic(named):
                raise self.frames.FrameError("planar YUV and Bayer are not taken: {}".format(_shown(named)))
            # Without a name it is grey; under that of colours it has too few channels.
            return self.frames.channel_order(named) or "GRAY"
        order = self.frames.channel_order(named)
        if order is None:
            raise self.frames.FrameError(
                "the order of its channels is {}; set the property channel_order to one of {}".format(
                    _shown(named), ", ".join(_ORDERS[1:])
                )
            )
        return order

    def _write(self, stamp, probabilities, latency_ms):
        classes = self.bundle.classes
        best = (-probabilities).argsort(kind="mergesort")[: self.top_k]
        sure = probabilities[best[0]] >= self.threshold
        top = ""
        for index in best:
            more = "{} {}={:.4f}".format(top, _ascii(classes[index]), probabilities[index]).lstrip()
            if len(more) >= _TEXT_SIZE:
                break
            top = more
        self._send("class_index", stamp, int(best[0]) if sure else -1)
        self._send("label", stamp, _ascii(classes[best[0]] if sure else UNKNOWN)[: _TEXT_SIZE - 1])
        self._send("top", stamp, top)
        self._send("probabilities", stamp, probabilities)
        self._send("latency_ms", stamp, float(latency_ms))

    def _send(self, name, stamp, value):
        element = rtmaps.types.Ioelt()
        element.ts = stamp
        element.data = value
        self.component.outputs[name].write(element)


def _set_threads(torch, number):
    """Sets PyTorch's number of threads, which is the whole process's.

    Returns:
        What :func:`_reset_threads` takes.
    """
    # At torch, since each block of a process may come out of a file of its own.
    setters = vars(torch).setdefault("_hps_threads", [])
    if not setters:
        setters.append([torch.get_num_threads()])
    setter = [number]
    setters.append(setter)
    torch.set_num_threads(number)
    return setter


def _reset_threads(torch, setter):
    """Gives the number back to whoever set it last of those that still run, and after the last one to the process."""
    setters = vars(torch)["_hps_threads"]
    setters[:] = [other for other in setters if other is not setter]
    torch.set_num_threads(setters[-1][0])
    if len(setters) == 1:
        del setters[:]


def _module(folder, name, needed):
    """A file of the bundle as a module; by its path, since another block may have brought its own."""
    path = os.path.join(folder, name + ".py")
    if os.path.exists(path) and not os.path.isfile(path):
        # A pipe, say, which would be read for ever.
        raise ValueError("{} is no file; copy the whole bundle".format(path))
    try:
        spec = importlib.util.spec_from_file_location("hps_" + name, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except OSError as error:
        raise ValueError("{} cannot be read: {}; copy the whole bundle".format(path, error.strerror or error))
    except ImportError:
        # numpy or torch is missing, which has nothing to do with the bundle.
        raise
    except Exception as error:
        raise ValueError("{} is damaged: {}; copy the bundle again".format(path, _one_line(error)))
    if not hasattr(module, needed):
        # Cut off between two functions it would still be Python.
        raise ValueError("{} is damaged: it defines no {}; copy the bundle again".format(path, needed))
    return module


def _as_number(value, kind):
    """A property's value as an int or a float, or None where it is none, or a fraction in place of an int."""
    try:
        # A text of a million digits would take minutes to read.
        if isinstance(value, (str, bytes)) and len(value) > _LONGEST_NUMBER:
            return None
        number = kind(value)
        return number if number == float(value) else None
    except Exception:
        return None


def _ascii(text):
    """Text as the runtime takes it."""
    return text.encode("ascii", "replace").decode("ascii")


def _report(report, text):
    # Where the report itself fails there is nobody left to tell.
    with contextlib.suppress(Exception):
        report("hps: {}".format(_line(text, _LONGEST_REPORT)))


def _one_line(error):
    try:
        text = _line(str(error), _LONGEST_REPORT)
    except BaseException:
        # One that cannot even be printed.
        text = ""
    return text or _line(type(error).__name__, _LONGEST_VALUE)


def _shown(value):
    """A value as a report tells of it, whatever it is."""
    try:
        if isinstance(value, (str, bytes)) and len(value) > 2 * _LONGEST_VALUE:
            # Not the whole, which may be larger than the memory has room for once more.
            value = value[: 2 * _LONGEST_VALUE]
        return _line(repr(value), _LONGEST_VALUE)
    except BaseException:
        return _line("a value of type {}".format(type(value).__name__), _LONGEST_VALUE)


def _line(text, most):
    """Text in one line of printable ASCII; of a longer one the start and the end, which is where the reason is."""
    if len(text) > most:
        end = most // 2
        text = text[: most - end - 5] + " ... " + text[-end:]
    return " ".join("".join(char if char.isprintable() else " " for char in _ascii(text)).split())
