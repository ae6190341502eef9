import pytest

from hps_lightning import installed


@pytest.mark.parametrize(
    ("folder", "holds"),
    [(installed.configs_folder, "hps.yaml"), (installed.published_folder, "hps_06_05x-cifar10.ckpt")],
)
def test_the_folders_are_found_whether_the_package_is_installed_or_on_the_path(monkeypatch, folder, holds):
    assert (folder() / holds).is_file()

    def not_installed(package):
        raise ModuleNotFoundError(package)

    monkeypatch.setattr(installed.resources, "files", not_installed)
    assert (folder() / holds).is_file()
