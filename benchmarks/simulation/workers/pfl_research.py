"""pfl-research: FederatedAveraging in its SimulatedBackend, weighted by data points, without evaluation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.common_types import Population
from pfl.context import CentralContext
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.model.pytorch import PyTorchModel
from torch import Tensor

from benchmarks.simulation.workers.given import Given, Pipes, serve


class Dealt(PyTorchTensorDataset):
    """A client's data, in the batches that everybody uses; a pass over them is all epochs."""

    def __init__(self, given: Given, index: int, client: int) -> None:
        self._dealt, self._size = given.batches(index, client), given.sizes[client]
        super().__init__(tensors=self._dealt[0], user_id=str(client))

    def __len__(self) -> int:
        return self._size

    def iter(self, batch_size: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self._dealt)


def main() -> None:
    """One round for each that is asked."""
    torch.set_num_threads(1)
    pipes = Pipes()
    given = Given(pipes.folder)
    module, clients = given.module(), len(given.sizes)
    module.loss = lambda x, y: given.loss(module.train()(x), y)
    module.metrics = lambda x, y: {}
    model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), lr=1.0))
    now, turn = [0], itertools.cycle(range(clients))
    data = FederatedDataset(lambda client: Dealt(given, now[0], client), lambda: next(turn))
    backend = SimulatedBackend(training_data=data, val_data=None, postprocessors=[WeightByDatapoints()])
    algorithm = FederatedAveraging()
    settings = NNAlgorithmParams(
        central_num_iterations=10**9, evaluation_frequency=10**9, train_cohort_size=clients, val_cohort_size=0
    )
    local = NNTrainHyperParams(local_num_epochs=1, local_learning_rate=given.lr, local_batch_size=given.told["batch"])

    def run(index: int) -> None:
        now[0] = index
        model.set_parameters(given.init)
        context = CentralContext(
            current_central_iteration=index,
            do_evaluation=False,
            cohort_size=clients,
            population=Population.TRAIN,
            algorithm_params=settings,
            model_train_params=local,
        )
        update, metrics = backend.gather_results(model=model, training_algorithm=algorithm, central_context=context)
        algorithm.process_aggregated_statistics(context, metrics, model, update)

    def outcome() -> dict[str, Tensor]:
        return {k: p.detach() - given.init[k] for k, p in module.named_parameters()}

    serve(run, outcome, pipes)
