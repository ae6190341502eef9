"""What is printed at the start of a training: the network's parts and costs, the data, and how it trains."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hps_lightning.bluebox.weights import bare_copy
from hps_lightning.callbacks.distillation import Distillation
from hps_lightning.complexity import IMAGE_SIZE, count_parameters, module_bytes, state_dict_bytes


@dataclass(frozen=True)
class Part:
    """A top-level part of a network, or one that stands in a list there.

    Attributes:
        name: as the network calls it, such as "stage1" or "blocks.0".
        shape: of its output for one image, without the batch: (channels, height, width) or (features,). Empty where
            it gives no tensor.
        parameters: number of trainable values.
        macs: multiply-accumulate operations for one image.
    """

    name: str
    shape: tuple[int, ...]
    parameters: int
    macs: int


@dataclass(frozen=True)
class Costs:
    """What a network costs, part by part and as a whole.

    Attributes:
        parts: that have parameters, in the order in which they run.
        shape: of the network's output for one image.
        macs: of the network, with what runs beside its parts.
    """

    parts: list[Part]
    shape: tuple[int, ...]
    macs: int


def costs(network: nn.Module) -> Costs:
    """What ``network`` and its parts cost. It is left as it is: a copy is run.

    Args:
        network: maps N x 3 x 32 x 32 to logits.
    """
    network = bare_copy(network).eval()
    image = torch.zeros((1, *IMAGE_SIZE), dtype=next(network.parameters()).dtype)
    with _output_shapes(network) as shapes, torch.no_grad(), FlopCounterMode(display=False) as counter:
        logits = network(image)
    flops = counter.get_flop_counts()
    children = _children(network)
    return Costs(
        parts=[
            Part(
                name=name,
                shape=shape,
                parameters=count_parameters(children[name]),
                # Half, since an operation is a multiplication and an addition.
                macs=sum(flops.get(f"{type(network).__name__}.{name}", {}).values()) // 2,
            )
            for name, shape in shapes.items()
            if any(True for _ in children[name].parameters())
        ],
        shape=_shape_of(logits),
        macs=counter.get_total_flops() // 2,
    )


def _children(network: nn.Module) -> dict[str, nn.Module]:
    """The parts that are called, by their names: those of a list that is none itself stand for it."""
    children: dict[str, nn.Module] = {}
    for name, child in network.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            children |= {f"{name}.{below}": part for below, part in _children(child).items()}
        else:
            children[name] = child
    return children


@contextmanager
def _output_shapes(network: nn.Module) -> Iterator[dict[str, tuple[int, ...]]]:
    shapes: dict[str, tuple[int, ...]] = {}

    def remember(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            shapes[name] = _shape_of(output)

        return hook

    handles = [child.register_forward_hook(remember(name)) for name, child in _children(network).items()]
    try:
        yield shapes
    finally:
        for handle in handles:
            handle.remove()


def _shape_of(output: Any) -> tuple[int, ...]:
    return tuple(output.shape[1:]) if isinstance(output, Tensor) else ()


class Summary(Callback):
    """Prints the network's parts, sizes and costs, the data and the settings when a training starts.

    It takes the place of Lightning's own summary: ``Trainer(enable_model_summary=False)``.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the summary."""
        if not trainer.is_global_zero:
            return
        console = Console()
        console.print()
        console.print(Text(_name(pl_module), style="bold"), soft_wrap=True)
        console.print(_table(pl_module.network))
        lines = {
            "sizes": _sizes(pl_module.network),
            "data": _data(trainer),
            "training": _training(trainer, pl_module),
            "device": _device(trainer, pl_module),
        }
        teacher = next((callback for callback in trainer.callbacks if isinstance(callback, Distillation)), None)
        if teacher is not None:
            lines["teacher"] = str(teacher)
        for name, value in lines.items():
            console.print(Text.assemble("  ", (f"{name:8}", "bold"), "  ", value), soft_wrap=True)


def _table(network: nn.Module) -> Table:
    found = costs(network)
    table = Table(box=box.SIMPLE, show_footer=True)
    table.add_column("part", footer="total", overflow="fold")
    totals = (_shape(found.shape), f"{count_parameters(network):,}", f"{found.macs:,}")
    for name, total in zip(("output", "parameters", "MACs"), totals, strict=True):
        table.add_column(name, footer=total, justify="right", overflow="fold")
    for row in found.parts:
        table.add_row(row.name, _shape(row.shape), f"{row.parameters:,}", f"{row.macs:,}")
    return table


def _sizes(network: nn.Module) -> str:
    network = bare_copy(network)
    module = module_bytes(network)
    sizes = f"state dict {state_dict_bytes(network) / 1e3:,.1f} kB"
    # One that cannot be saved as a whole is trained as well as any other.
    return sizes if module is None else f"{sizes}, module {module / 1e6:,.3f} MB"


def _name(pl_module: LightningModule) -> str:
    training = ("optimizer", "lr_scheduler", "label_smoothing", "decay_norm_and_bias")
    return _call(type(pl_module).__name__, {k: v for k, v in pl_module.hparams.items() if k not in training})


def _call(name: str, arguments: Mapping[str, Any]) -> str:
    return f"{name}({', '.join(f'{key}={value}' for key, value in arguments.items())})"


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _data(trainer: Trainer) -> str:
    data = trainer.datamodule
    if not hasattr(data, "info"):
        return "no data module"
    items = [data.info.title, f"{len(data.info.classes)} classes", f"protocol {data.protocol}"]
    items.append(f"{len(data.train_set):,} training images")
    items.append(f"{len(data.val_set):,} validation images" if data.validates else "no validation")
    return ", ".join(items)


def _training(trainer: Trainer, pl_module: LightningModule) -> str:
    optimizer = trainer.optimizers[0]
    schedule = pl_module.lr_scheduler_spec
    if schedule:
        schedule = _call(schedule["class_path"].rpartition(".")[2], schedule.get("init_args") or {})
    return ", ".join(
        [
            f"{type(optimizer).__name__} with rate {optimizer.defaults['lr']:g}",
            f"schedule {schedule or 'constant'}",
            "1 epoch" if trainer.max_epochs == 1 else f"{trainer.max_epochs} epochs",
        ]
    )


def _device(trainer: Trainer, pl_module: LightningModule) -> str:
    device = trainer.strategy.root_device
    name = f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
    count = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
    return f"{count}{name}, precision {trainer.precision}, kernels {pl_module.kernels}"
