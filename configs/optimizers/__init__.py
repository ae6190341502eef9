"""One file an optimizer, with the arguments that matter; it replaces any other whole."""
