"""A data owner's node: the agent has the network, the guard decides what leaves, the trainer computes."""

__all__: list[str] = []
