"""One Transformer, one token sequence, one set of weights."""
