"""What a network costs where it is deployed, known before it is trained."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from hps_lightning import complexity
from hps_lightning.bluebox import describe
from hps_lightning.bluebox.weights import bare_copy


def network_costs(network: nn.Module, record: Mapping[str, Any], names: Collection[str]) -> dict[str, float]:
    """Measures a network as `hps export` writes it for ONNX Runtime, batch norms folded.

    Args:
        network: untrained, wrapped or bare; it is not changed.
        record: what ``ImageClassifier.record()`` returns.
        names: what is needed: ``size_bytes`` (of the ONNX file, float32) and ``latency_ms``
            (median of one image on one thread of this machine, with whatever else it is doing)
            take seconds, and are left out where they are not among them.

    Returns:
        ``parameters``, ``macs``, and what of the above was asked for.
    """
    made = _with_any_weights(network)
    costs: dict[str, float] = {
        "parameters": complexity.count_parameters(made),
        "macs": complexity.count_macs(made, tuple(record.get("image_size", complexity.IMAGE_SIZE))),
    }
    if {"size_bytes", "latency_ms"} & set(names):
        # Seconds to import, with the export itself.
        from hps_lightning.bluebox.formats import compare_formats
        from hps_lightning.bluebox.onnx_export import export_onnx

        manifest = describe(made, record)
        _, onnx = compare_formats(made, manifest, {"ONNX": export_onnx(made, manifest)})
        costs.update(size_bytes=onnx["bytes"], latency_ms=onnx["latency_ms"])
    return costs


def _with_any_weights(network: nn.Module) -> nn.Module:
    """A copy on the CPU whose values all differ, as a trained network's do.

    Fresh biases and batch norms are all alike, and the export keeps equal tensors only once.
    """
    made = bare_copy(network).to(memory_format=torch.contiguous_format)
    # A generator of its own: the training's random numbers stay as they are.
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (*made.parameters(), *made.buffers()):
            if tensor.is_floating_point():
                # Positive, for the variances, and not so large that activations overflow.
                tensor.uniform_(0.01, 0.1, generator=generator)
    return made
