"""A task: the learning problem. Where the model starts, its loss, its parts, and how it is measured."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from freehold.core.cohort.factors import Factors, dense
from freehold.core.forward import Forward
from freehold.core.objective import Objective, Privacy
from freehold.core.seated import ModuleLosses, Seated, Watch
from freehold.core.steps import Batch
from freehold.core.trees import State
from freehold.errors import TaskError

Losses = Callable[[Tensor, Tensor], Tensor]
"""(outputs [B, ...], y [B, ...]) -> loss of each example [B]."""

Sums = Mapping[str, Tensor]
"""What an evaluation adds up: counts and sums, so that those of several clients can be added."""


class Seen(NamedTuple):
    """What a pass through a model shows."""

    outputs: Tensor
    """[B, ...]: logits, or values."""
    features: Tensor
    """[B, F]: what the head is given."""
    buffers: State
    """The buffers as this pass leaves them."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A learning problem, ready to be trained by any algorithm."""

    init: State
    """Where the model starts: parameters and buffers by name."""
    objective: Objective
    """The loss; buffers in it are refreshed, not trained."""
    run: Callable[..., Seen]
    """`run(state, batch, training=False, bend=None)`: a pass through the model; `bend` changes the features on their way
    to the head (the features that it returns are those before)."""
    top: Callable[[State, Tensor], Tensor]
    """The head alone: (state, features [B, F]) -> outputs [B, ...]."""
    losses: Losses
    """The criterion, per example."""
    head: Callable[[str], bool]
    """Whether a name belongs to the head, the last layer."""
    is_norm: Callable[[str], bool]
    """Whether a name belongs to a normalization layer."""
    features: int
    """Width F of the features, or 0 where the head is not a linear layer."""
    classes: int
    """Number of classes K; 0: regression."""
    measure: Callable[[Tensor, Tensor], Sums]
    """(outputs, y) -> sums."""

    def predict(self, state: State, x: Tensor) -> Tensor:
        """The outputs of a trained model [B, ...]."""
        return self.run(state, {"x": x}).outputs

    @property
    def parameters(self) -> State:
        """The part of `init` that is trained."""
        return {k: v for k, v in self.init.items() if k not in self.objective.buffers}


def task_from(
    module: nn.Module,
    loss: Losses | nn.Module,
    *,
    head: str | None = None,
    classes: int = 0,
    measure: Callable[[Tensor, Tensor], Sums] | None = None,
) -> Task:
    """A task from any module and loss.

    `loss` is a loss module or function of (outputs, y) that knows `reduction`, or one that returns a loss per example.
    `head` names the submodule that makes outputs from features; by default the last one that has parameters. Parameters that
    require no gradient are not trained. BatchNorm and dropout work on every engine, the one without padding, the other by keys.
    """
    module = copy.deepcopy(module)
    init = {k: v.detach().clone() for k, v in (*module.named_parameters(), *module.named_buffers())}
    buffers = frozenset(k for k, _ in module.named_buffers())
    head_name = head if head is not None else _last_layer(module)
    try:
        top = module.get_submodule(head_name)
    except AttributeError:
        known = [n for n, m in module.named_modules() if n and any(True for _ in m.parameters())]
        raise TaskError(f"The model has no part named {head_name!r}.", hint=f"Name one of: {', '.join(known)}.") from None
    first = {id(t): k for k, t in (*module.named_parameters(), *module.named_buffers())}  # of tied tensors, the name in a state
    inside = (*top.named_parameters(remove_duplicate=False), *top.named_buffers(remove_duplicate=False))
    of_head = {k: first[id(t)] for k, t in inside}
    criterion = _per_example(loss)
    watch = Watch(top)
    seated = Seated(module)

    def run(state: State, batch: Batch, training: bool = False, bend: Callable[[Tensor], Tensor] | None = None) -> Seen:
        plain = dense(state) if any(isinstance(t, Factors) for t in state.values()) else state
        live = {k: v.clone() if k in buffers else v for k, v in plain.items()} if training and buffers else dict(plain)
        seated.mode(training)
        watch.bend, watch.features = bend, None
        if training:
            with Forward(batch) as forward:
                outputs = seated(live, batch["x"])
            watch.touched = forward.touched
            seen = {k: forward.refreshed.get(id(live[k]), live[k]) for k in buffers if k in live}
        else:
            outputs = seated(live, batch["x"])
            seen = {k: live[k] for k in buffers if k in live}
        if watch.features is None:
            raise TaskError(
                f"The model's forward does not call its head {head_name!r}.",
                hint="Name the layer that makes the outputs: head=….",
            )
        return Seen(outputs, watch.features, seen)

    def top_alone(state: State, features: Tensor) -> Tensor:
        watch.bend, watch.features = None, None
        if missing := [name for name in of_head.values() if name not in state]:
            raise TaskError(
                f"The head {head_name!r} shares {missing[0]} with another layer, so it cannot stand alone.",
                hint="Choose an algorithm that needs no head of its own, e.g. fedavg or ditto, or do not tie the head.",
            )
        inner = {own: dense(state[name]) for own, name in of_head.items()}
        outputs: Tensor = functional_call(top, inner, (features,))
        return outputs

    def is_head(name: str) -> bool:
        return not head_name or name.startswith(head_name + ".")

    norms = tuple(f"{n}." for n, m in module.named_modules() if n and isinstance(m, _NORMS))
    return Task(
        init=init,
        objective=Objective(losses=ModuleLosses(run, criterion, seated, watch), buffers=buffers | _frozen(module)),
        run=run,
        top=top_alone,
        losses=criterion,
        head=is_head,
        is_norm=lambda name: name.startswith(norms) if norms else False,
        features=top.in_features if isinstance(top, nn.Linear) else 0,
        classes=classes,
        measure=measure
        or (partial(class_sums, classes=classes, losses=criterion) if classes else partial(value_sums, losses=criterion)),
    )


def private(task: Task, privacy: Privacy) -> Task:
    """The same task under record-level privacy: examples are touched by clipped, noised gradients only."""
    return replace(task, objective=replace(task.objective, private=privacy))


def hits(outputs: Tensor, y: Tensor) -> Tensor:
    """[B] bool: whether each example is classified right."""
    said = outputs.argmax(1) if outputs.dim() > 1 and outputs.shape[1] > 1 else (outputs.reshape(len(outputs)) > 0).long()
    return said == y.long()


def class_sums(outputs: Tensor, y: Tensor, *, classes: int, losses: Losses) -> Sums:
    """Sums for classification: `count`, `correct`, `loss` and, per class [K], `count_by_class` and `correct_by_class`."""
    of_class = torch.nn.functional.one_hot(y.long(), classes).double()
    right = hits(outputs, y).double()
    return {
        "count": torch.tensor(float(len(y)), dtype=torch.float64),
        "correct": right.sum(),
        "loss": losses(outputs, y).double().sum(),
        "count_by_class": of_class.sum(0),
        "correct_by_class": (of_class * right[:, None]).sum(0),
    }


def value_sums(outputs: Tensor, y: Tensor, *, losses: Losses) -> Sums:
    """Sums for regression: `count`, `loss`, `squared_error`, `absolute_error`, `target`, `target_squared`."""
    error, truth = (outputs.reshape(y.shape) - y).double(), y.double()
    return {
        "count": torch.tensor(float(len(y)), dtype=torch.float64),
        "loss": losses(outputs, y).double().sum(),
        "squared_error": (error**2).sum(),
        "absolute_error": error.abs().sum(),
        "target": truth.sum(),
        "target_squared": (truth**2).sum(),
    }


_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LocalResponseNorm,
)


def _frozen(module: nn.Module) -> frozenset[str]:
    """The names of the parameters that are not to be trained; TaskError if all are."""
    frozen = {name: not parameter.requires_grad for name, parameter in module.named_parameters()}
    if frozen and all(frozen.values()):
        raise TaskError(
            "Every parameter of the model is frozen, so there is nothing to train.", hint="Set requires_grad on some of them."
        )
    return frozenset(name for name, is_frozen in frozen.items() if is_frozen)


def _last_layer(module: nn.Module) -> str:
    named: list[str] = [n for n, m in module.named_modules() if any(True for _ in m.parameters(recurse=False))]
    if not named:
        raise TaskError(
            "The model has no parameters, so there is nothing to train.", hint="Give a module with at least one layer."
        )
    return named[-1]


def _per_example(loss: Losses | nn.Module) -> Losses:
    """The same loss without its reduction, its other axes averaged: [B]."""
    bare: Callable[..., Tensor] = loss
    plain: Callable[..., Tensor] = loss
    if isinstance(loss, nn.Module) and hasattr(loss, "reduction"):
        module = copy.deepcopy(loss)
        setattr(module, "reduction", "none")  # noqa: B010  (nn.Module's own attribute types know tensors and modules only)
        bare = module
    elif not isinstance(loss, nn.Module) and "reduction" in inspect.signature(loss).parameters:
        bare = partial(plain, reduction="none")

    def losses(outputs: Tensor, y: Tensor) -> Tensor:
        if bare is not plain:  # a loss of torch's own, which would broadcast [B, 1] and [B] to [B, B]
            if outputs.dim() == y.dim() + 1 and outputs.shape[-1] == 1:
                outputs = outputs.squeeze(-1)
            if outputs.shape == y.shape:
                y = y.to(outputs.dtype)  # a label that is compared with a logit is a number
        value = bare(outputs, y)
        if value.dim() == 0:
            raise TaskError(
                "The loss is one number for the whole batch, but one per example [B] is needed, so that padding can be left out.",
                hint="Use a loss that knows reduction='none', or return one value per example.",
            )
        return value if value.dim() == 1 else value.flatten(1).mean(1)

    return losses
