"""FedAvg for some rounds; when each of them began goes to a file."""

import json
import time

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


class Timed(FedAvg):
    """Notes when it is asked whom to ask."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.began = []

    def configure_train(self, *arguments, **named):
        """Of a round."""
        self.began.append(time.time())
        return super().configure_train(*arguments, **named)


@app.main()
def main(grid, context):
    """The whole run."""
    told = context.run_config
    clients = int(told["clients"])
    each = int(told["bytes"]) // 4 // int(told["tensors"])
    initial = ArrayRecord([np.zeros(each, np.float32) for _ in range(int(told["tensors"]))])
    strategy = Timed(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
    strategy.start(grid=grid, initial_arrays=initial, num_rounds=int(told["rounds"]))
    with open(str(told["out"]), "w", encoding="utf-8") as file:
        json.dump({"began": [*strategy.began, time.time()]}, file)
