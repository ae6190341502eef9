"""The configs that `hps --config NAME` finds from any directory."""
