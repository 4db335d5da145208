"""Every algorithm once more, as anyone would write it by hand: modules copied, optimizers stepped, clients looped over.

Written from the papers' pseudo-code in plain PyTorch. It imports nothing from `freehold` (a test looks), shares no code with it,
and is slow and plain on purpose. A `Log` says who was asked in which round, and which batches each client then drew.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]
State = dict[str, Tensor]


class Net(nn.Module):
    """A body of two layers, with BatchNorm in it if asked for, and a linear head."""

    def __init__(self, inputs: int, features: int, outputs: int, *, norm: bool = False) -> None:
        super().__init__()
        first: list[nn.Module] = [nn.Linear(inputs, 7), *([nn.BatchNorm1d(7)] if norm else []), nn.Tanh()]
        self.body = nn.Sequential(*first, nn.Linear(7, features), nn.Tanh())
        self.head = nn.Linear(features, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@dataclass(frozen=True, kw_only=True)
class Log:
    """What happened: who was asked, and what each drew."""

    rounds: Sequence[dict[str, list[Pair]]]
    """Per round: client -> its batches, for the clients that were asked."""
    adapting: dict[str, list[Pair]]
    """client -> the batches it adapts on before it predicts."""
    train: dict[str, Pair]
    validation: dict[str, Pair]
    test: dict[str, Pair]

    def size(self, client: str) -> int:
        return len(self.train[client][1])


class Outcome(NamedTuple):
    server: dict[str, Any]
    personal: dict[str, dict[str, Any]]
    predictions: dict[str, Tensor]


Loss = Callable[[Tensor, Tensor], Tensor]


# ---- what every script on federated learning has at its top ----


def state_of(model: nn.Module) -> State:
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def with_state(model: nn.Module, state: State) -> nn.Module:
    new = copy.deepcopy(model)
    new.load_state_dict(state)
    return new


def params_of(model: nn.Module) -> State:
    return {k: v.detach().clone() for k, v in model.named_parameters()}


def average(states: Sequence[State], weights: Sequence[float], before: State) -> State:
    """The weighted mean; integer counters stay as they were."""
    total = sum(weights)
    return {
        k: sum(s[k] * w for s, w in zip(states, weights, strict=True)) / total if before[k].is_floating_point() else before[k]
        for k in before
    }


def grads_of(model: nn.Module, batch: Pair, loss: Loss) -> State:
    """The gradient at the model, in training mode; running statistics are refreshed on the way, as a pass does."""
    model.train()
    model.zero_grad()
    loss(model(batch[0]), batch[1]).backward()
    return {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}


def train_sgd(
    model: nn.Module,
    batches: Sequence[Pair],
    lr: float,
    loss: Loss,
    only: Callable[[str], bool] = lambda name: True,
    extra: Callable[[nn.Module], Tensor] | None = None,
) -> nn.Module:
    """SGD on the parameters that `only` names, of the loss plus `extra`; changes the model."""
    model.train()
    optimizer = torch.optim.SGD([p for n, p in model.named_parameters() if only(n)], lr=lr)
    for x, y in batches:
        optimizer.zero_grad()
        value = loss(model(x), y)
        if extra is not None:
            value = value + extra(model)
        value.backward()
        optimizer.step()
    return model


def near(anchor: State, mu: float) -> Callable[[nn.Module], Tensor]:
    """mu/2 ||model - anchor||^2."""
    return lambda model: mu / 2 * sum(((p - anchor[n]) ** 2).sum() for n, p in model.named_parameters())


def infer(model: nn.Module, x: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(x)


def is_head(name: str) -> bool:
    return name.startswith("head.")


# ---- alone, and one model for all ----


def local(model: nn.Module, log: Log, loss: Loss, *, lr: float, adam: bool = False) -> Outcome:
    models = {c: copy.deepcopy(model) for c in log.train}
    kind = torch.optim.Adam if adam else torch.optim.SGD
    optimizers = {c: kind(m.parameters(), lr=lr) for c, m in models.items()}
    for asked in log.rounds:
        for client, batches in asked.items():
            models[client].train()
            for x, y in batches:
                optimizers[client].zero_grad()
                loss(models[client](x), y).backward()
                optimizers[client].step()
    took_part = {c for asked in log.rounds for c in asked}
    personal = {c: {"model": state_of(models[c])} for c in took_part}
    return Outcome({}, personal, {c: infer(models[c], log.test[c][0]) for c in log.test})


def fedavg(model: nn.Module, log: Log, loss: Loss, *, lr: float, mu: float = 0.0) -> Outcome:
    """McMahan et al. 2017, algorithm 1; with mu > 0 FedProx (Li et al. 2020, algorithm 2)."""
    shared = copy.deepcopy(model)
    for asked in log.rounds:
        states, sizes = [], []
        for client, batches in asked.items():
            mine = copy.deepcopy(shared)
            train_sgd(mine, batches, lr, loss, extra=near(params_of(shared), mu) if mu else None)
            states.append(state_of(mine))
            sizes.append(log.size(client))
        shared = with_state(shared, average(states, sizes, state_of(shared)))
    return Outcome(state_of(shared), {}, {c: infer(shared, log.test[c][0]) for c in log.test})


def scaffold(model: nn.Module, log: Log, loss: Loss, *, lr: float, server_lr: float, uniform: bool) -> Outcome:
    """Karimireddy et al. 2020, algorithm 1 with option II; for a mean weighted by n unless `uniform`."""
    shared = copy.deepcopy(model)
    c = {k: torch.zeros_like(p) for k, p in shared.named_parameters()}
    c_of: dict[str, State] = {}
    for asked in log.rounds:
        x = state_of(shared)
        states, changes, weights = [], [], []
        for client, batches in asked.items():
            c_i = c_of.get(client, {k: torch.zeros_like(t) for k, t in c.items()})
            y = copy.deepcopy(shared)
            for batch in batches:
                g = grads_of(y, batch, loss)
                with torch.no_grad():
                    for k, p in y.named_parameters():
                        p -= lr * (g[k] - c_i[k] + c[k])
            after = state_of(y)
            c_plus = {k: c_i[k] - c[k] + (x[k] - after[k]) / (len(batches) * lr) for k in c}
            states.append(after)
            changes.append({k: c_plus[k] - c_i[k] for k in c})
            weights.append(1 if uniform else log.size(client))
            c_of[client] = c_plus
        mean = average(states, weights, x)
        trained = dict(shared.named_parameters())
        shared = with_state(shared, {k: x[k] + server_lr * (mean[k] - x[k]) if k in trained else mean[k] for k in x})
        step = average(changes, weights, c)
        c = {k: c[k] + len(asked) / len(log.train) * step[k] for k in c}
    predictions = {i: infer(shared, log.test[i][0]) for i in log.test}
    return Outcome({"model": state_of(shared), "control": c}, c_of, predictions)


def fedopt(
    model: nn.Module,
    log: Log,
    loss: Loss,
    *,
    kind: str,
    lr: float,
    server_lr: float,
    beta1: float,
    tau: float,
    beta2: float = 0.0,
) -> Outcome:
    """Reddi et al. 2021, algorithm 2. Running statistics are no gradient: they are averaged."""
    shared = copy.deepcopy(model)
    m = {k: torch.zeros_like(p) for k, p in shared.named_parameters()}
    v = {k: torch.full_like(p, tau**2) for k, p in shared.named_parameters()}
    for asked in log.rounds:
        x = state_of(shared)
        states = [state_of(train_sgd(copy.deepcopy(shared), batches, lr, loss)) for batches in asked.values()]
        mean = average(states, [log.size(c) for c in asked], x)
        new = dict(mean)
        for k in m:
            delta = mean[k] - x[k]
            m[k] = beta1 * m[k] + (1 - beta1) * delta
            if kind == "adagrad":
                v[k] = v[k] + delta**2
            elif kind == "yogi":
                v[k] = v[k] - (1 - beta2) * delta**2 * torch.sign(v[k] - delta**2)
            else:
                v[k] = beta2 * v[k] + (1 - beta2) * delta**2
            new[k] = x[k] + server_lr * m[k] / (torch.sqrt(v[k]) + tau)
        shared = with_state(shared, new)
    server = {"model": state_of(shared), "mean": m, "square": v}
    return Outcome(server, {}, {c: infer(shared, log.test[c][0]) for c in log.test})


def fedavgm(model: nn.Module, log: Log, loss: Loss, *, lr: float, momentum: float, server_lr: float) -> Outcome:
    """Hsu et al. 2019: server momentum. Running statistics are averaged."""
    shared = copy.deepcopy(model)
    u = {k: torch.zeros_like(p) for k, p in shared.named_parameters()}
    for asked in log.rounds:
        x = state_of(shared)
        states = [state_of(train_sgd(copy.deepcopy(shared), batches, lr, loss)) for batches in asked.values()]
        new = average(states, [log.size(c) for c in asked], x)
        for k in u:
            u[k] = momentum * u[k] + (new[k] - x[k])
            new[k] = x[k] + server_lr * u[k]
        shared = with_state(shared, new)
    return Outcome(state_of(shared), {}, {c: infer(shared, log.test[c][0]) for c in log.test})


# ---- FedAvg, and something afterwards at home ----


def finetuned(
    model: nn.Module, log: Log, loss: Loss, *, lr: float, tune_lr: float, only: Callable[[str], bool] = lambda name: True
) -> Outcome:
    server = fedavg(model, log, loss, lr=lr).server
    predictions = {}
    for client, batches in log.adapting.items():
        mine = train_sgd(with_state(model, server), batches, tune_lr, loss, only=only)
        predictions[client] = infer(mine, log.test[client][0])
    return Outcome(server, {}, predictions)


def intercept(model: nn.Module, log: Log, loss: Loss, *, lr: float, tune_lr: float) -> Outcome:
    return finetuned(model, log, loss, lr=lr, tune_lr=tune_lr, only=lambda name: name == "head.bias")


def per_fedavg(model: nn.Module, log: Log, loss: Loss, *, lr: float, inner_lr: float, delta: float | None = None) -> Outcome:
    """Fallah et al. 2020, algorithm 1; the Hessian is left out, or by finite differences of width delta (section 5.1)."""
    shared = copy.deepcopy(model)
    for asked in log.rounds:
        states = []
        for batches in asked.values():
            w = copy.deepcopy(shared)
            last = len(batches) - 1
            for t, batch in enumerate(batches):
                theta = train_sgd(copy.deepcopy(w), [batch], inner_lr, loss)
                d = grads_of(theta, batches[min(t + 1, last)], loss)
                step = d
                if delta is not None:
                    third = batches[min(t + 2, last)]
                    sides = []
                    for sign in (1, -1):
                        moved = copy.deepcopy(w)
                        with torch.no_grad():
                            for k, p in moved.named_parameters():
                                p += sign * delta * d[k]
                        sides.append(grads_of(moved, third, loss))
                    step = {k: d[k] - inner_lr * (sides[0][k] - sides[1][k]) / (2 * delta) for k in d}
                with torch.no_grad():
                    for k, p in w.named_parameters():
                        p -= lr * step[k]
            states.append(state_of(w))
        shared = with_state(shared, average(states, [log.size(c) for c in asked], state_of(shared)))
    predictions = {}
    for client, batches in log.adapting.items():
        mine = train_sgd(copy.deepcopy(shared), batches, inner_lr, loss)
        predictions[client] = infer(mine, log.test[client][0])
    return Outcome(state_of(shared), {}, predictions)


def knn_per(model: nn.Module, log: Log, loss: Loss, *, lr: float, neighbors: int, classes: int) -> Outcome:
    """Marfoq et al. 2022, equations 7 to 10, one example at a time; the weight is tuned on the validation examples."""
    server = fedavg(model, log, loss, lr=lr).server
    shared = with_state(model, server).eval()
    predictions = {}
    for client in log.test:
        keys, labels = infer(shared.body, log.train[client][0]), log.train[client][1]

        def outputs(x: Tensor, weight: float, keys: Tensor = keys, labels: Tensor = labels) -> Tensor:
            rows = []
            for one in x:
                z = infer(shared.body, one[None])[0]
                ranked = sorted((float((z - key).norm()), int(label)) for key, label in zip(keys, labels, strict=True))[
                    :neighbors
                ]
                votes = [sum(math.exp(-d) for d, label in ranked if label == k) for k in range(classes)]
                p_knn = torch.tensor(votes, dtype=x.dtype) / sum(votes)
                p_shared = infer(shared, one[None])[0].softmax(0)
                rows.append(torch.log(torch.clamp(weight * p_knn + (1 - weight) * p_shared, min=1e-12)))
            return torch.stack(rows)

        x, y = log.validation[client]
        scores = [float(F.nll_loss(outputs(x, w / 10), y)) for w in range(11)]
        predictions[client] = outputs(log.test[client][0], scores.index(min(scores)) / 10)
    return Outcome(server, {}, predictions)


# ---- a part of the model stays at home ----


def keeping(model: nn.Module, log: Log, loss: Loss, *, lr: float, mine: Callable[[str], bool]) -> Outcome:
    """FedPer (head stays), LG-FedAvg (body stays), FedBN (normalization stays)."""
    start = state_of(model)
    shared = {k: v for k, v in start.items() if not mine(k)}
    own = {c: {k: v for k, v in start.items() if mine(k)} for c in log.train}
    for asked in log.rounds:
        states = []
        for client, batches in asked.items():
            after = state_of(train_sgd(with_state(model, {**shared, **own[client]}), batches, lr, loss))
            states.append({k: after[k] for k in shared})
            own[client] = {k: after[k] for k in own[client]}
        shared = average(states, [log.size(c) for c in asked], shared)
    predictions = {c: infer(with_state(model, {**shared, **own[c]}), log.test[c][0]) for c in log.test}
    return Outcome(shared, own, predictions)


def fedrep(model: nn.Module, log: Log, loss: Loss, *, lr: float, head_passes: int) -> Outcome:
    """Collins et al. 2021, algorithm 1: the head by its steps, then the body under the new head."""
    shared = {k: v for k, v in state_of(model).items() if not is_head(k)}
    heads = {c: {k: v for k, v in state_of(model).items() if is_head(k)} for c in log.train}
    for asked in log.rounds:
        bodies = []
        for client, batches in asked.items():
            mine = with_state(model, {**shared, **heads[client]})
            for _ in range(head_passes):
                train_sgd(mine, batches, lr, loss, only=is_head)
            train_sgd(mine, batches, lr, loss, only=lambda name: not is_head(name))
            after = state_of(mine)
            heads[client] = {k: after[k] for k in heads[client]}
            bodies.append({k: after[k] for k in shared})
        shared = average(bodies, [log.size(c) for c in asked], shared)
    predictions = {c: infer(with_state(model, {**shared, **heads[c]}), log.test[c][0]) for c in log.test}
    return Outcome(shared, heads, predictions)


def fedbabu(model: nn.Module, log: Log, loss: Loss, *, lr: float, tune_lr: float) -> Outcome:
    """Oh et al. 2022: the body under the initial head; then the head on each client."""
    shared = copy.deepcopy(model)
    for asked in log.rounds:
        states = [
            state_of(train_sgd(copy.deepcopy(shared), batches, lr, loss, only=lambda name: not is_head(name)))
            for batches in asked.values()
        ]
        shared = with_state(shared, average(states, [log.size(c) for c in asked], state_of(shared)))
    predictions = {}
    for client, batches in log.adapting.items():
        mine = train_sgd(copy.deepcopy(shared), batches, tune_lr, loss, only=is_head)
        predictions[client] = infer(mine, log.test[client][0])
    return Outcome(state_of(shared), {}, predictions)


# ---- two models per client ----


def ditto(model: nn.Module, log: Log, loss: Loss, *, lr: float, lam: float) -> Outcome:
    """Li et al. 2021, algorithm 1: v steps towards its own data and the shared model that it was sent."""
    shared = copy.deepcopy(model)
    own: dict[str, nn.Module] = {}
    for asked in log.rounds:
        states = []
        for client, batches in asked.items():
            v = own.setdefault(client, copy.deepcopy(shared))
            train_sgd(v, batches, lr, loss, extra=near(params_of(shared), lam))
            states.append(state_of(train_sgd(copy.deepcopy(shared), batches, lr, loss)))
        shared = with_state(shared, average(states, [log.size(c) for c in asked], state_of(shared)))
    predictions = {c: infer(own.get(c, shared), log.test[c][0]) for c in log.test}
    return Outcome(state_of(shared), {c: state_of(v) for c, v in own.items()}, predictions)


def apfl(model: nn.Module, log: Log, loss: Loss, *, lr: float, alpha: float) -> Outcome:
    """Deng et al. 2020, algorithm 1, with autograd finding the slopes by v and by alpha of the mixture's loss."""
    shared = params_of(model)
    own: dict[str, tuple[State, Tensor]] = {}
    for asked in log.rounds:
        states = []
        for client, batches in asked.items():
            w = dict(shared)
            v, a = own.get(client, (dict(shared), torch.tensor(alpha, dtype=torch.float64)))
            for x, y in batches:
                leaf_v = {k: t.clone().requires_grad_() for k, t in v.items()}
                leaf_a = a.clone().requires_grad_()
                mixture = {k: leaf_a * leaf_v[k] + (1 - leaf_a) * w[k] for k in w}
                loss(torch.func.functional_call(model, mixture, (x,)), y).backward()
                g = grads_of(with_state(model, w), (x, y), loss)
                w = {k: w[k] - lr * g[k] for k in w}
                v = {k: v[k] - lr * leaf_v[k].grad for k in v}
                a = torch.clamp(a - lr * leaf_a.grad, 0, 1)
            own[client] = (v, a)
            states.append(w)
        shared = average(states, [log.size(c) for c in asked], shared)
    predictions = {}
    for client in log.test:
        v, a = own.get(client, (shared, torch.tensor(alpha)))
        predictions[client] = infer(with_state(model, {k: a * v[k] + (1 - a) * shared[k] for k in v}), log.test[client][0])
    return Outcome(shared, {c: {"v": v, "alpha": a} for c, (v, a) in own.items()}, predictions)


def pfedme(
    model: nn.Module, log: Log, loss: Loss, *, lr: float, lam: float, inner_steps: int, inner_lr: float, beta: float
) -> Outcome:
    """Dinh et al. 2020, algorithm 1; the inner problem by gradient descent from w."""
    shared = copy.deepcopy(model)
    thetas: dict[str, State] = {}
    for asked in log.rounds:
        states = []
        for client, batches in asked.items():
            w = copy.deepcopy(shared)
            for batch in batches:
                theta = copy.deepcopy(w)
                train_sgd(theta, [batch] * inner_steps, inner_lr, loss, extra=near(params_of(w), lam))
                with torch.no_grad():
                    for p, q in zip(w.parameters(), theta.parameters(), strict=True):
                        p -= lr * lam * (p - q)
                thetas[client] = state_of(theta)
            states.append(state_of(w))
        x = state_of(shared)
        mean = average(states, [log.size(c) for c in asked], x)
        shared = with_state(shared, {k: (1 - beta) * x[k] + beta * mean[k] for k in x})
    predictions = {c: infer(with_state(model, thetas.get(c, state_of(shared))), log.test[c][0]) for c in log.test}
    return Outcome(state_of(shared), thetas, predictions)


def fedrod(model: nn.Module, log: Log, loss: Loss, *, lr: float, classes: int) -> Outcome:
    """Chen and Chao 2022: balanced softmax for the shared model, a second head for the client's own loss."""
    shared = copy.deepcopy(model)
    empty = copy.deepcopy(model.head)
    nn.init.zeros_(empty.weight)
    nn.init.zeros_(empty.bias)
    heads: dict[str, nn.Module] = {}
    for asked in log.rounds:
        states = []
        for client, batches in asked.items():
            labels = log.train[client][1]
            share = torch.tensor([float((labels == k).double().mean()) for k in range(classes)], dtype=torch.float64)
            bonus = torch.log(torch.clamp(share, min=1e-9))
            g, h = copy.deepcopy(shared), heads.setdefault(client, copy.deepcopy(empty))
            g.train()
            optimizer = torch.optim.SGD([*g.parameters(), *h.parameters()], lr=lr)
            for x, y in batches:
                optimizer.zero_grad()
                z = g.body(x)
                logits = g.head(z)
                (loss(logits + bonus, y) + loss(logits.detach() + h(z.detach()), y)).backward()
                optimizer.step()
            states.append(state_of(g))
        shared = with_state(shared, average(states, [log.size(c) for c in asked], state_of(shared)))
    predictions = {}
    for client in log.test:
        z = infer(shared.body, log.test[client][0])
        predictions[client] = infer(shared.head, z) + infer(heads.get(client, empty), z)
    personal = {c: {f"head.{k}": v for k, v in state_of(h).items()} for c, h in heads.items()}
    return Outcome(state_of(shared), personal, predictions)


# ---- something clever at the download ----


def fedala(model: nn.Module, log: Log, loss: Loss, *, lr: float, weight_lr: float, weight_steps: int) -> Outcome:
    """Zhang et al. 2023, algorithm 1 on the head: element-wise weights of the update, learned and clipped to [0, 1]."""
    shared = copy.deepcopy(model)
    own: dict[str, tuple[State, State]] = {}

    def initialize(client: str, batches: Sequence[Pair]) -> tuple[nn.Module, State]:
        new = state_of(shared)
        old, weights = own.get(client, (new, {k: torch.ones_like(new[k]) for k in new if is_head(k)}))
        for batch in [*batches[:weight_steps], None]:
            blend = {k: old[k] + (new[k] - old[k]) * weights[k] if k in weights else new[k] for k in new}
            blended = with_state(model, blend)
            if batch is not None:
                g = grads_of(copy.deepcopy(blended), batch, loss)
                weights = {k: torch.clamp(w - weight_lr * g[k] * (new[k] - old[k]), 0, 1) for k, w in weights.items()}
        return blended, weights

    for asked in log.rounds:
        states = []
        for client, batches in asked.items():
            start, weights = initialize(client, batches)
            after = state_of(train_sgd(start, batches, lr, loss))
            own[client] = (after, weights)
            states.append(after)
        shared = with_state(shared, average(states, [log.size(c) for c in asked], state_of(shared)))
    predictions = {c: infer(initialize(c, log.adapting[c])[0], log.test[c][0]) for c in log.test}
    personal = {c: {"model": m, "weights": w} for c, (m, w) in own.items()}
    return Outcome(state_of(shared), personal, predictions)


def ifca(model: nn.Module, log: Log, loss: Loss, *, lr: float, centers: Sequence[State]) -> Outcome:
    """Ghosh et al. 2020, algorithm 1 with model averaging."""
    models = [with_state(model, dict(center)) for center in centers]

    def best(client: str) -> int:
        x, y = log.train[client]
        losses = [float(loss(infer(m, x), y)) for m in models]
        return losses.index(min(losses))

    picks: dict[str, int] = {}
    for asked in log.rounds:
        groups: dict[int, list[tuple[State, int]]] = {}
        for client, batches in asked.items():
            picks[client] = best(client)
            after = state_of(train_sgd(copy.deepcopy(models[picks[client]]), batches, lr, loss))
            groups.setdefault(picks[client], []).append((after, log.size(client)))
        for j, members in groups.items():
            models[j] = with_state(model, average([s for s, _ in members], [n for _, n in members], state_of(models[j])))
    states = [state_of(m) for m in models]
    server = {k: torch.stack([s[k] for s in states]) for k in states[0]}
    personal = {c: {"pick": F.one_hot(torch.tensor(j), len(models))} for c, j in picks.items()}
    return Outcome(server, personal, {c: infer(models[best(c)], log.test[c][0]) for c in log.test})


# ---- statistics of features ----


def fedproto(model: nn.Module, log: Log, loss: Loss, *, lr: float, lam: float, classes: int) -> Outcome:
    """Tan et al. 2022, algorithm 1, with each example counting once in a prototype."""
    models: dict[str, nn.Module] = {}
    prototypes: dict[int, Tensor] = {}
    for asked in log.rounds:
        features: dict[int, list[Tensor]] = {}
        for client, batches in asked.items():
            mine = models.setdefault(client, copy.deepcopy(model))
            mine.train()
            optimizer = torch.optim.SGD(mine.parameters(), lr=lr)
            for x, y in batches:
                optimizer.zero_grad()
                z = mine.body(x)
                apart = sum(
                    (F.mse_loss(z[i], prototypes[int(k)]) for i, k in enumerate(y) if int(k) in prototypes), torch.zeros(())
                )
                (loss(mine.head(z), y) + lam * apart / len(y)).backward()
                optimizer.step()
            x, y = log.train[client]
            for z, k in zip(infer(mine.body, x), y, strict=True):
                features.setdefault(int(k), []).append(z)
        prototypes |= {k: torch.stack(zs).mean(0) for k, zs in features.items()}
    width = next(iter(prototypes.values())).shape[0]
    server = {
        "prototypes": torch.stack([prototypes.get(k, torch.zeros(width, dtype=torch.float64)) for k in range(classes)]),
        "known": torch.tensor([float(k in prototypes) for k in range(classes)], dtype=torch.float64),
    }
    predictions = {}
    for client in log.test:
        z = infer(models.get(client, model).body, log.test[client][0])
        far = torch.stack([-((z - server["prototypes"][k]) ** 2).sum(1) for k in range(classes)], 1)
        worst = far.min(1, keepdim=True).values - 1
        predictions[client] = torch.where(server["known"] > 0, far, worst)
    return Outcome(server, {c: state_of(m) for c, m in models.items()}, predictions)


@dataclass
class Bias:
    """FedDBE's own part of a client: the bias of its features, and their running mean."""

    bias: Tensor
    running: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.running = self.bias.clone()


def feddbe(model: nn.Module, log: Log, loss: Loss, *, lr: float, kappa: float, momentum: float) -> Outcome:
    """Zhang et al. 2023, sections 4.2 and 4.3; the consensus is the mean feature of the first round's rows."""
    shared = copy.deepcopy(model)
    empty = torch.zeros(model.head.in_features, dtype=torch.float64)
    own: dict[str, Bias] = {}
    consensus: Tensor | None = None
    for asked in log.rounds:
        states, rows = [], []
        for client, batches in asked.items():
            rows.append(infer(shared.body, log.train[client][0]))
            mine, part = copy.deepcopy(shared).train(), own.setdefault(client, Bias(empty))
            part.bias = part.bias.clone().requires_grad_()
            optimizer = torch.optim.SGD([*mine.parameters(), part.bias], lr=lr)
            for x, y in batches:
                optimizer.zero_grad()
                z = mine.body(x)
                running = (1 - momentum) * part.running + momentum * z.mean(0)
                value = loss(mine.head(z + part.bias), y)
                if consensus is not None:
                    value = value + kappa * 0.5 * ((running - consensus) ** 2).mean()
                value.backward()
                optimizer.step()
                part.running = running.detach()
            part.bias = part.bias.detach()
            states.append(state_of(mine))
        if consensus is None:
            consensus = torch.cat(rows).mean(0)
        shared = with_state(shared, average(states, [log.size(c) for c in asked], state_of(shared)))
    server = {"model": state_of(shared), "consensus": consensus, "known": torch.ones((), dtype=torch.float64)}
    personal = {c: {"dbe.bias": p.bias, "dbe.running": p.running} for c, p in own.items()}
    predictions = {}
    for client in log.test:
        z = infer(shared.body, log.test[client][0])
        predictions[client] = infer(shared.head, z + (own[client].bias if client in own else 0))
    return Outcome(server, personal, predictions)
