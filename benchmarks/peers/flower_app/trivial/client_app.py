"""Answers with a trivial step, whatever came."""

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    """The same step as `benchmarks.trivial.trivial`."""
    arrays = message.content["arrays"].to_numpy_ndarrays()
    stepped = ArrayRecord([a + (a * 2**-10 + 2**-10) for a in arrays])
    return Message(content=RecordDict({"arrays": stepped, "metrics": MetricRecord({"num-examples": 10})}), reply_to=message)
