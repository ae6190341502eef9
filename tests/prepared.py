"""`hps fit` up to where the training would begin, in a fraction of a second."""

import functools

import pytest

from hps_lightning.cli.hps_cli import HPSCLI
from hps_lightning.cli.lightning import run_cli
from hps_lightning.cli.preflight import check_recipe


class Prepared(HPSCLI):
    """All of `hps fit` up to where the training would begin, with one parser for all cases."""

    @classmethod
    @functools.cache
    def made(cls):
        made = {}

        class First(HPSCLI):
            def parse_arguments(self, parser, args):
                made.update(
                    parser=parser,
                    _subcommand_parsers=self._subcommand_parsers,
                    _subcommand_method_arguments=self._subcommand_method_arguments,
                )
                raise StopIteration

        with pytest.raises(StopIteration):
            First(["fit"], None, None)
        return made

    def setup_parser(self, *args, **kwargs):
        vars(self).update(self.made())

    def _set_seed(self):
        pass

    def _run_subcommand(self, subcommand):
        check_recipe(self.trainer, self.model, self.datamodule, self._get(self.config, "trainer.sync_batchnorm"))


def prepare(argv):
    try:
        return run_cli("fit", argv, Prepared)
    except SystemExit as ended:
        # --help and --print_config
        if ended.code:
            raise AssertionError from ended
        return None
