"""A small classifier and exports of it."""

import hashlib
import json

import torch
from torch import nn

from hps_lightning.bluebox import describe, export_bundle, export_weights

DATA = {
    "dataset": "made",
    "classes": ["bird", "cat", "dog"],
    "mean": (0.1, 0.2, 0.3),
    "std": (0.4, 0.5, 0.6),
    "image_size": [3, 32, 32],
    "protocol": "holdout",
}


def record(classifier, **changes):
    return {
        **classifier.record(),
        **DATA,
        "epoch": 7,
        "metrics": {"val/accuracy": 0.5, "test/accuracy": 0.4},
        **changes,
    }


def export(classifier, directory, **changes):
    return export_weights(
        classifier.network.state_dict(), directory, describe(classifier.network, record(classifier, **changes))
    )


def read(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def trained(network: nn.Module) -> None:
    """Gives batch norms statistics of their inputs, moved about: fresh ones do next to nothing."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(torch.randn(32, 3, 32, 32))
        for norm in norms:
            norm.running_mean += 0.2 * torch.randn_like(norm.running_mean) * norm.running_var.sqrt()
            norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.5, 2)
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(std=0.2)


def make_bundle(classifier, directory, **changes):
    return export_bundle(
        classifier.network, classifier.network.state_dict(), directory, record(classifier, **changes), "test/accuracy"
    )


def change_manifest(bundle, change):
    """Lets ``change`` alter the manifest in place, or return another."""
    file = bundle / "manifest.json"
    manifest = json.loads(file.read_text())
    file.write_text(json.dumps(change(manifest) or manifest))


def replace_file(bundle, name, content):
    """Another file, which the manifest describes as if it had been exported."""
    (bundle / name).write_bytes(content)
    described = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    change_manifest(bundle, lambda manifest: manifest["files"].update({name: described}))
