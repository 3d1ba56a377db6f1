"""Branch merging: convolutions whose sum, or whose sequence, is one convolution."""
