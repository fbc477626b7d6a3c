"""Graphs of operations in torch: the author's export, and the interpreter that runs what strangers wrote."""
