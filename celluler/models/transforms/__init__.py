"""What happens to raw inputs before a model and to its outputs after it, as data: `preprocess` and `postprocess`.

A document names its steps; `plan` follows one sample through each of them and says what comes out, so that a chain
that does not fit its model is refused when it is published. Steps of plain numbers run here, on NumPy; programs
(`graph`, `wasm`, `tokenizer`) are only described here and run by `celluler.engines.transforms`, in a worker. Knows no
torch.
"""
