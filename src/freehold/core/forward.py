"""One forward pass as a function of a state and a batch: dropout draws from the key, BatchNorm counts only real examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from freehold.core.seeding import fold, uniform
from freehold.core.steps import Batch
from freehold.errors import NotBatchable, NotPrivate


class Forward(TorchFunctionMode):
    """While active, a module in training mode is a pure function of its state and `batch`.

    What a module would add to its running statistics in place is put down in `refreshed`, by the identity of the buffer.
    """

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self.key, self.real, self.alone = batch["key"], batch["real"], "alone" in batch
        self.refreshed: dict[int, Tensor] = {}
        self.draws = 0
        self.touched = False
        """Whether anything came out otherwise than it would have without this mode."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` by its rule here, if it has one."""
        rule = _RULES.get(func)
        return func(*args, **(kwargs or {})) if rule is None else rule(self, func, *args, **(kwargs or {}))

    def next_key(self) -> Tensor:
        """A key for the next random draw of this pass."""
        self.draws += 1
        self.touched = True
        return fold(self.key, self.draws)


def _dropout(
    pass_: Forward, func: Callable[..., Tensor], input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    if not training or p == 0:
        return input
    whole = func in (F.dropout, F.alpha_dropout)  # the others drop channels [B, C], not single values
    shape = input.shape if whole else (*input.shape[:2], *[1] * (input.dim() - 2))
    kept = uniform(pass_.next_key(), shape, dtype=input.dtype) >= p
    if func in (F.alpha_dropout, F.feature_alpha_dropout):  # Klambauer et al. 2017: dropped to SELU's limit, moments restored
        limit = -1.7580993408473766
        gain = ((limit**2 * p + 1) * (1 - p)) ** -0.5
        out: Tensor = torch.where(kept, input, limit) * gain - gain * limit * p
        return out
    return torch.where(kept, input, 0) / (1 - p) if p < 1 else torch.zeros_like(input)


def _batch_norm(
    pass_: Forward,
    func: Callable[..., Tensor],
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Ioffe and Szegedy 2015 over the real examples; one real value normalizes to its bias."""
    if not training:
        return func(input, running_mean, running_var, weight, bias, training, momentum, eps)
    if pass_.alone:
        raise NotPrivate(
            "BatchNorm mixes the examples of a batch, so a gradient per example does not exist.",
            hint="Use GroupNorm or LayerNorm in a model that is trained with record-level privacy.",
        )
    pass_.touched = True
    axes = (0, *range(2, input.dim()))
    wide = (1, -1, *[1] * (input.dim() - 2))
    on = pass_.real.to(input.dtype).view(-1, *[1] * (input.dim() - 1))
    count = pass_.real.sum().clamp(min=1) * input[0, 0].numel()
    mean = (input * on).sum(axes) / count
    centered = input - mean.view(wide)
    variance = (centered**2 * on).sum(axes) / count
    for buffer, value in ((running_mean, mean), (running_var, variance * count / (count - 1).clamp(min=1))):
        if buffer is not None:
            before = pass_.refreshed.get(id(buffer), buffer)
            pass_.refreshed[id(buffer)] = (1 - momentum) * before + momentum * value.detach()
    out = centered / (variance.view(wide) + eps).sqrt()
    out = out if weight is None else out * weight.view(wide)
    return out if bias is None else out + bias.view(wide)


def _unkeyed(pass_: Forward, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A function that draws by itself: alone it gets a seed from the key; for a cohort there is no way to give it one."""
    try:
        seed = int(pass_.next_key())
    except RuntimeError:  # a key per client
        raise NotBatchable(
            f"{getattr(func, '__name__', func)} draws random numbers of its own, the same for all clients under vmap.",
            hint="Run with --engine loop, or set that layer's own dropout to 0 and put an nn.Dropout after it.",
        ) from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return func(*args, **kwargs)


def _recurrent(pass_: Forward, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`torch.lstm` and its kin: (input, hidden, weights, bias, layers, dropout, training, ...)."""
    at = next(i for i, a in enumerate(args) if isinstance(a, float))
    return _unkeyed(pass_, func, *args, **kwargs) if args[at] > 0 and args[at + 1] else func(*args, **kwargs)


def _attention(pass_: Forward, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    at = 4 if func is F.scaled_dot_product_attention else 10
    share = kwargs.get("dropout_p", args[at] if len(args) > at else 0.0)
    draws = share > 0 and kwargs.get("training", True)
    return _unkeyed(pass_, func, *args, **kwargs) if draws else func(*args, **kwargs)


_RULES: dict[Callable[..., Any], Callable[..., Any]] = {
    F.batch_norm: _batch_norm,
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _attention,
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout), _dropout),
    **dict.fromkeys((torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu), _recurrent),
    **dict.fromkeys(
        (
            torch.rand,
            torch.randn,
            torch.rand_like,
            torch.randn_like,
            torch.randint,
            torch.randperm,
            torch.bernoulli,
            torch.multinomial,
            Tensor.bernoulli,
            torch.normal,
            torch.poisson,
            torch.randint_like,
            torch.dropout,
            torch.alpha_dropout,
            torch.feature_dropout,
            torch.feature_alpha_dropout,
            torch.rrelu,
            Tensor.bernoulli_,
            Tensor.cauchy_,
            Tensor.exponential_,
            Tensor.geometric_,
            Tensor.log_normal_,
            Tensor.normal_,
            Tensor.random_,
            Tensor.uniform_,
            F.fractional_max_pool2d,
            F.fractional_max_pool3d,
            F.gumbel_softmax,
            F.rrelu,
        ),
        _unkeyed,
    ),
}
