"""Predicting files of any size: rows in, predictions out, a few at a time."""
