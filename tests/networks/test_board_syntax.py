"""The network files run on a board with Python 3.5 and PyTorch 1.1, which the tests cannot: they read the source."""

import ast
import io
import tokenize
from pathlib import Path

import pytest
import torch

from hps_lightning import networks

FILES = sorted(path for path in Path(networks.__file__).parent.glob("*.py") if path.name != "__init__.py")

IMPORTS = {("math", None), ("collections", "OrderedDict"), ("torch", None), ("torch", "nn"), ("torch.nn", "functional")}
# What PyTorch 1.1 has, with the release that brought it; Python 3.5 has the rest.
NAMES = {
    "math.sqrt": "Python 3.5",
    "torch.cat": "0.1",
    "torch.flatten": "0.4.1",
    "nn.AdaptiveAvgPool2d": "0.2",
    "nn.AdaptiveMaxPool2d": "0.2",
    "nn.BatchNorm2d": "0.1",
    "nn.Conv2d": "0.1",
    "nn.Dropout": "0.1",
    "nn.ELU": "0.1",
    "nn.Identity": "1.1",
    "nn.Linear": "0.1",
    "nn.MaxPool2d": "0.1",
    "nn.Module": "0.1",
    "nn.ReLU": "0.1",
    "nn.Sequential": "0.1",
    "nn.init.kaiming_normal_": "0.4",
    "nn.init.kaiming_uniform_": "0.4",
    "nn.init.normal_": "0.4",
    "nn.init.xavier_uniform_": "0.4",
    "nn.init.zeros_": "1.0",
    "F.interpolate": "0.4.1",  # its "area" and "bilinear" modes too
    "F.max_pool2d": "0.1",
}
# Arguments that those take in PyTorch 1.1: later ones are, say, device, dtype, antialias, generator.
KEYWORDS = {
    *("kernel_size", "stride", "padding", "groups", "bias", "inplace", "ceil_mode"),
    *("gain", "mean", "std", "mode", "nonlinearity", "size", "align_corners"),
}
TENSOR_ATTRIBUTES = {"shape", "stride"}


def _dotted(node):
    """The name that a chain of attributes spells, or None where it does not start at a name."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def _trailing_comma(node, tokens):
    """Whether a comma ends parameters that Python 3.5 lets none end: after * or **."""
    arguments = node.args
    if not (arguments.vararg or arguments.kwarg or arguments.kwonlyargs):
        return False
    last = [arguments.vararg, arguments.kwarg, *arguments.kwonlyargs, *arguments.kw_defaults]
    end = max((part.end_lineno, part.end_col_offset) for part in last if part)
    following = next(
        token for token in tokens if token.start >= end and token.type not in (tokenize.NL, tokenize.COMMENT)
    )
    return following.string == ","


def newer_syntax(source):
    """Syntax in ``source`` that Python 3.5 does not know."""
    try:
        tree = ast.parse(source, feature_version=(3, 5))
    except SyntaxError as error:
        return [str(error)]
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    found = [
        f"line {token.start[0]}: underscore in the number {token.string}"
        for token in tokens
        if token.type == tokenize.NUMBER and "_" in token.string
    ]
    for node in ast.walk(tree):
        if isinstance(node, (ast.JoinedStr, ast.AnnAssign, ast.NamedExpr, ast.Match)):
            found.append(f"line {node.lineno}: {type(node).__name__}")
        elif isinstance(node, ast.comprehension) and node.is_async:
            found.append("an asynchronous comprehension")
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            if node.args.posonlyargs:
                found.append(f"line {node.lineno}: positional-only parameters")
            if _trailing_comma(node, tokens):
                found.append(f"line {node.lineno}: a comma after the last starred parameter")
    return found


@pytest.fixture(params=FILES, ids=lambda path: path.name)
def source(request):
    return request.param.read_text(encoding="utf-8")


def test_there_are_network_files():
    assert {path.name for path in FILES} == {"mobilenet.py", "squeezenet.py", "squeezenext.py"}


def test_syntax_is_python_3_5_s(source):
    assert newer_syntax(source) == []


@pytest.mark.parametrize(
    "snippet",
    [
        "f'{1}'",
        "x: int = 1",
        "x = 1_000",
        "x = 0x_ff",
        "(x := 1)",
        "def f(a, /): pass",
        "def f(*args,): pass",
        "def f(**options,): pass",
        "def f(*, a,): pass",
        "def f(*, a=1,  # why\n): pass",
        "lambda *args,: 1",
        "match x:\n    case 1: pass",
        "async def f():\n    return [x async for x in y]",
    ],
)
def test_the_check_finds_newer_syntax(snippet):
    assert newer_syntax(snippet + "\n")


@pytest.mark.parametrize("snippet", ["def f(a, b,): pass", "def f(a, *args, b=1, **c): pass", "f(*args,)", "'1_000'"])
def test_the_check_passes_older_syntax(snippet):
    assert newer_syntax(snippet + "\n") == []


def test_imports_are_on_the_board(source):
    imports = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imports |= {(alias.name, None) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import: the file would not stand alone"
            imports |= {(node.module, alias.name) for alias in node.names}
    assert ("torch", None) in imports
    assert imports <= IMPORTS


def test_names_of_torch_are_those_of_1_1(source):
    tree = ast.parse(source)
    # Only the longest chains: nn.init.zeros_, not its nn.init.
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    chains = {_dotted(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute) and id(node) not in inner} - {
        None
    }
    used = {chain for chain in chains if chain.split(".")[0] in ("torch", "nn", "F", "math")}
    assert len(used) > 5
    assert used <= set(NAMES)


def test_keyword_arguments_of_torch_are_those_of_1_1(source):
    used = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and (_dotted(node.func) or "").split(".")[0] in ("torch", "nn", "F"):
            used |= {keyword.arg for keyword in node.keywords}
    assert used
    assert used <= KEYWORDS


def test_tensors_are_asked_for_what_1_1_has(source):
    own = {"self", "torch", "nn", "F", "math"}
    asked = {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and (_dotted(node) or "").split(".")[0] not in own
    }
    of_tensors = {name for name in asked if hasattr(torch.Tensor, name) and not name.startswith("__")}
    assert of_tensors <= TENSOR_ATTRIBUTES
