import signal

from hps_lightning.scheduler_signals import schedulers_signals


def test_only_under_slurm_is_sigusr1_a_schedulers(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert schedulers_signals() == [signal.SIGTERM]
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert schedulers_signals() == [signal.SIGTERM, signal.SIGUSR1]
