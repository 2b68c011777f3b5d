"""FX graph mode: quantizing a graph by its ops."""
