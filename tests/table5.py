"""The errors of the paper's Table 5, which the network and the report are compared with."""

KNOWN_ERRORS = {
    # 16 x 32 x 3 weights and 32 biases: a misprint.
    ("Convolution 34", "parameters"): (1528, 1568),
    # The first convolution of a stage halves the map, as the next row's input says; its output repeats the input.
    ("Convolution 32", "out_w"): (30, 15),
    ("Convolution 32", "out_h"): (30, 15),
    ("Convolution 62", "out_w"): (15, 8),
    ("Convolution 62", "out_h"): (15, 8),
    ("Convolution 102", "out_w"): (8, 4),
    ("Convolution 102", "out_h"): (8, 4),
    # Convolution 105 gives 128 channels, so that 106 has 128 x 256 + 256 parameters.
    ("Convolution 106", "in_c"): (256, 128),
    ("Convolution 106", "parameters"): (65_792, 33_024),
    # Convolution 107 gives 128 channels, and the classifier takes 128.
    ("Adaptive Average Pool", "in_c"): (256, 128),
    ("Adaptive Average Pool", "out_c"): (256, 128),
    # The classifier's row takes 1 x 1.
    ("Adaptive Average Pool", "out_w"): (4, 1),
    ("Adaptive Average Pool", "out_h"): (4, 1),
}
"""Where the table is wrong: (layer, column) to (printed, true)."""
