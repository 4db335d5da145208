"""Flower: `run_simulation` on Ray with one core, FedAvg, and clients as lean as can be: data and model stay loaded.

A round is from the strategy being asked for it to it being asked for the next. Whoever started this process adds up the
processor time of all processes below it.
"""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn

from benchmarks.simulation.workers.given import Given, Pipes, save

FOLDER = "FREEHOLD_BENCH_WORK"
client_app = ClientApp()


@lru_cache(maxsize=1)
def loaded(folder: str) -> tuple[Given, nn.Module, torch.optim.Optimizer]:
    """Once for each actor."""
    torch.set_num_threads(1)
    given = Given(Path(folder))
    module = given.module()
    return given, module, torch.optim.SGD(module.parameters(), lr=given.lr)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    """The client's local steps."""
    given, module, sgd = loaded(os.environ[FOLDER])
    index, client = int(message.content["config"]["index"]), int(context.node_config["partition-id"])
    arrays = message.content["arrays"].to_numpy_ndarrays()
    with torch.no_grad():
        for p, a in zip(module.parameters(), arrays, strict=True):
            p.copy_(torch.from_numpy(a))
    for x, y in given.batches(index, client):
        sgd.zero_grad()
        given.loss(module(x), y).backward()
        sgd.step()
    trained = ArrayRecord([p.detach().numpy() for p in module.parameters()])
    metrics = MetricRecord({"num-examples": given.sizes[client]})
    return Message(content=RecordDict({"arrays": trained, "metrics": metrics}), reply_to=message)


class Asked(FedAvg):
    """FedAvg that waits for a line before each round, and starts each from the same model."""

    def __init__(self, pipes: Pipes, initial: ArrayRecord, names: list[str], clients: int) -> None:
        super().__init__(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
        self.pipes, self.initial, self.names = pipes, initial, names
        self.running = False
        self.latest: ArrayRecord | None = None

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid):
        """Say that the round before is over, and begin the one that is asked for."""
        self.latest = arrays
        if self.running:
            self.pipes.say(done=True)
        while (asked := self.pipes.asked()) is not None and "outcome" in asked:
            pairs = zip(self.names, self.latest.to_numpy_ndarrays(), self.initial.to_numpy_ndarrays(), strict=True)
            save(asked["outcome"], {k: torch.from_numpy(np.asarray(a) - b) for k, a, b in pairs})
            self.pipes.say()
        if asked is None:
            raise SystemExit
        self.running = True
        config["index"] = int(asked["round"])
        return super().configure_train(server_round, self.initial, config, grid)


def main() -> None:
    """Rounds until there are no more to run."""
    pipes = Pipes()
    given = Given(pipes.folder)
    os.environ[FOLDER] = str(pipes.folder)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    names = list(dict(given.module().named_parameters()))
    initial = ArrayRecord([given.init[name].numpy() for name in names])
    server_app = ServerApp()

    @server_app.main()
    def serve(grid: Grid, context: Context) -> None:
        strategy = Asked(pipes, initial, names, len(given.sizes))
        pipes.say(ready=True)
        strategy.start(grid=grid, initial_arrays=initial, num_rounds=10**6)

    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=len(given.sizes),
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": 1, "include_dashboard": False},
        },
    )
