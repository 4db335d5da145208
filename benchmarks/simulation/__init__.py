"""Speed of the simulator: the same work on ours, on a plain loop, by hand and on peers, side by side in one run."""
