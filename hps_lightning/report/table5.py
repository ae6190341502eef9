"""The paper's Table 5 beside the network that it describes, layer by layer."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from hps_lightning import paper, zoo
from hps_lightning.complexity import IMAGE_SIZE, count_parameters

NETWORK = "hps_23_1x"
"""The network that Table 5 describes: it has 6, 6, 8 and 1 blocks."""

COLUMNS = (
    *("in_w", "in_h", "in_c", "pad_w", "pad_h", "stride"),
    *("kernel_w", "kernel_h", "out_w", "out_h", "out_c", "parameters"),
)
"""The columns of ``table5.csv`` that can be computed."""

# A block has five convolutions beside its shortcut, which the table leaves out.
_CONVOLUTIONS_OF_A_BLOCK = 5


@dataclass(frozen=True)
class Error:
    """A printed figure that is not the network's.

    Attributes:
        column: one of :data:`COLUMNS`.
        printed: the paper's figure.
        computed: the network's.
        why: what it follows from.
    """

    column: str
    printed: int
    computed: int
    why: str


@dataclass(frozen=True)
class LayerRow:
    """A row of Table 5.

    Attributes:
        layer: its name.
        printed: by column; None where the table prints none.
        computed: by column, for the layers that the row stands for together.
        repeat: how many they are.
        errors: the columns in which the two differ.
    """

    layer: str
    printed: dict[str, int | None]
    computed: dict[str, int]
    repeat: int
    errors: tuple[Error, ...]

    def error(self, column: str) -> Error | None:
        """The error in a column, if there is one."""
        return next((error for error in self.errors if error.column == column), None)


@dataclass(frozen=True)
class Composition:
    """Table 5 and what it leaves out.

    Attributes:
        rows: in the table's order.
        network_parameters: of the whole network.
        printed_parameters: the sum of the printed ones.
        shortcuts: number of projection shortcuts.
        shortcut_parameters: of their convolutions.
        unlisted: number of convolutions beside shortcuts that no row stands for.
        unlisted_parameters: theirs.
        norm_parameters: of all batch norms.
        convolutions: number of convolutions beside shortcuts.
    """

    rows: tuple[LayerRow, ...]
    network_parameters: int
    printed_parameters: int
    shortcuts: int
    shortcut_parameters: int
    unlisted: int
    unlisted_parameters: int
    norm_parameters: int
    convolutions: int


@dataclass(frozen=True)
class _Executed:
    module: nn.Module
    facts: dict[str, int]


def _facts(module: nn.Module, before: torch.Size, after: torch.Size) -> dict[str, int]:
    facts = {"parameters": count_parameters(module)}
    for prefix, shape in (("in", before), ("out", after)):
        # The classifier's vector is a map of 1 x 1.
        channels, height, width = (*shape, 1, 1)[:3]
        facts |= {f"{prefix}_c": channels, f"{prefix}_h": height, f"{prefix}_w": width}
    if isinstance(module, nn.Conv2d):
        (pad_h, pad_w), (kernel_h, kernel_w), stride = module.padding, module.kernel_size, module.stride[0]
    else:
        pad_h, pad_w, kernel_h, kernel_w, stride = 0, 0, 1, 1, 1
    return facts | {"pad_h": pad_h, "pad_w": pad_w, "kernel_h": kernel_h, "kernel_w": kernel_w, "stride": stride}


def _execute(network: nn.Module) -> tuple[list[_Executed], list[nn.Conv2d]]:
    """The layers that Table 5 counts, in the order in which they run; and the shortcuts' convolutions."""
    layers: list[_Executed] = []

    def note(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        layers.append(_Executed(module, _facts(module, args[0].shape[1:], output.shape[1:])))

    shortcuts = []
    for name, module in network.named_modules():
        if not isinstance(module, (nn.Conv2d, nn.AdaptiveAvgPool2d, nn.Linear)):
            continue
        if ".shortcut." in name:
            shortcuts.append(module)
        else:
            module.register_forward_hook(note)
    with torch.no_grad():
        network.eval()(torch.zeros(1, *IMAGE_SIZE))
    return layers, shortcuts


def _layers_of(row: dict[str, str], executed: list[_Executed]) -> list[_Executed]:
    if not row["layer"].startswith("Convolution"):
        # The pool and the classifier come last.
        return [executed[-2 if "Pool" in row["layer"] else -1]]
    first = int(row["layer"].split()[1]) - 1
    return executed[first : first + _CONVOLUTIONS_OF_A_BLOCK * int(row["repeat"]) : _CONVOLUTIONS_OF_A_BLOCK]


def _why(column: str, facts: dict[str, int], repeat: int) -> str:
    if column == "parameters":
        kernel = f"{facts['kernel_w']}·{facts['kernel_h']}·" if facts["kernel_w"] * facts["kernel_h"] > 1 else ""
        product = f"{kernel}{facts['in_c']}·{facts['out_c']} weights and {facts['out_c']} biases"
        return f"{repeat} times {product}" if repeat > 1 else product
    if column == "in_c":
        return f"the layer before gives {facts['in_c']} channels"
    if column == "out_c":
        return f"it takes {facts['in_c']} channels and keeps their number"
    if column.startswith("out_") and facts["stride"] > 1:
        sides = f"a map of {facts['in_w']} x {facts['in_h']} leaves {facts['out_w']} x {facts['out_h']}"
        return f"stride {facts['stride']}: {sides}"
    return f"the layer gives {facts['out_w']} x {facts['out_h']} x {facts['out_c']}"


def _compare(row: dict[str, str], layers: list[_Executed]) -> LayerRow:
    computed = dict(layers[0].facts)
    computed["parameters"] = sum(layer.facts["parameters"] for layer in layers)
    printed = {column: int(row[column]) if row[column] else None for column in COLUMNS}
    errors = tuple(
        Error(column, printed[column], computed[column], _why(column, computed, len(layers)))
        for column in COLUMNS
        if printed[column] is not None and printed[column] != computed[column]
    )
    return LayerRow(row["layer"], printed, computed, len(layers), errors)


def composition() -> Composition:
    """Table 5 beside the network of the zoo that it describes."""
    network = zoo.find_variant(NETWORK).build()
    executed, shortcuts = _execute(network)
    listed: set[int] = set()

    def compared() -> Iterator[LayerRow]:
        for row in paper.table5():
            layers = _layers_of(row, executed)
            listed.update(id(layer.module) for layer in layers)
            yield _compare(row, layers)

    rows = tuple(compared())
    convolutions = [layer for layer in executed if isinstance(layer.module, nn.Conv2d)]
    unlisted = [layer for layer in convolutions if id(layer.module) not in listed]
    return Composition(
        rows=rows,
        network_parameters=count_parameters(network),
        printed_parameters=sum(row.printed["parameters"] or 0 for row in rows),
        shortcuts=len(shortcuts),
        shortcut_parameters=sum(count_parameters(module) for module in shortcuts),
        unlisted=len(unlisted),
        unlisted_parameters=sum(layer.facts["parameters"] for layer in unlisted),
        norm_parameters=sum(count_parameters(m) for m in network.modules() if isinstance(m, nn.BatchNorm2d)),
        convolutions=len(convolutions),
    )
