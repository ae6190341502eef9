"""The paper beside computation and our measurements: curves, plots, tables, and one page that holds them all."""
