"""Generating, in a worker: decoders that go on by one token, with a cache or without, and slots that draw from them."""
