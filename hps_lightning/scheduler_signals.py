"""By which signals a scheduler ends a job."""

import os
import signal


def schedulers_signals() -> list[int]:
    """SIGTERM; under SLURM also SIGUSR1, which ``#SBATCH --signal=USR1@90`` sends before the time is up."""
    asked = "SLURM_JOB_ID" in os.environ and hasattr(signal, "SIGUSR1")
    return [signal.SIGTERM, *([signal.SIGUSR1] if asked else [])]
