"""A model behind FastAPI on uvicorn, as most who serve one begin. Prints its port.

`python serving_fastapi.py SPEC WEIGHTS`
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI

from celluler.engines.load import load_model
from celluler.models.spec import parse_spec


def main() -> None:
    torch.set_num_threads(1)
    spec, weights = (Path(one) for one in sys.argv[1:])
    predictor = load_model(parse_spec(spec.read_bytes()), weights).predictor()
    predictor.warm_up()
    app = FastAPI()

    @app.post("/predict")
    async def predict(body: dict[str, Any]) -> dict[str, Any]:
        return {"outputs": predictor.predict(np.array(body["inputs"], dtype=np.float32)).tolist()}

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        print(listening.getsockname()[1], flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


if __name__ == "__main__":
    main()
