import ablation


def run(seed, accuracy):
    return {"seed": seed, "val/accuracy": accuracy, "train/accuracy": 0.9}


def test_a_difference_is_that_of_the_seeds_that_both_have():
    results = {
        ablation.BASE: {"options": "", "runs": [run(0, 0.75), run(1, 0.7)]},
        "twice the rate": {"options": "--optimizer.lr 1", "runs": [run(0, 0.76)]},
        "another seed": {"options": "--x", "runs": [run(5, 0.8)]},
    }
    page = ablation.page({"config": "fast/hps_06_05x.yaml", "base": "--trainer.max_epochs 8"}, results)
    assert page.startswith("Each change alone of `hps fit --config fast/hps_06_05x.yaml --trainer.max_epochs 8`")
    rows = {line.split(" | ")[0].strip("| "): line for line in page.splitlines()}
    assert "| 76.00 % (76.00) | +1.00 |" in rows["twice the rate"]
    assert "| 80.00 % (80.00) |  |" in rows["another seed"]
    assert "| 72.50 % (75.00, 70.00) |  |" in rows[ablation.BASE]
