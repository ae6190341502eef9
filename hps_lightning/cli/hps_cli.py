"""Lightning's CLI with the project's own ways: what `hps fit`, `validate`, `test` and `predict` are made of."""

import argparse
import contextlib
import importlib
import io
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from enum import Enum
from pathlib import Path
from typing import Any

import jsonargparse
from lightning.fabric.plugins import Precision
from lightning.fabric.utilities.seed import max_seed_value
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateMonitor, RichProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from hps_lightning.callbacks import CALLBACK_OPTIONS, EpochLines, Report, Resume, Summary, WeightsCheckpoint
from hps_lightning.checkpoint_io import UnwrittenCheckpointsError, safe_checkpoints, use_safe_checkpoints
from hps_lightning.cli.from_checkpoint import load_initial_weights
from hps_lightning.cli.launched import check_processes, started_here
from hps_lightning.cli.mistakes import explain, missing_value, passed_on
from hps_lightning.cli.output import steady_output
from hps_lightning.cli.preflight import (
    check_classes,
    check_kept_arguments,
    check_length,
    check_network_arguments,
    check_optimization,
    check_recipe,
    check_trainer_arguments,
)
from hps_lightning.cli.ranks import EndTogether, watch
from hps_lightning.cli.run_folder import own_run_folder
from hps_lightning.cli.saved_config import SaveFitConfig
from hps_lightning.cli.scheduler_jobs import meet_anew
from hps_lightning.data import DATASETS, ImageDataModule
from hps_lightning.errors import UserError, say_trouble
from hps_lightning.event_log import SteadyTensorBoardLogger
from hps_lightning.modules import CLASSIFIERS, ImageClassifier
from hps_lightning.optim import PAPER_OPTIMIZER, LRSchedule
from hps_lightning.precision import fast_precision
from hps_lightning.runs import RUNS, Run, expanded, run_name

# What jsonargparse lets through of what its own parts raise on values that they do not expect.
_PARSER_ERRORS = (
    jsonargparse.ArgumentError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ImportError,
    OverflowError,
    RecursionError,
)

_TENSORBOARD = "lightning.pytorch.loggers.TensorBoardLogger"


class _Parser(LightningArgumentParser):
    """Takes the arguments of classes as they are.

    Otherwise each text for an argument is looked up as a file first, in the working directory:
    with a file `auto` in a folder that a stranger has sent, `--trainer.strategy auto` would be what it says.
    """

    def add_class_arguments(self, *args: Any, **kwargs: Any) -> list[str]:
        """As jsonargparse has it."""
        return super().add_class_arguments(*args, **{**kwargs, "sub_configs": False})


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
        self._typed_subcommand = args[0]
        self.record = record
        self.run_folder = run
        self.further_callbacks = callbacks
        super().__init__(
            model_class=ImageClassifier,
            datamodule_class=ImageDataModule,
            subclass_mode_model=True,
            save_config_callback=SaveFitConfig,
            # Lightning's own way would leave half a file on a full disk.
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults={"enable_model_summary": False, "log_every_n_steps": 10},
            seed_everything_default=0,
            parser_kwargs={"exit_on_error": False, **{name: _parser_settings(name) for name in self.subcommands()}},
            parser_class=_Parser,
            auto_configure_optimizers=False,
            # Modules save their own arguments, as plain values.
            load_from_checkpoint_support=False,
            args=args,
        )

    def subcommands(self) -> dict[str, set[str]]:
        """The one that is to run, as Lightning has it; the parsers of the others would be built for nothing."""
        return {self._typed_subcommand: LightningCLI.subcommands()[self._typed_subcommand]}

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
        for name, callback in CALLBACK_OPTIONS.items():
            parser.add_lightning_class_args(callback, name)
        parser.add_argument(
            "--init_weights",
            type=str | None,
            default=None,
            help="Checkpoint whose weights a new training starts from; --ckpt_path continues an old one instead.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses; a mistake is raised instead of ending the process."""
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                self.config = parser.parse_args(args)
            sys.stderr.write(said.getvalue())
        except SystemExit as ended:
            if not ended.code:
                raise
            # The parser of a class's help, which ends the process by itself.
            raise UserError(passed_on(said.getvalue().strip().rpartition("\n")[2])) from ended
        except _PARSER_ERRORS as error:
            raise UserError(explain(str(error), self._options(args[0]))) from error
        _name_enums(self.config[args[0]].trainer)
        missing = missing_value(self.config[args[0]], self._subcommand_parsers[args[0]]._actions)
        if missing:
            raise UserError(missing)
        seed = self.config[args[0]].seed_everything
        if type(seed) is int and not 0 <= seed <= max_seed_value:
            raise UserError(f"seed_everything must lie between 0 and {max_seed_value}, got {seed}.")

    def _options(self, command: str) -> set[str]:
        """Names of a command's options, without dashes."""
        actions = self._subcommand_parsers[command]._actions
        names = {action.dest for action in actions if action.option_strings and action.dest != argparse.SUPPRESS}
        return {name for name in names if not name.endswith(".help")}

    def _parse_ckpt_path(self) -> None:
        # Lightning would put a checkpoint's hyper-parameters over what the user typed, without
        # a word. Ours are in the arguments already: see `with_checkpoint`.
        pass

    def instantiate_classes(self) -> None:
        """Builds everything; a user's mistake keeps its own words, which jsonargparse would wrap."""
        mistakes: list[UserError] = []

        def build(class_type: type, *args: Any, **kwargs: Any) -> Any:
            if class_type is TensorBoardLogger and "://" not in str(kwargs.get("save_dir")):
                class_type = SteadyTensorBoardLogger
            try:
                return class_type(*args, **kwargs)
            except UserError as error:
                mistakes.append(error)
                raise

        self.parser.add_instantiator(build, object, subclasses=True)
        try:
            super().instantiate_classes()
        except (*_PARSER_ERRORS, RuntimeError, OSError, AssertionError, MisconfigurationException, UserError) as error:
            if mistakes:
                raise mistakes[0] from None
            raise UserError(explain(str(error), self._options(self.subcommand))) from error
        use_safe_checkpoints(self.trainer)
        environment = self.trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and not self._has_plugin(SLURMEnvironment):
            # It would save amid a step, into the working directory, where every later training would go on from it.
            # Who names the environment himself asks for that.
            environment.auto_requeue = False

    def before_instantiate_classes(self) -> None:
        """Decides what depends on the whole config: precision, logger, callbacks."""
        config = self.config[self.subcommand]
        trainer = config.trainer
        check_trainer_arguments(trainer)
        check_network_arguments(config.model)
        if config.data.images is not None and self.subcommand != "predict":
            raise UserError(f"--images: `hps {self.subcommand}` takes none; `hps predict` classifies them.")
        if self.record is not None:
            check_classes(self.record, config.data.dataset)
        # Lightning takes no second word beside a plugin's.
        if trainer.precision is None and not self._has_plugin(Precision):
            trainer.precision = fast_precision(trainer.accelerator)
        if isinstance(trainer.default_root_dir, str):
            trainer.default_root_dir = expanded(trainer.default_root_dir)
        self.save_config_kwargs["chose_logger"] = trainer.logger not in (None, True)
        trainer.logger = self._logger(config)
        callbacks: list[Any] = [*self.further_callbacks, EndTogether(), Resume(), Summary()]
        callbacks += [WeightsCheckpoint(), Report()]
        if trainer.logger:
            callbacks.append(LearningRateMonitor(logging_interval="step"))
        if trainer.enable_progress_bar is not False:
            callbacks.append(RichProgressBar() if sys.stdout.isatty() else EpochLines())
        self.trainer_defaults["callbacks"] = callbacks
        here = started_here() if self.subcommand == "fit" else 1
        if trainer.devices == "auto" and (here is not None or trainer.num_nodes == 1):
            # All GPUs of a host would train another recipe, each with batch norms of its share alone; evaluation on
            # several would count some images twice.
            trainer.devices = here or 1
        if self.subcommand != "fit":
            # A teacher, for one, has nothing to do here; a training that goes on without it had better hear of it.
            warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint need to be provided.*")
        if "weights_only" in config:
            if config.weights_only is False:
                raise UserError(
                    "--weights_only false: checkpoints are read without executing what they hold, always. Leave it out."
                )
            config.weights_only = True
        if self.subcommand == "predict":
            # The callback collects them; Lightning would keep them all once more.
            config.return_predictions = False
        if self.subcommand in ("validate", "test"):
            # Lightning's own table of the metrics says the same as our report.
            config.verbose = False

    def _has_plugin(self, kind: type) -> bool:
        """Whether the user names a plugin of a kind for the trainer."""
        given = self._get(self.config, "trainer.plugins")
        plugins = given if isinstance(given, list) else [given]
        named = [each.class_path.rpartition(".") for each in plugins if isinstance(each, jsonargparse.Namespace)]
        return any(issubclass(getattr(importlib.import_module(module), name), kind) for module, _, name in named)

    def _logger(self, config: jsonargparse.Namespace) -> Any:
        given = config.trainer.logger
        if given is False or self.subcommand == "predict":
            return False
        if given is None or given is True:
            given = jsonargparse.Namespace(class_path=_TENSORBOARD, init_args=jsonargparse.Namespace())
            given.init_args.save_dir, given.init_args.name = _place_of_runs(config)
        if _is_tensorboards(given):
            # Lightning would log hyper-parameters without metrics; the dashboard logs them with.
            given.init_args.default_hp_metric = False
            given.init_args.save_dir = expanded(str(given.init_args.save_dir))
            if self.run_folder is not None:
                given.init_args.save_dir = str(self.run_folder.save_dir)
                given.init_args.name = self.run_folder.name
                given.init_args.version = self.run_folder.version
                given.init_args.sub_dir = None if self.subcommand == "fit" else self.subcommand
        return given

    def _own_place(self) -> TensorBoardLogger:
        """What numbers the training's folder where its own logger does not; it logs nothing."""
        if self.run_folder is not None:
            return TensorBoardLogger(self.run_folder.save_dir, self.run_folder.name, self.run_folder.version)
        return TensorBoardLogger(*_place_of_runs(self.config[self.subcommand]))

    def before_fit(self) -> None:
        """Makes sure that there is room for a run, and starts from given weights where the user asks for it."""
        given = self._get(self.config, "ckpt_path")
        if given is not None and self.record is None:
            raise UserError(
                f"ckpt_path: {given} stands in a config, which cannot say what else the training that goes on consists "
                f"of; leave it out there, and give it as an option: --ckpt_path {given}."
            )
        stray = self.trainer._checkpoint_connector._hpc_resume_path if SLURMEnvironment.detect() else None
        if given is None and stray is not None and not self._has_plugin(SLURMEnvironment):
            raise UserError(
                f"{stray} lies where Lightning looks under SLURM, and it would go on from that whatever was asked for. "
                "Move it away, or have another folder for all runs: --trainer.default_root_dir DIRECTORY."
            )
        watch(self.trainer, meet_anew())
        if self.record is not None:
            check_optimization(self.record, self.model)
        check_kept_arguments(self.model, self._get(self.config, "model").init_args)
        check_recipe(self.trainer, self.model, self.datamodule, self._get(self.config, "trainer.sync_batchnorm"))
        self._held.enter_context(own_run_folder(self.trainer, self._own_place()))
        path = self._get(self.config, "init_weights")
        if self.record is not None:
            check_length(self.record, self.model, self.trainer.max_epochs)
        # A training that goes on has left behind what it began from; its config remembers it.
        if path is not None and not self._get(self.config, "ckpt_path"):
            load_initial_weights(self.model, path)

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs it; a training whose checkpoints could not be written says last where they are."""
        check_processes(self.trainer, subcommand)
        checkpoints = safe_checkpoints(self.trainer)
        # What a training has for itself while it runs.
        self._held = contextlib.ExitStack()
        try:
            # What other commands print is what they are for.
            with steady_output() if subcommand == "fit" else nullcontext(), self._held:
                super()._run_subcommand(subcommand)
        except BaseException:
            if checkpoints is not None and (complaint := checkpoints.complaint()):
                say_trouble(complaint)
            raise
        if checkpoints is not None and (complaint := checkpoints.complaint()):
            raise UnwrittenCheckpointsError(complaint)

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

    def runs_folder(self) -> Path:
        """The folder of all runs of the network."""
        loggers = self.config.fit.trainer.logger
        first = loggers[0] if isinstance(loggers, list) and loggers else loggers
        if isinstance(first, jsonargparse.Namespace) and first.class_path.endswith(("TensorBoardLogger", "CSVLogger")):
            return Path(first.init_args.save_dir, first.init_args.name or "")
        return Path(*_place_of_runs(self.config.fit))

    def logs_to_tensorboard(self) -> bool:
        """Whether TensorBoard's logger is the one of the training."""
        return _is_tensorboards(self.config.fit.trainer.logger)

    def dump(self) -> str:
        """The whole config, as a training saves it."""
        return self._parser("fit").dump(self.config.fit, skip_none=False)


def _place_of_runs(config: jsonargparse.Namespace) -> tuple[str, str]:
    """The folder of all runs, and the name of the network's in it; a logger of the user's may have another place."""
    name = config.model.class_path.rsplit(".", 1)[-1]
    family = next((key for key, value in CLASSIFIERS.items() if value.__name__ == name), None)
    own = run_name(name, family, config.model.init_args.as_dict(), config.data.dataset)
    return config.trainer.default_root_dir or RUNS, own


def _is_tensorboards(logger: Any) -> bool:
    return isinstance(logger, jsonargparse.Namespace) and logger.class_path.endswith("TensorBoardLogger")


def _parser_settings(command: str) -> dict[str, Any]:
    # A shortened option would not have its names resolved, and a mistyped one may be one.
    settings: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}
    if command == "fit":
        # No argument of one training, so that no config can hold it: see `cli.seeds`.
        settings["epilog"] = (
            "--seeds 3 trains with the seeds 0, 1 and 2, one after the other, --seeds 0,5,7 with those; each run is "
            "kept, and mean and spread are printed. Interrupted, the same command goes on where it stopped."
        )
    return settings


def _name_enums(value: Any) -> Any:
    """``value`` with the texts that members of enumerations stand for, which a config can hold."""
    if isinstance(value, jsonargparse.Namespace):
        for key, item in vars(value).items():
            setattr(value, key, _name_enums(item))
    elif isinstance(value, list):
        return [_name_enums(item) for item in value]
    # As Timer's default for its interval.
    return value.value if isinstance(value, str) and isinstance(value, Enum) else value


def _as_dict(spec: jsonargparse.Namespace | None) -> dict[str, Any] | None:
    return None if spec is None else spec.as_dict()
