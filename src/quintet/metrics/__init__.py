"""Metrics that more than one room needs, on torchmetrics."""
