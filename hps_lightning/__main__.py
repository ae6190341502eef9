"""`python -m hps_lightning` is `hps`."""

import sys

from hps_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
