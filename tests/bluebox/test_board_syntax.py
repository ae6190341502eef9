"""What is copied onto the board, and the stand-in that its tests need there, keep to Python 3.5 and PyTorch 1.1.

The tests have neither, and read the source; `tests/networks/test_board_syntax.py` does it for the networks.
"""

import ast
import builtins

import pytest

from hps_lightning.bluebox import export
from hps_lightning.bluebox.standin import STANDIN_FOLDER
from tests.networks.test_board_syntax import _dotted, newer_syntax

BOARD = sorted(export.BOARD_FOLDER.glob("*.py"))
FILES = [*BOARD, *sorted((STANDIN_FOLDER / "rtmaps").glob("*.py"))]

STANDARD = {
    *(
        "argparse",
        "contextlib",
        "copy",
        "functools",
        "hashlib",
        "importlib.util",
        "io",
        "json",
        "math",
        "os",
        "pickle",
        "types",
    ),
    *("platform", "re", "stat", "sys", "time", "collections"),
}
BESIDE = {"bundle", "frames", "folding", "rtmaps", "rtmaps.core", "rtmaps.types", "rtmaps.base_component"}
OPTIONAL = {"PIL", "onnxruntime"}

# What PyTorch 1.1 has, with the release that brought it.
TORCH = {
    "torch.__version__": "0.1",
    "torch.from_numpy": "0.1",
    "torch.get_num_threads": "0.1",
    "torch.nn.Module": "0.1",
    "torch.no_grad": "0.4",
    "torch.set_num_threads": "0.1",
    "torch.float32": "0.4",
    "torch.int64": "0.4",
    "torch.softmax": "0.4",
    "torch.cat": "0.1",
    "torch.full_like": "0.4",
    "torch.min": "0.1",
    "torch.ones_like": "0.3",
    "torch.rsqrt": "0.1",
    "torch.sign": "0.1",
    "torch.sqrt": "0.1",
    "torch.where": "0.4",
    "torch.zeros_like": "0.3",
}
NETWORKS = {"nn.BatchNorm2d", "nn.Conv2d", "nn.Identity", "nn.Module", "nn.Parameter", "nn.ReLU", "nn.Sequential"}
# What numpy 1.9 has, which is the first for Python 3.5.
NUMPY = {
    *("abs", "arange", "array", "clip", "dot", "dtype", "empty", "floor", "frombuffer", "int64", "float32", "float64"),
    *("isfinite", "load", "maximum", "ndarray", "prod", "repeat", "rint", "tensordot", "uint8", "zeros", "argsort"),
    *("asarray", "newaxis"),
}
NUMPY_1_10 = {"stack"}

NEWER_BUILTINS = {
    *("ModuleNotFoundError", "breakpoint", "aiter", "anext", "EncodingWarning", "BaseExceptionGroup", "ExceptionGroup"),
    *("PythonFinalizationError",),
}
# Methods and functions of the standard library that came after 3.5, and that one writes without a thought.
NEWER_ATTRIBUTES = {
    *("removeprefix", "removesuffix", "isascii", "perf_counter_ns", "time_ns", "process_time_ns", "fromisoformat"),
    *("capture_output", "nullcontext", "cache", "cached_property", "fspath", "prod", "isqrt", "pairwise", "bit_count"),
}
NEWER_KEYWORDS = {"capture_output", "text", "strict", "missing_ok", "dirs_exist_ok", "usedforsecurity", "required"}


@pytest.fixture(params=FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def file(request):
    return request.param


@pytest.fixture
def source(file):
    return file.read_text(encoding="utf-8")


@pytest.fixture
def tree(source):
    return ast.parse(source)


def attributes(tree):
    """The longest chains of attributes: np.linalg.norm, not its np.linalg."""
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    chains = {_dotted(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute) and id(node) not in inner}
    return {chain for chain in chains if chain}


def test_every_file_of_a_bundle_is_looked_at():
    assert {path.name for path in BOARD} >= set(export.BOARD_FILES)
    assert {path.name for path in FILES} >= {"base_component.py", "core.py", "standin.py", "types.py"}


def test_syntax_is_python_3_5_s(source):
    assert newer_syntax(source) == []


def test_there_are_no_annotations(tree):
    for node in ast.walk(tree):
        assert not isinstance(node, ast.AnnAssign)
        assert getattr(node, "annotation", None) is None
        assert getattr(node, "returns", None) is None


def test_imports_are_on_the_board(tree):
    found = set()
    # These may be there, and are asked for where they are of use.
    tried = {id(node) for function in ast.walk(tree) if isinstance(function, ast.Try) for node in function.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = {node.module}
        else:
            continue
        found |= names - OPTIONAL if id(node) in tried else names
    assert found <= STANDARD | BESIDE | {"numpy", "torch"}


@pytest.mark.parametrize(
    "path", [path for path in FILES if path.parent != export.BOARD_FOLDER], ids=lambda path: path.name
)
def test_the_stand_in_needs_neither_numpy_nor_torch(path):
    imported = path.read_text(encoding="utf-8")
    assert "import numpy" not in imported
    assert "import torch" not in imported


def test_the_block_imports_numpy_and_torch_through_the_bundle_alone():
    source = (export.BOARD_FOLDER / "rtmaps_block.py").read_text(encoding="utf-8")
    assert "import numpy" not in source
    assert "import torch" not in source


def test_names_of_torch_and_numpy_are_old_enough(tree):
    used = attributes(tree)
    assert {chain for chain in used if chain.startswith("nn.")} <= NETWORKS
    assert {chain for chain in used if chain.startswith("torch.")} <= set(TORCH)
    numpy = {chain for chain in used if chain.startswith("np.")}
    assert {chain.split(".")[1] for chain in numpy} <= NUMPY | NUMPY_1_10


def test_names_of_the_standard_library_are_3_5_s(tree):
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not names & NEWER_BUILTINS
    assert all(hasattr(builtins, name) for name in NEWER_BUILTINS if name.startswith("Mod"))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and (_dotted(node) or "").split(".")[0] not in ("np", "torch")
    }
    assert not used & NEWER_ATTRIBUTES
    keywords = {keyword.arg for node in ast.walk(tree) if isinstance(node, ast.Call) for keyword in node.keywords}
    assert not keywords & NEWER_KEYWORDS
