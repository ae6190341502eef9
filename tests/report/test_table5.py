from hps_lightning import zoo
from hps_lightning.complexity import count_parameters
from hps_lightning.report.table5 import NETWORK, composition

# Where Table 5 is wrong: (layer, column) to (printed, true); see its "known errors".
KNOWN_ERRORS = {
    ("Convolution 32", "out_w"): (30, 15),
    ("Convolution 32", "out_h"): (30, 15),
    ("Convolution 34", "parameters"): (1528, 1568),
    ("Convolution 62", "out_w"): (15, 8),
    ("Convolution 62", "out_h"): (15, 8),
    ("Convolution 102", "out_w"): (8, 4),
    ("Convolution 102", "out_h"): (8, 4),
    ("Convolution 106", "in_c"): (256, 128),
    ("Convolution 106", "parameters"): (65_792, 33_024),
    ("Adaptive Average Pool", "in_c"): (256, 128),
    ("Adaptive Average Pool", "out_w"): (4, 1),
    ("Adaptive Average Pool", "out_h"): (4, 1),
    ("Adaptive Average Pool", "out_c"): (256, 128),
}


def test_the_known_errors_are_found_and_nothing_else_is_marked():
    rows = composition().rows
    assert len(rows) == 34
    found = {(row.layer, error.column): (error.printed, error.computed) for row in rows for error in row.errors}
    assert found == KNOWN_ERRORS
    (row,) = [row for row in rows if row.layer == "Convolution 34"]
    assert row.error("parameters").why == "1·3·16·32 weights and 32 biases"
    assert row.error("stride") is None


def test_what_the_table_leaves_out_makes_up_the_rest_of_the_network():
    found = composition()
    assert found.network_parameters == count_parameters(zoo.find_variant(NETWORK).build()) == 588_666
    assert (found.convolutions, found.shortcuts, found.unlisted) == (107, 4, 45)
    computed = sum(row.computed["parameters"] for row in found.rows)
    rest = found.shortcut_parameters + found.unlisted_parameters + found.norm_parameters
    assert computed + rest == found.network_parameters
    misprinted = sum(
        computed - printed for (_, column), (printed, computed) in KNOWN_ERRORS.items() if column == "parameters"
    )
    assert found.printed_parameters + misprinted == computed
