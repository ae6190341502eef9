"""How the quick commands read their options."""

import argparse
from typing import NoReturn

from hps_lightning.errors import UserError


class OneLineParser(argparse.ArgumentParser):
    """argparse's parser, whose mistakes are told in one line, as those of `hps fit` are."""

    def error(self, message: str) -> NoReturn:
        """Says what is wrong.

        Raises:
            UserError: always.
        """
        raise UserError(f"{message} ({self.prog} --help explains the options)")
