"""The model as a graph: capturing it, reading its nodes, asking it for facts."""
