"""One file a learning rate schedule; each spells every argument out, so that it replaces any other whole."""
