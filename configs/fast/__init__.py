"""One file a network size: recipes that reach the paper's accuracy in a fraction of its epochs."""
