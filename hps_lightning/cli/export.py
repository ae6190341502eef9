"""`hps export`: a checkpoint as a folder that runs on the board by itself."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from hps_lightning.bluebox import (
    INT8_FILE,
    ONNX_FILE,
    WEIGHTS_FILE,
    describe,
    destination,
    export_bundle,
    refuse_full_directory,
    refuse_other_files,
)
from hps_lightning.bluebox.formats import PYTORCH, compare_formats, formats_table
from hps_lightning.bluebox.manifest import refuse_other_images
from hps_lightning.bluebox.onnx_export import calibration_images, export_int8, export_onnx
from hps_lightning.bluebox.weights import refuse_not_finite
from hps_lightning.checkpoint import rebuilt
from hps_lightning.cli.damaged_checkpoints import open_checkpoint
from hps_lightning.cli.from_checkpoint import import_own_network, reachable_root
from hps_lightning.cli.parser import OneLineParser
from hps_lightning.data.readers import Images, load_images
from hps_lightning.errors import UserError
from hps_lightning.modules import RECORD_KEY
from hps_lightning.runs import RUNS

FORMATS = ("pytorch", "onnx", "int8")
"""What `--formats` takes; PyTorch's is always written, since the block runs it."""

_FLOAT32, _INT8 = "ONNX float32", "ONNX int8"
_FILES = {PYTORCH: WEIGHTS_FILE, _FLOAT32: ONNX_FILE, _INT8: INT8_FILE}


def run_export(argv: list[str]) -> int:
    """Runs `hps export` with the arguments that follow it; returns the exit status.

    Raises:
        UserError: the checkpoint or the images cannot be read, or the output cannot be written.
    """
    parser = OneLineParser(
        prog="hps export",
        description="Writes a checkpoint as a folder that runs on the board by itself: network, weights, RTMaps block, "
        "command line, self-test, and the network for ONNX Runtime in float32 and in 8 bits. Where ONNX is among the "
        "formats, each is measured on the test images.",
    )
    parser.add_argument("--ckpt_path", required=True, help='a checkpoint, or "best" or "last" of the newest run')
    parser.add_argument(
        "--model", metavar="MODULE.CLASS", help="the class of the checkpoint's network, where it is one of your own"
    )
    parser.add_argument("--output", required=True, type=Path, help="folder to write")
    parser.add_argument("--replace", action="store_true", help="replace an earlier export; whole, or not at all")
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=FORMATS,
        default=list(FORMATS),
        help="pytorch alone needs no images; int8 is calibrated with training images (default: all)",
    )
    parser.add_argument(
        "--preprocessing",
        action="store_true",
        help="let the ONNX files take uint8 images (N x height x width x 3, RGB) and give probabilities, "
        "instead of normalised images and logits",
    )
    parser.add_argument(
        "--fold",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="fold batch norms into convolutions and leave out what no layer reads: the same answers in less time "
        "(default: yes)",
    )
    parser.add_argument(
        "--data.root",
        dest="root",
        help="where the data set lies (default: where it lay for the training, else as for `hps fit`)",
    )
    arguments = parser.parse_args(argv)
    # What cannot be is said before the work begins.
    destination(arguments.output)
    if not arguments.replace:
        refuse_full_directory(arguments.output)
    checkpoint, content = open_checkpoint(arguments.ckpt_path, Path(RUNS))
    record = content[RECORD_KEY]
    root = arguments.root or reachable_root(record)
    import_own_network(record, {arguments.model})
    network = rebuilt(checkpoint, content).network.to(memory_format=torch.contiguous_format)
    refuse_not_finite(network.state_dict())
    manifest = describe(network, record)
    refuse_other_images(manifest)
    refuse_other_files(arguments.output, network)
    models: dict[str, bytes] = {}
    if "onnx" in arguments.formats:
        models[_FLOAT32] = export_onnx(network, manifest, arguments.preprocessing, arguments.fold)
    if "int8" in arguments.formats:
        models[_INT8] = export_int8(network, manifest, _calibration(record, root), arguments.preprocessing)
    rows: list[dict[str, Any]] = []
    metric = next((name for name in ("test/accuracy", "val/accuracy") if name in record.get("metrics", {})), None)
    if models:
        test = _test_images(record, root)
        measured = compare_formats(network, manifest, models, test, folded=arguments.fold)
        rows = [{"file": _FILES[row["format"]], **row} for row in measured]
        if test is not None:
            metric = "test/accuracy"
            record = {**record, "metrics": {metric: rows[0]["correct"] / rows[0]["images"]}}
    export_bundle(
        network,
        network.state_dict(),
        arguments.output,
        record,
        metric,
        folded=arguments.fold,
        models={_FILES[name]: model for name, model in models.items()},
        formats=rows,
    )
    if rows:
        Console().print(formats_table(rows))
    print(f"Wrote {arguments.output}. Copy the folder, and there: python3 selftest.py")
    return 0


def _calibration(record: dict[str, Any], root: str | None) -> np.ndarray:
    try:
        return calibration_images(record["dataset"], root=root)
    except UserError as error:
        raise UserError(f"{error} Without training images there is no int8: --formats pytorch onnx.") from error


def _test_images(record: dict[str, Any], root: str | None) -> Images | None:
    try:
        return load_images(record["dataset"], "test", root)
    except UserError as error:
        print(f"The accuracy is not measured: {error}")
        return None
