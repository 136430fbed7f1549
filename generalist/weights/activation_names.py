"""The names that published files have for activations."""

PLAIN = {
    "gelu": "exact_gelu",
    "gelu_python": "exact_gelu",
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate"), "gelu"),
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "squared_relu",
    "silu": "silu",
    "swish": "silu",
}
"""Their names → ours."""
_GATES = {
    "exact_gelu": "exact_geglu",
    "gelu": "geglu",
    "quick_gelu": "quick_geglu",
    "relu": "reglu",
    "squared_relu": "squared_reglu",
    "silu": "swiglu",
}
GATED = {theirs: _GATES[ours] for theirs, ours in PLAIN.items()}
"""Their names, of the gate of a feed-forward → ours."""
