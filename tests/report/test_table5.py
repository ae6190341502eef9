from hps_lightning import zoo
from hps_lightning.complexity import count_parameters
from hps_lightning.report.table5 import NETWORK, composition
from tests.table5 import KNOWN_ERRORS


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
