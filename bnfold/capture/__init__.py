"""From a model to a graph that computes the same: a recorded run, ``torch.export``, or piece by piece."""
