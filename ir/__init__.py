"""The dataflow IR: types, operations, graphs, files, execution. Imports nothing of refquant."""
