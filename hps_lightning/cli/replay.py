"""`hps replay`: a bundle's RTMaps block at work on this machine, before there is a board."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from hps_lightning.bluebox.frame_sources import WEBCAM_FRAMES, DatasetFrames, FileFrames, Frame, WebcamFrames
from hps_lightning.bluebox.manifest import load_manifest
from hps_lightning.bluebox.replay import CHANNEL_ORDERS, play, start, table
from hps_lightning.bluebox.standin import load_standin
from hps_lightning.cli.parser import OneLineParser
from hps_lightning.errors import UserError, say_trouble

# No clock waits much longer, or tells shorter times: the block's time stamps are microseconds.
_SLOWEST_FPS, _FASTEST_FPS = 1e-6, 1e6


def run_replay(argv: list[str]) -> int:
    """Runs `hps replay` with the arguments that follow it; returns the exit status.

    Raises:
        UserError: the bundle, its block or the images cannot be used.
    """
    arguments = _arguments(argv)
    runtime = start(arguments.bundle, _properties(arguments))
    standin = load_standin()
    try:
        manifest = load_manifest(arguments.bundle)
        frames, source = _frames(arguments, manifest["classes"])
        pace = f"{arguments.fps:g} frames a second" if arguments.fps else "as fast as the block is"
        print(f"{manifest['network']['class']} on {source}, {pace}; PyTorch {torch.__version__}", flush=True)
        limit = _limit(arguments, len(frames))
        outcome = play(
            runtime, frames, manifest["classes"], arguments.fps, limit, channel_order=arguments.channel_order
        )
    finally:
        runtime.stop()
    # Past the output, where a table piped into a file does not hold them.
    for level, text in standin.reports():
        say_trouble(f"the block reports ({level}): {text.removeprefix('hps: ')}")
    print(table(outcome))
    return 0


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = OneLineParser(
        prog="hps replay",
        description="Drives the RTMaps block of a bundle on this machine, and shows times, lost frames and accuracy.",
    )
    parser.add_argument("bundle", type=Path, help="folder that `hps export` wrote")
    parser.add_argument(
        "images", type=Path, nargs="*", help="image files or folders; a folder named as a class gives the accuracy"
    )
    parser.add_argument("--dataset", help="the test images of a data set, such as cifar10, instead of files")
    parser.add_argument("--data.root", dest="root", type=Path, help="folder of the data set (default: as `hps fit`)")
    parser.add_argument("--webcam", action="store_true", help="a made camera instead of files")
    parser.add_argument("--size", default="640x480", help="columns x rows of the made camera (default: %(default)s)")
    parser.add_argument("--labels", type=Path, help="file with a line 'image class' for each image")
    parser.add_argument(
        "--fps", type=float, default=30.0, help="frames a second; 0: as fast as the block is (default: 30)"
    )
    parser.add_argument("--frames", type=int, help="how many frames to send at most (default: each once)")
    parser.add_argument(
        "--loop", action="store_true", help="begin again after the last image, up to --frames or Ctrl-C"
    )
    parser.add_argument("--channel-order", choices=CHANNEL_ORDERS, default="bgr", help="of the frames (default: bgr)")
    parser.add_argument("--threads", type=int, help="of PyTorch; the block's property")
    parser.add_argument(
        "--set", metavar="NAME=VALUE", action="append", default=[], help="another property of the block: resize=crop"
    )
    arguments = parser.parse_args(argv)
    if sum(map(bool, (arguments.images, arguments.dataset, arguments.webcam))) != 1:
        raise UserError("Give either images or folders of images, or --dataset NAME, or --webcam.")
    if arguments.labels and not arguments.images:
        raise UserError("--labels goes with image files alone.")
    if arguments.fps != 0 and not _SLOWEST_FPS <= arguments.fps <= _FASTEST_FPS:
        raise UserError(f"--fps must be 0, or from {_SLOWEST_FPS:g} to {_FASTEST_FPS:g}, got {arguments.fps}.")
    if arguments.frames is not None and arguments.frames < 1:
        raise UserError(f"--frames must be 1 or more, got {arguments.frames}.")
    return arguments


def _properties(arguments: argparse.Namespace) -> dict[str, str | int]:
    properties: dict[str, str | int] = {}
    for setting in arguments.set:
        name, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"--set takes NAME=VALUE, got {setting!r}.")
        if name == "bundle":
            raise UserError(f"--set {setting}: the bundle to replay is the first argument; give that one instead.")
        properties[name] = value
    if arguments.threads is not None:
        properties["threads"] = arguments.threads
    return properties


def _frames(arguments: argparse.Namespace, classes: Sequence[str]) -> tuple[Sequence[Frame], str]:
    if arguments.dataset:
        return DatasetFrames(arguments.dataset, classes, arguments.root), f"the test images of {arguments.dataset}"
    if arguments.webcam:
        sides = arguments.size.lower().split("x")
        if len(sides) != 2 or not all(side.isdecimal() and 0 < int(side) <= 8192 for side in sides):
            raise UserError(f"--size must be columns x rows from 1 to 8192, such as 640x480, got {arguments.size!r}.")
        # With --frames alone the camera goes on; only --loop needs no end.
        count = max(arguments.frames or 0, WEBCAM_FRAMES)
        return WebcamFrames(*map(int, sides), count), f"a made camera of {arguments.size}"
    return FileFrames(arguments.images, classes, arguments.labels), "image files"


def _limit(arguments: argparse.Namespace, available: int) -> float:
    frames = math.inf if arguments.frames is None else arguments.frames
    return frames if arguments.loop else min(frames, available)
