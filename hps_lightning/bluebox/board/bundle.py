"""A trained network out of its bundle: checked against the manifest before anything of it is used.

It needs numpy and torch (1.1 or newer) alone, and keeps to the syntax of Python 3.5.
"""

import hashlib
import io
import json
import os
import pickle
import stat
import sys
import types
from collections import OrderedDict

import numpy as np
import torch

MANIFEST_FILE = "manifest.json"
FOLDING_FILE = "folding.py"
MANIFEST_FORMAT = 1

# No network of ours takes larger images; a manifest gone wrong must not take the memory.
_LARGEST_SIDE = 4096
# What the first pickle of a file of weights holds: see torch.serialization.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


class BundleError(Exception):
    """A bundle that cannot be used; the message says in one line which file, and what is wrong with it."""


def _reason(error):
    """An exception in one line."""
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(text.split()) or type(error).__name__


def _read(directory, name, size=None):
    path = os.path.join(directory, name)
    try:
        status = os.stat(path)
        # Anything else, a pipe say, might be read for ever.
        if not stat.S_ISREG(status.st_mode):
            raise BundleError("{} is no file; copy the whole bundle".format(path))
        if size is not None and status.st_size != size:
            raise BundleError("{} has {} bytes instead of {}; copy the bundle again".format(path, status.st_size, size))
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:
        raise BundleError("{} cannot be read: {}; copy the whole bundle".format(path, _reason(error)))


def read_manifest(directory):
    """The manifest of a bundle, a dict as JSON holds it.

    Raises:
        BundleError: it is missing, damaged, or of a format that this file does not read.
    """
    content = _read(directory, MANIFEST_FILE)
    path = os.path.join(directory, MANIFEST_FILE)
    try:
        manifest = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BundleError("{} is damaged: {}".format(path, _reason(error)))
    number = manifest.get("format") if isinstance(manifest, dict) else None
    if type(number) is not int or number != MANIFEST_FORMAT:
        raise BundleError(
            "{} has format {!r}, this bundle's code reads {}; copy code and manifest of one export".format(
                path, number, MANIFEST_FORMAT
            )
        )
    return manifest


def read_verified(directory, manifest, name):
    """The content of one of a bundle's files.

    Args:
        directory: the bundle.
        manifest: what :func:`read_manifest` returns.
        name: of a file that lies in the folder itself.

    Raises:
        BundleError: it is missing, or not the file that the manifest describes.
    """
    described = os.path.join(directory, MANIFEST_FILE)
    if not isinstance(name, str) or name in ("", ".", "..") or any(character in name for character in "/\\:\0"):
        raise BundleError("{} names {!r}, which is no file of a bundle".format(described, name))
    try:
        expected = manifest["files"][name]
        size, digest = expected["bytes"], expected["sha256"]
    except (KeyError, TypeError):
        raise BundleError("{} does not describe {}".format(described, name))
    if type(size) is not int:
        raise BundleError("{} gives {} the size {!r}".format(described, name, size))
    content = _read(directory, name, size)
    if hashlib.sha256(content).hexdigest() != digest:
        path = os.path.join(directory, name)
        raise BundleError("{} is not the exported one: its SHA-256 differs; copy the bundle again".format(path))
    return content


def verify(directory, manifest):
    """Checks all files that the manifest lists.

    Raises:
        BundleError: see :func:`read_verified`.
    """
    files = manifest.get("files")
    if not isinstance(files, dict) or not files:
        raise BundleError("{} lists no files".format(os.path.join(directory, MANIFEST_FILE)))
    for name in sorted(files):
        read_verified(directory, manifest, name)


class _Storage(object):
    """What a pickle of weights names in place of the values, which come after it."""

    def __init__(self, dtype, count):
        self.dtype = dtype
        self.count = count


class _Tensor(object):
    """A tensor of which the values are still to come."""

    def __init__(self, key, dtype, shape):
        self.key = key
        self.dtype = dtype
        self.shape = shape


def _tensor(storage, offset, size, stride, requires_grad=False, backward_hooks=None):
    """What torch._utils._rebuild_tensor_v2 is called with; the export writes each tensor in one piece."""
    key, stored = storage
    size, contiguous, count = tuple(size), [], 1
    for side in reversed(size):
        contiguous.insert(0, count)
        count *= side
    if offset != 0 or count != stored.count or (count > 1 and list(stride) != contiguous):
        raise pickle.UnpicklingError("a tensor that is not in one piece")
    return _Tensor(key, stored.dtype, size)


_KNOWN = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch", "FloatStorage"): "<f4",
    ("torch", "LongStorage"): "<i8",
}


class _Unpickler(pickle.Unpickler):
    """Reads weights and calls nothing that they name.

    torch.load of PyTorch 1.1 executes what a file asks it to. This one knows four names, and
    for each of them something harmless of its own.
    """

    def find_class(self, module, name):
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError("it names {}.{}, which is no part of weights".format(module, name))
        return _KNOWN[module, name]

    def persistent_load(self, pid):
        kind, dtype, key, _, count, view = pid
        if kind != "storage" or dtype not in ("<f4", "<i8") or type(count) is not int or count < 0 or view is not None:
            raise pickle.UnpicklingError("a storage of an unknown kind")
        return key, _Storage(dtype, count)


def read_weights(content):
    """A state dict out of a file in PyTorch's legacy format, without executing anything that the file names.

    Args:
        content: the file's bytes.

    Returns:
        dict of names and CPU tensors, float32 or int64.

    Raises:
        ValueError: it is another file, damaged, or holds more than weights; the message is one line.
    """
    stream = io.BytesIO(content)
    try:
        # Four small pickles around the state dict, and then the values of each storage, one after another.
        if _Unpickler(stream).load() != _LEGACY_MAGIC or _Unpickler(stream).load() != _LEGACY_PROTOCOL:
            raise ValueError("it is not in PyTorch's legacy format")
        if _Unpickler(stream).load()["little_endian"] is not True:
            raise ValueError("it was written by a big-endian machine")
        tensors = _Unpickler(stream).load()
        sizes = {tensor.key: np.dtype(tensor.dtype).itemsize for tensor in tensors.values()}
        keys, position, starts = _Unpickler(stream).load(), stream.tell(), {}
        for key in keys:
            starts[key] = position
            position += 8 + sizes[key] * _count(content, position)
        if position != len(content):
            raise ValueError("it is cut off, or goes on after its end")
        return {name: _values(content, starts[tensor.key], tensor) for name, tensor in tensors.items()}
    except Exception as error:  # A pickle that is none of ours fails in every way that there is.
        raise ValueError(_reason(error))


def _count(content, start):
    """How many values a storage has that starts there."""
    return int(np.frombuffer(content, "<i8", 1, start)[0])


def _values(content, start, tensor):
    count = int(np.prod(tensor.shape, dtype=np.int64))
    if _count(content, start) != count:
        raise ValueError("a tensor of another size than its values")
    values = np.frombuffer(content, tensor.dtype, count, start + 8)
    # A copy, for torch writes where it trains, and the bytes cannot be written.
    return torch.from_numpy(values.astype(values.dtype.newbyteorder("="), copy=True).reshape(tensor.shape))


def _load_weights(network, weights):
    """Gives a network its weights, and says in one line which of them is not its own."""
    own = network.state_dict()
    for name in list(own) + list(weights):
        if name not in weights:
            raise ValueError("{} is missing".format(name))
        if name not in own:
            raise ValueError("{!r} is none of its weights".format(name))
        # Files hold these two alone; a buffer of truth values, say, takes them from there.
        stored = torch.float32 if own[name].dtype.is_floating_point else torch.int64
        if own[name].shape != weights[name].shape or weights[name].dtype != stored:
            raise ValueError(
                "{} is {} {}, the network's is {} {}".format(
                    name, weights[name].dtype, tuple(weights[name].shape), own[name].dtype, tuple(own[name].shape)
                )
            )
    network.load_state_dict(weights)


def _defined(directory, manifest, name):
    """What a Python file of the bundle defines."""
    source = read_verified(directory, manifest, name)
    path = os.path.join(directory, name)
    # Not by import: two bundles in one process may hold files of one name.
    module = types.ModuleType("hps_bundle_" + name[:-3])
    module.__file__ = path
    before = sys.modules.get(module.__name__)
    # Where dataclasses, for one, look for the names in their annotations.
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, path, "exec"), module.__dict__)
    finally:
        if before is None:
            del sys.modules[module.__name__]
        else:
            sys.modules[module.__name__] = before
    return module.__dict__


def _build(directory, manifest):
    """The network that the manifest names, out of the bundle's file of it."""
    described = manifest["network"]
    # Without gradients, since a weight that is computed from others, as by weight norm, could not be copied.
    with torch.no_grad():
        network = _defined(directory, manifest, described["file"])[described["class"]](**described["arguments"])
    if not isinstance(network, torch.nn.Module):
        raise TypeError("{} is no network".format(described["class"]))
    return network.eval()


class Bundle(object):
    """A network with its weights, its classes and its preprocessing.

    Args:
        directory: the bundle.

    Attributes:
        directory: as given.
        manifest: as JSON holds it.
        classes: names, in the order of the logits.
        side: of the images, in pixels.
        network: the torch module, in evaluation mode; its batch norms are folded where the
            manifest asks for it.

    Raises:
        BundleError: a file is missing, damaged or of another export.
    """

    def __init__(self, directory):
        self.directory = directory
        self.manifest = read_manifest(directory)
        verify(directory, self.manifest)
        path = os.path.join(directory, MANIFEST_FILE)
        try:
            self._describe()
            self.network = _build(directory, self.manifest)
            weights_file = self.manifest["weights"]["file"]
        except BundleError:
            raise
        except Exception as error:  # A network's own code raises what it likes.
            raise BundleError("{} describes no network: {}: {}".format(path, type(error).__name__, _reason(error)))
        content = read_verified(directory, self.manifest, weights_file)
        weights_path = os.path.join(directory, weights_file)
        try:
            weights = read_weights(content)
        except ValueError as error:
            raise BundleError("{} holds no weights that can be read: {}".format(weights_path, error))
        try:
            _load_weights(self.network, weights)
        except Exception as error:
            raise BundleError("{} holds the weights of another network: {}".format(weights_path, _reason(error)))
        try:
            if self.manifest["network"].get("folded"):
                self.network = _defined(directory, self.manifest, FOLDING_FILE)["fold"](self.network)
            # The first image would wait for what torch prepares once, too.
            answers = self.probabilities(np.zeros((1, self.side, self.side, 3), np.uint8)).shape
        except BundleError:
            raise
        except Exception as error:
            raise BundleError("{} describes a network that does not run: {}".format(path, _reason(error)))
        if answers != (1, len(self.classes)):
            raise BundleError("{} names {} classes, the network answers {}".format(path, len(self.classes), answers))

    def _describe(self):
        classes, pixels = self.manifest["classes"], self.manifest["input"]
        if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes):
            raise ValueError("classes must be a list of names")
        self.classes = classes
        channels, self.side, width = pixels["shape"]
        if channels != 3 or width != self.side or type(width) is not int or not 1 <= width <= _LARGEST_SIDE:
            raise ValueError("an input of {!r}".format(pixels["shape"]))
        mean, std = np.array(pixels["mean"], np.float32), np.array(pixels["std"], np.float32)
        if mean.shape != (3,) or std.shape != (3,) or not (np.isfinite(mean) & np.isfinite(std) & (std > 0)).all():
            raise ValueError("a mean of {!r} and std of {!r}".format(pixels["mean"], pixels["std"]))
        # As training does it: one multiplication and one addition a value, in float32.
        self._scale = torch.from_numpy(1 / (255 * std)).reshape(3, 1, 1)
        self._shift = torch.from_numpy(-mean / std).reshape(3, 1, 1)

    def normalised(self, images):
        """Images as the network takes them.

        Args:
            images: uint8, N x side x side x 3, RGB; neither kept nor changed.

        Returns:
            float32 tensor, N x 3 x side x side.
        """
        # A copy in one piece: torch takes no negative strides, and a frame may change under us.
        values = torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), np.float32, order="C"))
        return values * self._scale + self._shift

    def logits(self, images):
        """The network's answers, float32 tensor of N x classes, to what :meth:`normalised` takes."""
        with torch.no_grad():
            return self.network(self.normalised(images))

    def probabilities(self, images):
        """Probabilities, float32 array of N x classes, to what :meth:`normalised` takes."""
        return torch.softmax(self.logits(images), 1).numpy()
