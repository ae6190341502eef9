import json
import math
import shutil

import pytest

from hps_lightning.errors import UserError
from hps_lightning.seed_group import SeedGroup, finite, summarise

CONFIG = "seed_everything: 0\nmodel: {width: 0.5}\n"


@pytest.fixture
def group(tmp_path):
    return SeedGroup.create(tmp_path / "runs" / "net", ["--seeds", "3"], [0, 1, 2], CONFIG)


def test_mean_spread_and_extremes():
    figures = [{"val/accuracy": value, "only here": 1.0} for value in (0.1, 0.2, 0.6)]
    del figures[1]["only here"]
    summary = summarise(figures)
    assert list(summary) == ["val/accuracy"]
    row = summary["val/accuracy"]
    assert row["mean"] == pytest.approx(0.3)
    # The squares of -0.2, -0.1 and 0.3, over n - 1.
    assert row["std"] == pytest.approx(math.sqrt(0.14 / 2))
    assert (row["min"], row["max"], row["values"]) == (0.1, 0.6, [0.1, 0.2, 0.6])


def test_one_value_has_no_spread():
    assert summarise([{"loss": 2.0}]) == {"loss": {"mean": 2.0, "std": None, "min": 2.0, "max": 2.0, "values": [2.0]}}


def test_a_value_that_is_no_number_is_not_left_out_of_the_mean():
    row = summarise([{"loss": 2.0}, {"loss": None}])["loss"]
    assert row == {"mean": None, "std": None, "min": None, "max": None, "values": [2.0, None]}


def test_a_diverged_training_can_be_saved(group):
    group.figures = {0: finite({"loss": math.nan, "other": math.inf, "accuracy": 0.1, "none": None})}
    group.save()
    assert SeedGroup.load(group.directory).figures == {0: {"loss": None, "other": None, "accuracy": 0.1, "none": None}}


def test_what_is_saved_is_what_is_loaded(group):
    group.figures = {1: {"loss": 0.5}, 0: {"loss": None}}
    group.test = {"arguments": [], "figures": {"0": {"test/loss": 1.0}}, "summary": {}}
    group.save()
    assert SeedGroup.load(group.directory) == group
    assert group.unfinished == [2]
    content = json.loads((group.directory / "seeds.json").read_text())
    assert content["arguments"] == ["--seeds", "3"]
    assert content["summary"] is None, "there is none before all are finished"
    group.figures[2] = {"loss": 1.5}
    group.save()
    assert SeedGroup.load(group.directory).summary()["loss"]["values"] == [None, 0.5, 1.5]


def test_each_new_group_has_the_next_number(group, tmp_path):
    folder = tmp_path / "runs" / "net"
    (folder / "seeds_9").mkdir()
    (folder / "seeds_old").mkdir()
    assert SeedGroup.create(folder, [], [0], CONFIG).directory == folder / "seeds_10"


def test_what_the_same_command_meant_when_it_began_a_group_is_found(group, tmp_path):
    folder = tmp_path / "runs" / "net"
    changed = CONFIG.replace("0.5", "0.6") + "precision: 32-true\n"
    found, differences = SeedGroup.find_changed(folder, ["--seeds", "3"], changed)
    assert found == group
    assert differences == ["model.width was 0.5, is 0.6", "precision is new"]
    assert SeedGroup.find_changed(folder, ["--seeds", "2"], changed) is None
    group.figures = {seed: {"loss": 1.0} for seed in group.seeds}
    group.save()
    assert SeedGroup.find_changed(folder, ["--seeds", "3"], changed) is None, "it is finished"


def test_the_newest_unfinished_group_of_the_same_seeds_and_config_is_found(group, tmp_path):
    folder = tmp_path / "runs" / "net"

    def find(seeds=(0, 1, 2), config=CONFIG):
        found = SeedGroup.find_unfinished(folder, list(seeds), config)
        return found and found.directory.name

    assert find() == "seeds_0"
    assert find(config="model: {width: 0.50}\nseed_everything: 0") == "seeds_0", "not the text counts"
    assert find(config=CONFIG.replace("0.5", "0.6")) is None
    assert find(seeds=(0, 1)) is None
    assert find(seeds=(2, 1, 0)) is None
    later = SeedGroup.create(folder, [], [0, 1, 2], CONFIG)
    assert find() == "seeds_1"
    later.figures = {seed: {"loss": 1.0} for seed in later.seeds}
    later.save()
    assert find() == "seeds_0", "what is finished is left alone"
    (group.directory / "seeds.json").write_text("{")
    assert find() is None
    assert SeedGroup.find_unfinished(tmp_path / "nowhere", [0], CONFIG) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1}'])
def test_a_damaged_file_is_one_clear_error(group, content):
    (group.directory / "seeds.json").write_text(content)
    with pytest.raises(UserError, match=r"seeds\.json is damaged"):
        SeedGroup.load(group.directory)


def test_a_file_of_another_format_is_not_read_as_one_of_ours(group):
    path = group.directory / "seeds.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(UserError, match=r"seeds\.json has format 2; this version reads 1"):
        SeedGroup.load(group.directory)


def test_a_file_that_cannot_be_written_leaves_the_one_before(group, monkeypatch):
    before = (group.directory / "seeds.json").read_text()
    group.figures = {0: {"loss": 1.0}}
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(UserError, match="disk full"):
        group.save()
    assert (group.directory / "seeds.json").read_text() == before
    assert sorted(path.name for path in group.directory.iterdir()) == ["config.yaml", "seeds.json"]


def test_no_two_processes_train_the_same_group(group):
    pytest.importorskip("fcntl")
    other = SeedGroup.load(group.directory)
    with group.locked():
        group.figures = {0: {"loss": 1.0}}
        group.save()
        with pytest.raises(UserError, match="another process"), other.locked():
            pass
    with other.locked():
        assert other.figures == {0: {"loss": 1.0}}, "what was written before the lock was free counts"


def test_an_empty_group_is_removed_with_the_folders_that_were_made_for_it(group, tmp_path):
    with group.locked():
        assert group.discard_if_empty()
    assert not list(tmp_path.iterdir())


def test_commands_that_begin_at_once_make_a_group_each(tmp_path, monkeypatch):
    folder = tmp_path / "runs" / "net"
    SeedGroup.create(folder, [], [0], CONFIG)
    # It has looked before the other made its folder.
    monkeypatch.setattr("hps_lightning.seed_group._directories", lambda folder: [])
    assert SeedGroup.create(folder, [], [0], CONFIG).directory == folder / "seeds_1"


def test_a_group_that_cannot_be_locked_is_one_error(group):
    shutil.rmtree(group.directory)
    with pytest.raises(UserError, match="seeds_0 cannot be written: No such file"), group.locked():
        pass


def test_nothing_else_is_removed(tmp_path):
    (tmp_path / "runs").mkdir()
    empty = SeedGroup.create(tmp_path / "runs" / "net", [], [0], CONFIG)
    assert empty.discard_if_empty()
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs"]
    used = SeedGroup.create(tmp_path / "runs" / "net", [], [0], CONFIG)
    used.run_directory(0).mkdir()
    assert not used.discard_if_empty()
    assert not SeedGroup.load(used.directory).discard_if_empty(), "another process made it"
    assert (used.directory / "seeds.json").is_file()
