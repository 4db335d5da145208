"""A pass in training mode is a function of a state, a batch and its key: dropout and BatchNorm as torch's own, but pure."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from freehold.core import Batch, State, Task, task_from
from freehold.core.forward import Forward

F64 = torch.float64


def batch(x: Tensor, *, key: int | Tensor = 3, real: int | None = None) -> Batch:
    """A batch whose first `real` examples are not padding."""
    count = len(x) if real is None else real
    on = torch.arange(len(x)) < count
    return {"x": x, "y": torch.zeros(len(x), dtype=torch.int64), "real": on, "live": on.any(), "key": torch.as_tensor(key)}


def dropped(layer: nn.Module, x: Tensor, key: int | Tensor = 3) -> Tensor:
    with Forward(batch(x, key=key)):
        return layer(x)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def of(*layers: nn.Module) -> Task:
    """A task that ends in a linear layer for two classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return task_from(nn.Sequential(*layers).double(), F.cross_entropy, classes=2)


# Dropout.


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_has_its_rate_and_its_scale(p: float) -> None:
    out = dropped(nn.Dropout(p), torch.ones(200, 200, dtype=F64))
    kept = out != 0
    assert torch.allclose(out[kept], torch.tensor(1 / (1 - p), dtype=F64))
    assert abs(float(kept.double().mean()) - (1 - p)) < 0.01


def test_dropout_at_its_ends_keeps_all_or_nothing() -> None:
    x = normal(4, 5)
    assert torch.equal(dropped(nn.Dropout(0.0), x), x)
    assert torch.equal(dropped(nn.Dropout(1.0), x), torch.zeros_like(x))
    assert torch.equal(dropped(nn.Dropout(0.5).eval(), x), x)


def test_dropout_is_a_function_of_its_key_and_not_of_torchs_generator() -> None:
    x = normal(20, 30)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = dropped(nn.Dropout(0.5), x, key=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(dropped(nn.Dropout(0.5), x, key=1), first)
    assert not torch.equal(dropped(nn.Dropout(0.5), x, key=2), first)


def test_two_layers_of_one_pass_draw_different_masks() -> None:
    ones = torch.ones(50, 50, dtype=F64)
    with Forward(batch(ones)):
        a, b = nn.Dropout(0.5)(ones), nn.Dropout(0.5)(ones)
    assert 0.4 < float((a == b).double().mean()) < 0.6


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Dropout1d, (300, 40, 6)), (nn.Dropout2d, (300, 40, 3, 2)), (nn.Dropout3d, (300, 40, 3, 2, 2))],
)
def test_channel_dropout_drops_whole_channels(layer: Callable[[float], nn.Module], shape: tuple[int, ...]) -> None:
    out = dropped(layer(0.3), torch.ones(shape, dtype=F64)).flatten(2)
    assert bool((out == out[:, :, :1]).all())
    assert abs(float((out[:, :, 0] != 0).double().mean()) - 0.7) < 0.02
    assert torch.allclose(out[out != 0], torch.tensor(1 / 0.7, dtype=F64))


@pytest.mark.parametrize(("layer", "shape"), [(nn.AlphaDropout, (400, 400)), (nn.FeatureAlphaDropout, (400, 400, 1, 1))])
def test_alpha_dropout_keeps_mean_and_variance(layer: Callable[[float], nn.Module], shape: tuple[int, ...]) -> None:
    """Klambauer et al. 2017, for inputs of mean 0 and variance 1; dropped values are all the same number."""
    x = normal(*shape)
    out = dropped(layer(0.2), x)
    assert abs(float(out.mean())) < 0.01 and abs(float(out.var()) - 1) < 0.02
    values, counts = out.flatten().unique(return_counts=True)
    assert abs(float(counts.max()) / x.numel() - 0.2) < 0.01
    torch.manual_seed(0)
    theirs = layer(0.2)(x).flatten()
    assert torch.isclose(theirs.mode().values, values[counts.argmax()])


def test_feature_alpha_dropout_drops_whole_channels() -> None:
    out = dropped(nn.FeatureAlphaDropout(0.5), normal(30, 20, 4, 4)).flatten(2)
    constant = (out == out[:, :, :1]).all(2)
    assert 0.4 < float(constant.double().mean()) < 0.6 and len(out[constant].unique()) == 1


@pytest.mark.parametrize("layer", [nn.Dropout, nn.AlphaDropout, nn.Dropout1d, nn.Dropout2d])
def test_a_mask_is_the_same_alone_padded_and_among_many(layer: Callable[[float], nn.Module]) -> None:
    x, keys = normal(6, 5, 3, 2) if layer is nn.Dropout2d else normal(6, 5, 3), torch.tensor([4, 5, 6])
    alone = torch.stack([dropped(layer(0.4), x[:4], key=k) for k in keys])
    padded = torch.stack([dropped(layer(0.4), x, key=k)[:4] for k in keys])
    many = vmap(lambda k: dropped(layer(0.4), x, key=k)[:4])(keys)
    assert torch.equal(alone, padded) and torch.equal(alone, many)


# BatchNorm.

NORMS: list[tuple[Callable[..., nn.Module], tuple[int, ...]]] = [
    (nn.BatchNorm1d, (5, 4)),
    (nn.BatchNorm1d, (5, 4, 3)),
    (nn.BatchNorm2d, (5, 4, 3, 2)),
    (nn.BatchNorm3d, (5, 4, 2, 2, 2)),
]


def passed(layer: nn.Module, x: Tensor, real: int | None = None, times: int = 1) -> tuple[Tensor, State]:
    """The output of a layer that is called `times` times in a pass, and its buffers afterwards."""
    with Forward(batch(x, real=real)) as forward:
        for _ in range(times):
            out = layer(x)
    return out, {k: forward.refreshed.get(id(v), v) for k, v in layer.named_buffers()}


@pytest.mark.parametrize(("kind", "shape"), NORMS)
@pytest.mark.parametrize("settings", [{}, {"affine": False}, {"track_running_stats": False}, {"momentum": 0.3, "eps": 0.1}])
def test_batch_norm_is_torchs_own_on_a_full_batch(
    kind: Callable[..., nn.Module], shape: tuple[int, ...], settings: dict[str, float | bool]
) -> None:
    x = normal(*shape) * 2 + 1
    ours, theirs = (kind(4, dtype=F64, **settings) for _ in range(2))
    for layer in (ours, theirs):
        for i, p in enumerate(layer.parameters()):
            nn.init.constant_(p, 0.5 + i)
    out, buffers = passed(ours, x)
    assert torch.allclose(out, theirs(x), atol=1e-12)
    for name, buffer in theirs.named_buffers():
        assert torch.allclose(buffers[name], buffer, atol=1e-12), name


@pytest.mark.parametrize(("kind", "shape"), NORMS)
def test_padding_does_not_reach_batch_norm(kind: Callable[..., nn.Module], shape: tuple[int, ...]) -> None:
    x, layer = normal(*shape), kind(4, dtype=F64)
    junk = torch.cat([x, 1000 * normal(3, *shape[1:], seed=1)])
    (clean, before), (padded, after) = passed(layer, x), passed(kind(4, dtype=F64), junk, real=len(x))
    assert torch.allclose(padded[: len(x)], clean, atol=1e-12)
    for name in ("running_mean", "running_var"):
        assert torch.allclose(after[name], before[name], atol=1e-12)


def test_one_real_value_normalizes_to_the_bias() -> None:
    layer = nn.BatchNorm1d(4, dtype=F64)
    nn.init.constant_(layer.bias, 0.25)
    out, buffers = passed(layer, normal(3, 4), real=1)
    assert torch.equal(out[0], torch.full((4,), 0.25, dtype=F64))
    assert all(bool(b.isfinite().all()) for b in buffers.values())


def test_a_layer_that_is_called_twice_in_a_pass_is_refreshed_twice() -> None:
    ours, theirs, x = nn.BatchNorm1d(4, dtype=F64), nn.BatchNorm1d(4, dtype=F64), normal(5, 4)
    _, buffers = passed(ours, x, times=2)
    theirs(x), theirs(x)
    assert torch.allclose(buffers["running_mean"], theirs.running_mean, atol=1e-12)
    assert torch.allclose(buffers["running_var"], theirs.running_var, atol=1e-12)


def test_a_trained_batch_norm_predicts_by_its_running_statistics() -> None:
    task, x = of(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), normal(6, 3)
    state = {**task.init, "1.running_mean": normal(4), "1.running_var": normal(4, seed=1).exp()}
    each = torch.cat([task.predict(state, one[None]) for one in x])
    assert torch.allclose(task.predict(state, x), each, atol=1e-12)


def test_a_pass_in_training_does_not_touch_the_state_it_is_given() -> None:
    task, x = of(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), normal(6, 3)
    before = {k: v.clone() for k, v in task.init.items()}
    seen = task.run(task.init, batch(x), training=True)
    assert all(torch.equal(task.init[k], v) for k, v in before.items())
    assert not torch.equal(seen.buffers["1.running_mean"], before["1.running_mean"])
    assert int(seen.buffers["1.num_batches_tracked"]) == 1


def test_instance_norm_with_statistics_is_pure_too() -> None:
    layers = (nn.Unflatten(1, (3, 2)), nn.InstanceNorm1d(3, track_running_stats=True), nn.Flatten(), nn.Linear(6, 2))
    task, x = of(*layers), normal(5, 6)
    theirs = nn.InstanceNorm1d(3, track_running_stats=True, dtype=F64)
    theirs(x.reshape(5, 3, 2))
    seen = task.run(task.init, batch(x), training=True)
    assert torch.equal(task.init["1.running_mean"], torch.zeros(3, dtype=F64))
    assert torch.allclose(seen.buffers["1.running_mean"], theirs.running_mean)


# What draws by itself.


class Attention(nn.Module):
    """Self-attention over [B, 4, 6], with dropout inside."""

    def __init__(self, dropout: float, weights: bool = False) -> None:
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(6, 2, dropout=dropout, batch_first=True), nn.Linear(6, 2)
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, 4, 6)
        return self.out(self.attention(x, x, x, need_weights=self.weights)[0].mean(1))


class Layered(nn.Module):
    """Two layers of an LSTM, with dropout between them."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(6, 5, num_layers=2, dropout=dropout, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.lstm(x.reshape(-1, 4, 6))[0][:, -1])


class Noisy(nn.Module):
    """Noise on the features, by one of torch's own functions."""

    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.out, self.draw = nn.Linear(24, 2), draw

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.draw(x) if self.training else x)


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "randn_like": lambda x: x + torch.randn_like(x),
    "rand": lambda x: x + torch.rand(x.shape, dtype=x.dtype),
    "normal_": lambda x: x + torch.empty_like(x).normal_(),
    "exponential_": lambda x: x + torch.empty_like(x).exponential_(),
    "bernoulli": lambda x: x * torch.bernoulli(torch.full_like(x, 0.5)),
    "poisson": lambda x: x + torch.poisson(torch.ones_like(x)),
    "torch.normal": lambda x: torch.normal(x, torch.ones_like(x)),
    "torch.dropout": lambda x: torch.dropout(x, 0.5, True),
    "rrelu": lambda x: F.rrelu(x, training=True),
    "gumbel": lambda x: F.gumbel_softmax(x),
    "randperm": lambda x: x[:, torch.randperm(x.shape[1])],
}
NETS: dict[str, Callable[[], nn.Module]] = {
    "attention": lambda: Attention(0.5),
    "attention with weights": lambda: Attention(0.5, weights=True),
    "lstm": lambda: Layered(0.5),
    **{name: (lambda draw=draw: Noisy(draw)) for name, draw in DRAWS.items()},
}


@pytest.mark.parametrize("name", NETS)
def test_what_draws_by_itself_is_seeded_by_the_key(name: str) -> None:
    task, x = of(NETS[name]()), normal(8, 24)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = task.run(task.init, batch(x, key=1), training=True).outputs
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(task.run(task.init, batch(x, key=1), training=True).outputs, first)
    assert not torch.equal(task.run(task.init, batch(x, key=2), training=True).outputs, first)


@pytest.mark.parametrize("net", [Attention(0.0), Attention(0.0, weights=True), Layered(0.0)])
def test_without_dropout_it_is_what_torch_computes(net: nn.Module) -> None:
    task, x = of(net), normal(8, 24)
    trained = task.run(task.init, batch(x), training=True).outputs
    assert torch.allclose(trained, task.predict(task.init, x), atol=1e-12)
