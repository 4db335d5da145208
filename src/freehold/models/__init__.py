"""Small models for tables: linear and multilayer perceptron. Any other `nn.Module` works as well; these are for the shipped tasks."""

from freehold.models.dense import linear, mlp

__all__ = ["linear", "mlp"]
