"""What a command takes from a checkpoint: its network, its data, and the run that it goes on with."""

import importlib
import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from hps_lightning.checkpoint import check_network, classifier_class, read_checkpoint
from hps_lightning.cli.arguments import asks_for_help, is_null, join_options, option_values
from hps_lightning.cli.damaged_checkpoints import open_checkpoint
from hps_lightning.cli.run_config import foreign, own_words, read_run_config
from hps_lightning.config_files import read_config
from hps_lightning.errors import UserError
from hps_lightning.modules import RECORD_KEY, ImageClassifier, class_path
from hps_lightning.runs import RUNS, Run, expanded, run_of


def with_checkpoint(
    command: str, tokens: list[str], typed: list[str] | None = None
) -> tuple[list[str], dict[str, Any] | None, Run | None]:
    """Lets a checkpoint say what network and data it is for.

    Data arguments come from the checkpoint unless the user gives others; the network always
    does. A training that is resumed takes the rest from its own ``config.yaml``. Where the network
    is of a class that is not this project's, the user has to name it too, which imports it.

    Args:
        command: "fit", "validate", "test" or "predict".
        tokens: the user's arguments after it, names resolved.
        typed: all that he typed, where that is more.

    Returns:
        The arguments to parse, the checkpoint's record (None without one), and its run.

    Raises:
        UserError: the command needs a checkpoint and there is none, or it cannot be read.
    """
    pairs = list(option_values(tokens))
    options = dict(pairs)
    asked = options.get("--ckpt_path")
    if is_null(asked):
        if command != "fit" and not asks_for_help(options):
            raise UserError(
                f"`hps {command}` needs a trained network: --ckpt_path FILE, or --ckpt_path best for that of "
                "the newest run."
            )
        return tokens, None, None
    runs = _runs_folder(pairs)
    if not is_null(options.get("--init_weights")):
        raise UserError("--init_weights starts a new training and --ckpt_path continues an old one; give one of them.")
    path, checkpoint = open_checkpoint(asked, runs, resumable=command == "fit")
    record = checkpoint[RECORD_KEY]
    if command == "fit" and "optimizer_states" not in checkpoint:
        raise UserError(
            f"{path} holds weights alone, so that its training cannot be continued; start a new one from them "
            f"with --init_weights {path}."
        )
    words = own_words(typed or tokens)
    import_own_network(record, words)
    check_network(path, checkpoint)
    run = run_of(path)
    network = class_path(classifier_class(record))
    model = {"class_path": network, "init_args": _network_arguments(record)}
    data = dict(record.get("data") or {})
    found = foreign({"data": data})
    if found is not None:
        raise UserError(f"{path} is refused: {found}.")
    data["root"] = reachable_root(record)
    before: list[tuple[str, str | None]] = []
    own = _config_of(path, run)
    if command == "fit" and own is not None:
        before.append(("--config", json.dumps(read_run_config(own, words))))
    elif command == "fit" and not {"--config", "-c"} & options.keys():
        raise UserError(
            f"{path} lies outside its run, whose config.yaml says how it was trained. Continue the one in the run, or "
            "say it again: --config RUN/config.yaml."
        )
    before += [("--config", json.dumps({"data": data}))]
    mine: list[tuple[str, str | None]] = []
    for option, value in pairs:
        if option == "--model" and (is_null(value) or value == network):
            # The very class, which goes behind everything with the checkpoint's arguments.
            continue
        mine.append((option, str(path) if option == "--ckpt_path" else value))
        if option in ("--config", "-c") and own is not None and _same_file(value, own):
            # The user has said that he trusts it; the data are the checkpoint's all the same.
            mine.append(("--config", json.dumps({"data": data})))
    clash = sorted({option for option, _ in mine if option.split(".")[0] == "--model"})
    if clash:
        raise UserError(
            f"{', '.join(clash)}: the network comes from {path}. To train another one from its weights, use "
            "--init_weights instead of --ckpt_path."
        )
    after = [("--model", json.dumps(model))]
    if command == "fit":
        print(f"Continuing {path} exactly where it stopped.")
    return join_options([*before, *mine, *after]), record, run


def _runs_folder(pairs: Iterable[tuple[str, str | None]]) -> Path:
    """Where the user has his runs, by an option or a config of his, whichever comes last."""
    folder = None
    for option, value in pairs:
        if option == "--trainer.default_root_dir":
            folder = None if is_null(value) else value
        elif option in ("--config", "-c") and value and not value.lstrip().startswith("{"):
            trainer = read_config(Path(value)).get("trainer")
            if isinstance(trainer, dict) and isinstance(trainer.get("default_root_dir"), str):
                folder = trainer["default_root_dir"]
    return Path(expanded(folder or RUNS))


def import_own_network(record: Mapping[str, Any], words: Collection[str]) -> None:
    """Imports the class of a checkpoint's network where it is one of the user's own, and he names it.

    Args:
        record: the checkpoint's.
        words: what the user names himself in this command; see :func:`~hps_lightning.cli.run_config.own_words`.

    Raises:
        UserError: it cannot be imported.
    """
    model = record.get("model")
    name = model.get("class_path") if isinstance(model, Mapping) else None
    if not isinstance(name, str) or "." not in name or name not in words:
        return
    module = name.rpartition(".")[0]
    try:
        importlib.import_module(module)
    except Exception as error:  # The user's code may raise anything.
        raise UserError(
            f"{name} cannot be imported: {type(error).__name__}: {error}. (`hps` does not import from the working "
            "directory; `python -m hps_lightning` does.)"
        ) from error


def reachable_root(record: Mapping[str, Any]) -> str | None:
    """The folder of the data set that a checkpoint's training was given, if it is there."""
    data = record.get("data")
    # Whoever made the checkpoint may have put anything there.
    root = data.get("root") if isinstance(data, Mapping) else None
    # Not by pathlib, which raises where a folder on the way is another user's.
    return root if isinstance(root, str) and os.path.exists(root) else None


def _config_of(checkpoint: Path, run: Run | None) -> Path | None:
    """The configuration that a run holds beside its checkpoints, whatever its folder is called by now."""
    folder = checkpoint.absolute().parent
    path = (folder.parent if run is None else run.directory) / "config.yaml"
    return path if folder.name == "checkpoints" and path.is_file() else None


def _same_file(name: str | None, path: Path) -> bool:
    return name is not None and Path(name).is_file() and path.is_file() and Path(name).samefile(path)


def _network_arguments(record: dict[str, Any]) -> dict[str, Any]:
    # These three are set by --data, --optimizer and --lr_scheduler, and linked to the module.
    linked = ("num_classes", "optimizer", "lr_scheduler")
    return {key: value for key, value in record["model"]["init_args"].items() if key not in linked}


def load_initial_weights(model: ImageClassifier, path: str) -> None:
    """Loads a checkpoint's weights into a network that is to be trained anew.

    Layers whose shapes differ keep their fresh weights, as the classifier does when the
    number of classes changes.

    Raises:
        UserError: the checkpoint cannot be read, or no layer of it fits.
    """
    given = read_checkpoint(path)["state_dict"]
    own = model.state_dict()
    fitting = {key: value for key, value in given.items() if key in own and own[key].shape == value.shape}
    weights = [key for key, _ in model.network.named_parameters(prefix="network")]
    taken = sum(key in fitting for key in weights)
    if not taken:
        raise UserError(f"{path}: no layer fits the network {type(model).__name__}; its weights cannot start it.")
    model.load_state_dict(fitting, strict=False)
    print(f"Starting from {path}: {taken} of {len(weights)} parameter tensors taken over.")
