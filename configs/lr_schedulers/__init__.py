"""One file a learning rate schedule, with the arguments that matter; it replaces any other whole."""
