"""One file a network: recipes of a fraction of the paper's epochs; each says what it reaches."""
