"""Small models for tables: linear and multilayer perceptron. Any other `nn.Module` works too."""

from freehold.models.dense import linear, mlp

__all__ = ["linear", "mlp"]
