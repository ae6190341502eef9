"""Files of weights that execute something when PyTorch 1.1 loads them: they leave a trace."""

import io
import pickle
import struct
import tarfile
import zipfile

import torch

MAGIC, PROTOCOL, SYSTEM = 0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}


class Trace:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def stream(*parts):
    return b"".join(pickle.dumps(part, protocol=2) for part in parts)


def old_style(trace):
    """Python 2's way to name and call something, without REDUCE."""
    return b"(S'%s'\nS'w'\niio\nopen\n." % str(trace).encode()


def by_name_from_the_stack(trace):
    """Protocol 4's way to name something, which no text of the file spells in one piece."""
    return pickle.dumps(Trace(trace), protocol=4)


def framed(trace):
    """A reader that trusts frames, and one that does not, see other pickles in it."""
    harmless = stream(MAGIC, PROTOCOL, SYSTEM, {}, [])
    body = pickle.dumps(MAGIC, protocol=2)[2:] + harmless
    return b"\x80\x04\x95" + struct.pack("<Q", len(body)) + body + stream(PROTOCOL, SYSTEM, Trace(trace), [])


def archived_as_zip(trace):
    buffer = io.BytesIO()
    torch.save({"weight": Trace(trace)}, buffer)
    return buffer.getvalue()


def archived_as_tar(trace):
    """The format before the legacy one."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = stream(Trace(trace), 0, 0)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def legacy_and_zip(trace):
    """Sound pickles in front of an archive, for a reader that looks at either end."""
    buffer = io.BytesIO(stream(MAGIC, PROTOCOL, SYSTEM, {}, []))
    buffer.seek(0, io.SEEK_END)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Trace(trace)))
    return buffer.getvalue()


PAYLOADS = {
    "first pickle": lambda trace: stream(Trace(trace), PROTOCOL, SYSTEM, {}, []),
    "second pickle": lambda trace: stream(MAGIC, Trace(trace), SYSTEM, {}, []),
    "third pickle": lambda trace: stream(MAGIC, PROTOCOL, Trace(trace), {}, []),
    "among the weights": lambda trace: stream(MAGIC, PROTOCOL, SYSTEM, {"stem.conv.weight": Trace(trace)}, []),
    "names of storages": lambda trace: stream(MAGIC, PROTOCOL, SYSTEM, {}, Trace(trace)),
    "bare pickle": lambda trace: pickle.dumps(Trace(trace)),
    "old style": old_style,
    "names from the stack": by_name_from_the_stack,
    "framed": framed,
    "zip": archived_as_zip,
    "tar": archived_as_tar,
    "legacy and zip": legacy_and_zip,
}

# Those that plain unpickling executes, one pickle after another: the proof that they would do harm.
UNPICKLED = (
    *("first pickle", "second pickle", "third pickle", "among the weights", "names of storages"),
    *("bare pickle", "old style", "names from the stack", "framed"),
)
