"""One file an optimizer; each spells every argument out, so that it replaces any other whole."""
