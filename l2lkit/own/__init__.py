"""Classifiers and pictures that are not ours: the commands `check`, `attack` and `train SPEC`."""
