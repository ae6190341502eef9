import csv
import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from torch.utils.data import Dataset

from hps_lightning.callbacks.predictions import Predictions
from hps_lightning.errors import UserError

from .helpers import LIGHTNING_WARNINGS, TinyData, quiet_trainer, random_images, tiny_classifier

pytestmark = LIGHTNING_WARNINGS

FILES = ["cat.png", 'odd, "quoted".png', "folder/[red]brackets[/red].png", "ünï.png", "e.png", "f.png", "g.png"]


class Photos(Dataset):
    """Images with paths, as ImageDataModule's Photos are."""

    def __init__(self, files):
        self.images = random_images(len(files), 10, seed=4).tensors[0]
        self.files = files

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return self.images[index], self.files[index]


def predict(folder, callback, files=FILES, **arguments):
    data = TinyData(predict_set=Photos(files) if files else None)
    trainer = quiet_trainer(folder, callbacks=[callback], logger=False, **arguments)
    model = tiny_classifier()
    trainer.predict(model, data, return_predictions=False)
    images = torch.stack([data.predict_set[index][0] for index in range(len(data.predict_set))])
    with torch.no_grad():
        return model.eval()(images).softmax(1)


class TestFormats:
    def test_csv(self, tmp_path, capsys):
        probabilities = predict(tmp_path, Predictions(top_k=2, format="csv"))
        rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
        assert rows[0] == ["file", "rank1_class", "rank1_probability", "rank2_class", "rank2_probability"]
        assert [row[0] for row in rows[1:]] == FILES
        values, indices = probabilities.topk(2)
        for row, value, index in zip(rows[1:], values.tolist(), indices.tolist(), strict=True):
            assert [row[1], row[3]] == [f"class_{position}" for position in index]
            assert [float(row[2]), float(row[4])] == pytest.approx(value, abs=1e-5)

    def test_json(self, tmp_path, capsys):
        probabilities = predict(tmp_path, Predictions(format="json"))
        content = json.loads(capsys.readouterr().out)
        assert [item["file"] for item in content] == FILES
        values, indices = probabilities.topk(3)
        for item, value, index in zip(content, values.tolist(), indices.tolist(), strict=True):
            assert [entry["index"] for entry in item["predictions"]] == index
            assert [entry["class"] for entry in item["predictions"]] == [f"class_{position}" for position in index]
            assert [entry["probability"] for entry in item["predictions"]] == pytest.approx(value, abs=1e-5)

    def test_table(self, tmp_path, capsys):
        probabilities = predict(tmp_path, Predictions())
        lines = capsys.readouterr().out.splitlines()
        values, indices = probabilities.topk(3)
        for file, value, index in zip(FILES, values.tolist(), indices.tolist(), strict=True):
            (line,) = (line for line in lines if line.strip().startswith(file))
            expected = [item for pair in zip(value, index, strict=True) for item in pair]
            words = line.replace(file, "", 1).split()
            assert words[0::2] == [f"class_{position}" for position in expected[1::2]]
            assert words[1::2] == [f"{100 * probability:.1f}" for probability in expected[0::2]]

    def test_table_in_a_pipe_keeps_long_paths_in_one_piece(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "40")
        path = "/".join(["folder"] * 40) + "/image.png"
        predict(tmp_path, Predictions(), files=[path])
        assert path in capsys.readouterr().out

    @pytest.mark.parametrize(("top_k", "count"), [(1, 1), (10, 10), (99, 10)])
    def test_top_k_ends_at_the_classes(self, tmp_path, capsys, top_k, count):
        predict(tmp_path, Predictions(top_k=top_k, format="json"))
        content = json.loads(capsys.readouterr().out)
        assert {len(item["predictions"]) for item in content} == {count}

    def test_a_test_set_has_positions(self, tmp_path, capsys):
        predict(tmp_path, Predictions(format="json"), files=None)
        content = json.loads(capsys.readouterr().out)
        assert [item["file"] for item in content] == [str(position) for position in range(12)]

    def test_a_second_prediction_starts_over(self, tmp_path, capsys):
        callback = Predictions(format="json")
        predict(tmp_path, callback)
        predict(tmp_path, callback)
        first, second = capsys.readouterr().out.split("\n]\n")[:2]
        assert len(json.loads(first + "]")) == len(json.loads(second + "]")) == len(FILES)


class TestStandardOutput:
    def test_progress_bar_stays_off_the_data_and_comes_back(self, tmp_path, capsys):
        bar = TQDMProgressBar()
        trainer = quiet_trainer(
            tmp_path, callbacks=[Predictions(format="csv"), bar], logger=False, enable_progress_bar=True
        )
        trainer.predict(tiny_classifier(), TinyData(predict_set=Photos(FILES)), return_predictions=False)
        rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
        assert [row[0] for row in rows] == ["file", *FILES]
        assert not bar.is_disabled

    def test_only_data_reaches_a_pipe(self, tmp_path):
        script = (
            "from pathlib import Path; from tests.callbacks.test_predictions import *; "
            f"predict(Path({str(tmp_path)!r}), Predictions(format='csv', top_k=1), enable_progress_bar=True)"
        )
        root = Path(__file__).parents[2]
        # An encoding without some of the characters must not cost the data.
        environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(root)}
        result = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        rows = list(csv.reader(io.StringIO(result.stdout)))
        assert len(rows) == len(FILES) + 1
        assert rows[4][0] == "\\xfcn\\xef.png"
        assert {len(row) for row in rows} == {3}


class TestOutput:
    @pytest.mark.parametrize("name", ["out.csv", "out.CSV", "out.json", "out.txt"])
    def test_suffix_chooses(self, tmp_path, capsys, name):
        predict(tmp_path, Predictions(output=str(tmp_path / name)))
        assert capsys.readouterr().out == ""
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert text[0] == {".csv": "f", ".json": "[", ".txt": " "}[Path(name).suffix.lower()]
        assert [path.name for path in tmp_path.iterdir()] == [name]

    def test_format_goes_before_suffix(self, tmp_path):
        predict(tmp_path, Predictions(output=str(tmp_path / "out.data"), format="json"))
        assert len(json.loads((tmp_path / "out.data").read_text())) == len(FILES)

    def test_names_that_are_no_text_keep_their_bytes(self, tmp_path):
        name = os.fsdecode(b"caf\xe9.png")
        predict(tmp_path, Predictions(output=str(tmp_path / "out.csv")), files=[name])
        assert (tmp_path / "out.csv").read_bytes().splitlines()[1].startswith(b"caf\xe9.png,")

    def test_replaces_an_older_output(self, tmp_path):
        path = tmp_path / "out.csv"
        path.write_text("former\n" * 1000)
        predict(tmp_path, Predictions(output=str(path)))
        assert "former" not in path.read_text()

    def test_failure_leaves_the_older_output(self, tmp_path, monkeypatch):
        path = tmp_path / "out.csv"
        path.write_text("old")

        def full(*args):
            raise OSError(errno.ENOSPC, "No space left on device")

        callback = Predictions(output=str(path))
        monkeypatch.setattr(os, "replace", full)
        with pytest.raises(UserError, match=r"out\.csv: No space left"):
            predict(tmp_path, callback)
        assert path.read_text() == "old"
        assert [entry.name for entry in tmp_path.iterdir()] == ["out.csv"]

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("missing/out.csv", "No such file"),
            ("file/out.csv", "Not a directory"),
            ("folder.csv", "not a regular file"),
            ("out.xlsx", r"\.csv, \.json, \.txt"),
            ("out", "suffix"),
        ],
    )
    def test_refuses_before_anything_is_predicted(self, tmp_path, monkeypatch, name, message):
        (tmp_path / "file").touch()
        (tmp_path / "folder.csv").mkdir()
        callback = Predictions(output=str(tmp_path / name))
        monkeypatch.setattr(callback, "on_predict_batch_end", lambda *_: pytest.fail("predicted"))
        with pytest.raises(UserError, match=message):
            predict(tmp_path, callback)
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder.csv"]

    def test_other_stages_need_no_output(self, tmp_path):
        trainer = quiet_trainer(tmp_path, callbacks=[Predictions(output="/missing/out.csv")], logger=False)
        trainer.test(tiny_classifier(), TinyData(), verbose=False)


@pytest.mark.parametrize("top_k", [0, -1])
def test_top_k_of_nothing_is_refused(top_k):
    with pytest.raises(UserError, match=f"top_k.*{top_k}"):
        Predictions(top_k=top_k)


def test_unknown_format_is_refused():
    with pytest.raises(UserError, match=r"format.*'xml'"):
        Predictions(format="xml")


def test_several_devices_are_refused(tmp_path):
    trainer = quiet_trainer(tmp_path, logger=False, devices=2)
    with pytest.raises(UserError, match=r"--trainer\.devices 1"):
        Predictions().setup(trainer, tiny_classifier(), "predict")
