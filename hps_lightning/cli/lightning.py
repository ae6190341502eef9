"""`hps fit`, `validate`, `test` and `predict`: Lightning's CLI with the project's own ways."""

import json
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, RichProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from hps_lightning.callbacks import (
    Benchmark,
    BestCheckpoint,
    Dashboard,
    EpochLines,
    Export,
    LastCheckpoint,
    Predictions,
    Report,
    Summary,
    WeightsCheckpoint,
)
from hps_lightning.checkpoint import classifier_class, read_checkpoint
from hps_lightning.cli.arguments import expand, find_config, join_options, option_values
from hps_lightning.cli.precision import fast_precision
from hps_lightning.cli.runs import RUNS, Run, resolve_checkpoint, run_name, run_of
from hps_lightning.data import DATASETS, ImageDataModule
from hps_lightning.errors import UserError
from hps_lightning.modules import CLASSIFIERS, RECORD_KEY, ImageClassifier
from hps_lightning.optim import PAPER_OPTIMIZER, LRSchedule, spans_training

_TENSORBOARD = "lightning.pytorch.loggers.TensorBoardLogger"


class SaveFitConfig(SaveConfigCallback):
    """Saves the whole config of a training beside its checkpoints."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leaves out what is no training: its config would replace the training's."""
        if stage == "fit" and trainer.log_dir is not None:
            # Whoever repeats the training wants another one, in a folder of its own.
            self.config = self.config.clone()
            self.config.ckpt_path = None
            logger = self.config.trainer.logger
            if isinstance(logger, jsonargparse.Namespace) and "version" in logger.init_args:
                logger.init_args.version = None
            super().setup(trainer, pl_module, stage)


class HPSCLI(LightningCLI):
    """Lightning's CLI over the project's modules and data.

    Args:
        args: the subcommand and its arguments, all names resolved (see ``cli.arguments``).
        record: our record in the checkpoint that ``--ckpt_path`` names, if it names one.
        run: the run that this checkpoint lies in, if it lies in one.
        callbacks: further ones, which are no part of the run's config.
    """

    def __init__(
        self, args: list[str], record: dict[str, Any] | None, run: Run | None, callbacks: Sequence[Callback] = ()
    ) -> None:
        self.record = record
        self.run_folder = run
        self.further_callbacks = callbacks
        super().__init__(
            model_class=ImageClassifier,
            datamodule_class=ImageDataModule,
            subclass_mode_model=True,
            save_config_callback=SaveFitConfig,
            # A resumed training goes on in its own folder.
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"enable_model_summary": False, "log_every_n_steps": 10},
            seed_everything_default=0,
            parser_kwargs={"exit_on_error": False, **{name: _parser_settings(name) for name in self.subcommands()}},
            auto_configure_optimizers=False,
            # Modules save their own arguments, as plain values.
            load_from_checkpoint_support=False,
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds what Lightning's CLI lacks: optimizer, schedule, callbacks, warm start."""
        parser.add_optimizer_args(nested_key="optimizer")
        parser.set_defaults({"optimizer": PAPER_OPTIMIZER})
        parser.link_arguments("optimizer", "model.init_args.optimizer", compute_fn=_as_dict)
        parser.add_subclass_arguments(
            LRSchedule,
            "lr_scheduler",
            instantiate=False,
            help="Learning rate schedule; lengths are in epochs. Without one the rate stays constant.",
        )
        parser.link_arguments("lr_scheduler", "model.init_args.lr_scheduler", compute_fn=_as_dict)
        parser.link_arguments(
            "data.dataset", "model.init_args.num_classes", compute_fn=lambda name: len(DATASETS[name].classes)
        )
        parser.add_lightning_class_args(BestCheckpoint, "best_checkpoint")
        parser.add_lightning_class_args(LastCheckpoint, "last_checkpoint")
        parser.add_lightning_class_args(Benchmark, "benchmark")
        parser.add_lightning_class_args(Export, "export")
        parser.add_lightning_class_args(Predictions, "predictions")
        parser.add_argument(
            "--init_weights",
            type=str | None,
            default=None,
            help="Checkpoint whose weights a new training starts from; --ckpt_path continues an old one instead.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses; a mistake is raised instead of ending the process."""
        try:
            self.config = parser.parse_args(args)
        except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
            raise UserError(_first_sentences(str(error))) from error

    def _parse_ckpt_path(self) -> None:
        # Lightning would put a checkpoint's hyper-parameters over what the user typed, without
        # a word. Ours are in the arguments already: see `restore`.
        pass

    def instantiate_classes(self) -> None:
        """Builds everything; a user's mistake keeps its own words, which jsonargparse would wrap."""
        mistakes: list[UserError] = []

        def build(class_type: type, *args: Any, **kwargs: Any) -> Any:
            try:
                return class_type(*args, **kwargs)
            except UserError as error:
                mistakes.append(error)
                raise

        self.parser.add_instantiator(build, object, subclasses=True)
        try:
            super().instantiate_classes()
        except (TypeError, ValueError, UserError) as error:
            if mistakes:
                raise mistakes[0] from None
            raise UserError(_first_sentences(str(error))) from error

    def before_instantiate_classes(self) -> None:
        """Decides what depends on the whole config: precision, logger, callbacks."""
        config = self.config[self.subcommand]
        trainer = config.trainer
        if trainer.precision is None:
            trainer.precision = fast_precision(trainer.accelerator)
        trainer.logger = self._logger(config)
        callbacks: list[Any] = [*self.further_callbacks, Summary(), Dashboard(), WeightsCheckpoint(), Report()]
        if trainer.logger:
            callbacks.append(LearningRateMonitor(logging_interval="step"))
        if trainer.enable_progress_bar is not False:
            callbacks.append(RichProgressBar() if sys.stdout.isatty() else EpochLines())
        self.trainer_defaults["callbacks"] = callbacks
        if self.subcommand != "fit" and trainer.devices == "auto":
            # Several devices would share batches out evenly, and count some images twice.
            trainer.devices = 1
        if self.subcommand == "predict":
            # The callback collects them; Lightning would keep them all once more.
            config.return_predictions = False
        if self.subcommand in ("validate", "test"):
            # Lightning's own table of the metrics says the same as our report.
            config.verbose = False

    def _logger(self, config: jsonargparse.Namespace) -> Any:
        given = config.trainer.logger
        if given is False or self.subcommand == "predict":
            return False
        if given is None or given is True:
            given = jsonargparse.Namespace(class_path=_TENSORBOARD, init_args=jsonargparse.Namespace())
            name = config.model.class_path.rsplit(".", 1)[-1]
            family = next((key for key, value in CLASSIFIERS.items() if value.__name__ == name), None)
            given.init_args.save_dir = config.trainer.default_root_dir or RUNS
            given.init_args.name = run_name(name, family, config.model.init_args.as_dict(), config.data.dataset)
        if isinstance(given, jsonargparse.Namespace) and given.class_path.endswith("TensorBoardLogger"):
            # Lightning would log hyper-parameters without metrics; the dashboard logs them with.
            given.init_args.default_hp_metric = False
            if self.run_folder is not None:
                given.init_args.save_dir = str(self.run_folder.save_dir)
                given.init_args.name = self.run_folder.name
                given.init_args.version = self.run_folder.version
                given.init_args.sub_dir = None if self.subcommand == "fit" else self.subcommand
        return given

    def before_fit(self) -> None:
        """Starts from given weights where the user asks for it."""
        path = self._get(self.config, "init_weights")
        if self.record is not None:
            check_length(self.record, self.model, self.trainer.max_epochs)
        if path is None:
            return
        if self._get(self.config, "ckpt_path"):
            raise UserError(
                "--init_weights starts a new training and --ckpt_path continues an old one; give one of them."
            )
        start_from(self.model, path)

    def before_test(self) -> None:
        """Tells the report what the checkpoint says of itself."""
        self.model.checkpoint_record = self.record

    before_validate = before_test


class TrainingPlan(HPSCLI):
    """What `hps fit` would train: everything is decided, and nothing is built or run."""

    def _set_seed(self) -> None:
        # Nothing is drawn.
        pass

    def instantiate_classes(self) -> None:
        """Builds nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass

    def dump(self) -> str:
        """The whole config, as a training saves it."""
        return self._parser("fit").dump(self.config.fit, skip_none=False)


def _parser_settings(command: str) -> dict[str, Any]:
    settings: dict[str, Any] = {"exit_on_error": False}
    if command == "fit":
        # No argument of one training, so that no config can hold it: see `cli.seeds`.
        settings["epilog"] = (
            "--seeds 3 trains with the seeds 0, 1 and 2, one after the other, --seeds 0,5,7 with those; each run is "
            "kept, and mean and spread are printed. Interrupted, the same command goes on where it stopped."
        )
    return settings


def _as_dict(spec: jsonargparse.Namespace | None) -> dict[str, Any] | None:
    return None if spec is None else spec.as_dict()


def check_length(record: dict[str, Any], model: ImageClassifier, max_epochs: int) -> None:
    """Refuses to continue a training over another length than its schedule was laid out for.

    Args:
        record: that of the checkpoint.
        model: the module that goes on.
        max_epochs: as the user now has it.

    Raises:
        UserError: the schedule spans the whole training, and the lengths differ.
    """
    planned = record.get("max_epochs")
    spec = model.lr_scheduler_spec
    if planned == max_epochs or not spec or not spans_training(spec):
        return
    raise UserError(
        f"The training was laid out for {planned} epochs and its {spec['class_path'].rsplit('.', 1)[-1]} ends there, "
        f"so that it cannot go on to {max_epochs}. Start another from its weights: --init_weights instead of "
        "--ckpt_path."
    )


def start_from(model: ImageClassifier, path: str) -> None:
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


def _first_sentences(message: str) -> str:
    # jsonargparse adds the values of the whole config to some messages.
    lines = [line for line in message.strip().splitlines() if line.strip()]
    return "\n".join(lines[:12])


def _plain(name: str, value: Any) -> list[tuple[str, str]]:
    return [(name, json.dumps(value))]


def restore(command: str, tokens: list[str]) -> tuple[list[str], dict[str, Any] | None, Run | None]:
    """Lets a checkpoint say what network and data it is for.

    Data arguments come from the checkpoint unless the user gives others; the network always
    does. A training that is resumed takes the rest from its own ``config.yaml``.

    Args:
        command: "fit", "validate", "test" or "predict".
        tokens: the user's arguments after it, names resolved.

    Returns:
        The arguments to parse, the checkpoint's record (None without one), and its run.

    Raises:
        UserError: the command needs a checkpoint and there is none, or it cannot be read.
    """
    pairs = list(option_values(tokens))
    options = dict(pairs)
    asked = options.get("--ckpt_path")
    helping = any(option in ("-h", "--help", "--print_config") or option.endswith(".help") for option in options)
    if asked is None or asked in ("null", "None"):
        if command != "fit" and not helping:
            raise UserError(
                f"`hps {command}` needs a trained network: --ckpt_path FILE, or --ckpt_path best for that of "
                "the newest run."
            )
        if command == "fit" and not helping and not {"--config", "-c", "--model"} & set(options):
            raise UserError(
                "`hps fit` needs a network: --config hps.yaml, or --model NAME with a name that `hps models` lists."
            )
        if command == "fit" and not {"--config", "-c"} & set(options):
            # A network without a recipe is trained by the paper's.
            tokens = [f"--config={find_config('hps.yaml')}", *tokens]
        return tokens, None, None
    path = resolve_checkpoint(asked, Path(options.get("--trainer.default_root_dir") or RUNS))
    checkpoint = read_checkpoint(path)
    record = checkpoint[RECORD_KEY]
    if command == "fit" and "optimizer_states" not in checkpoint:
        raise UserError(
            f"{path} holds weights alone, so that its training cannot be continued; start a new one from them "
            f"with --init_weights {path}."
        )
    run = run_of(path)
    network = classifier_class(record)
    model = {"class_path": network.__name__, "init_args": _network_arguments(record)}
    data = dict(record.get("data") or {})
    if data.get("root") and not Path(data["root"]).exists():
        data["root"] = None
    before: list[tuple[str, str | None]] = []
    if command == "fit" and run is not None and (run.directory / "config.yaml").is_file():
        before.append(("--config", str(run.directory / "config.yaml")))
        # A training that began from given weights has left them behind.
        before.append(("--init_weights", "null"))
    before += [("--config", json.dumps({"data": data}))]
    mine = [(option, str(path) if option == "--ckpt_path" else value) for option, value in pairs]
    clash = sorted({option for option, _ in mine if option.split(".")[0].split("=")[0] == "--model"})
    if clash:
        raise UserError(
            f"{', '.join(clash)}: the network comes from {path}. To train another one from its weights, use "
            "--init_weights instead of --ckpt_path."
        )
    after = [("--model", json.dumps(model))]
    if command == "fit":
        print(f"Continuing {path} exactly where it stopped.")
    return join_options([*before, *mine, *after]), record, run


def _network_arguments(record: dict[str, Any]) -> dict[str, Any]:
    # These three are set by --data, --optimizer and --lr_scheduler, and linked to the module.
    linked = ("num_classes", "optimizer", "lr_scheduler")
    return {key: value for key, value in record["model"]["init_args"].items() if key not in linked}


def quieten() -> None:
    """Switches off what Lightning and torch say that does not hold here, or that the summary says better."""
    for message in (
        ".*does not have many workers.*",  # batches come from memory
        ".*The number of training batches .* is smaller than the logging interval.*",
        ".*isinstance.treespec, LeafSpec.*",  # torch to Lightning, not to its users
        ".*Total length of .* across ranks is zero.*",  # the protocol without validation
        ".*Checkpoint directory .* exists and is not empty.*",  # that of the training that goes on
    ):
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


def run_cli(command: str, argv: list[str], cli: Callable[..., HPSCLI] = HPSCLI) -> HPSCLI:
    """Runs a subcommand of Lightning's CLI; returns what ran it, with its trainer.

    Args:
        command: "fit", "validate", "test" or "predict".
        argv: the user's arguments after it.
        cli: what is made of them; called with arguments, record and run of an :class:`HPSCLI`.

    Raises:
        UserError: something that the user gave cannot be used.
    """
    quieten()
    tokens, record, run = restore(command, expand(argv))
    try:
        return cli([command, *tokens], record, run)
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    except torch.OutOfMemoryError as error:
        raise UserError(f"The device's memory does not suffice; choose a smaller --data.batch_size. {error}") from error


def run_lightning(command: str, argv: list[str]) -> int:
    """Runs a subcommand as :func:`run_cli` does; returns the exit status.

    Raises:
        UserError: something that the user gave cannot be used.
    """
    run_cli(command, argv)
    return 0
