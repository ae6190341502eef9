from hps_lightning.installed import published_folder
from hps_lightning.report.curves import Run
from hps_lightning.report.parts import copy_note, curve_words, times_to_accuracy_lines


def test_a_note_on_the_copy_of_the_data_comes_from_the_published_readme(tmp_path):
    assert copy_note(tmp_path) == ""
    (tmp_path / "README.md").write_text("Trained on the university's files.\n")
    assert copy_note(tmp_path) == ""
    assert "121 of 60,000 images" in copy_note(published_folder())


def test_curves_end_where_their_last_epoch_does():
    series = {"train/accuracy": {1: 0.4, 3: 0.65, 2: 0.6}, "val/accuracy": {}}
    words = curve_words([(Run("hps_06_05x", "cifar10", "full", "", series), "a|b")])
    assert words.startswith(r"a\|b (protocol full): training 65.00 % after epoch 3. ")
    assert "validation %" not in words


def test_without_results_there_are_no_times_to_accuracy():
    assert times_to_accuracy_lines(None) == []
