"""The networks and losses of the work, with torch alone: peers use the same from their own environments."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LETTERS = 90
LENGTH = 40
ITEMS = 2000


class Block(nn.Module):
    """Causal attention and an MLP, each after a LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        """`heads` divides `width`."""
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, W] -> [B, T, W]."""
        b, t, w = x.shape
        qkv = self.qkv(self.before_attention(x)).view(b, t, 3, self.heads, w // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(b, t, w))
        y: Tensor = x + self.mlp(self.before_mlp(x))
        return y


class Transformer(nn.Module):
    """A language model of characters: two layers of width 64, 114 k parameters."""

    def __init__(self, width: int = 64, layers: int = 2) -> None:
        """Four heads a layer."""
        super().__init__()
        self.letters, self.places = nn.Embedding(LETTERS, width), nn.Parameter(0.02 * torch.randn(LENGTH, width))
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, LETTERS)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T] -> [B, T, letters]."""
        y: Tensor = self.head(self.norm(self.blocks(self.letters(x) + self.places[: x.shape[1]])))
        return y


class Recurrent(nn.Module):
    """The same with a GRU of 128: 69 k parameters."""

    def __init__(self) -> None:
        """One layer."""
        super().__init__()
        self.letters, self.gru = nn.Embedding(LETTERS, 16), nn.GRU(16, 128, batch_first=True)
        self.head = nn.Linear(128, LETTERS)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T] -> [B, T, letters]."""
        y: Tensor = self.head(self.gru(self.letters(x))[0])
        return y


class Ratings(nn.Module):
    """Matrix factorization: items of width 32, and one row that is the user's."""

    def __init__(self) -> None:
        """2000 items."""
        super().__init__()
        self.items, self.user = nn.Embedding(ITEMS, 32), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Items [B] -> ratings [B]."""
        y: Tensor = self.user(self.items(x)).squeeze(-1)
        return y


def mlp() -> nn.Module:
    """784-200-10."""
    return nn.Sequential(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 10))


def cnn() -> nn.Module:
    """Two 3x3 convolutions of 32 and 64, pooled once, 128 hidden: 1.21 M parameters."""
    body = (nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(9216, 128), nn.ReLU(), nn.Linear(128, 62))


def leaf() -> nn.Module:
    """The CNN of LEAF: two 5x5 convolutions, each pooled, 2048 hidden: 6.6 M parameters."""
    first = (nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2))
    second = (nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    return nn.Sequential(*first, *second, nn.Linear(3136, 2048), nn.ReLU(), nn.Linear(2048, 62))


def letters(outputs: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each text [B], averaged over its characters."""
    return F.cross_entropy(outputs.transpose(1, 2), y, reduction="none").mean(1)


def all_letters(outputs: Tensor, y: Tensor) -> Tensor:
    """The mean of `letters` in one call."""
    return F.cross_entropy(outputs.flatten(0, 1), y.flatten())


Loss = Callable[[Tensor, Tensor], Tensor]

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "logistic": lambda: nn.Linear(784, 10),
    "mlp": mlp,
    "cnn": cnn,
    "leaf": leaf,
    "transformer": Transformer,
    "gru": Recurrent,
    "ratings": Ratings,
}
LOSSES: dict[str, tuple[Loss, Loss]] = {
    "labels": (F.cross_entropy, F.cross_entropy),
    "letters": (letters, all_letters),
    "ratings": (F.mse_loss, F.mse_loss),
}
"""By the kind of target: (what a task is made of, the mean loss of a batch)."""
