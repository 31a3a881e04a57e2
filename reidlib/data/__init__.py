"""Datasets: where they lie, how they are read, drawn, batched and augmented."""
