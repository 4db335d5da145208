"""What runs in a peer's own environment: the standard library, numpy, torch and the peer, nothing of Freehold's."""
