"""The node: one machine that holds data, trains on it, and lets nothing out but through its guard."""
