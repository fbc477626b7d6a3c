"""The processes beside the node: one supervisor, one channel, one sandbox, and the main loops they run.

`words` and `frames` say what travels, `channel` and `supervisor` are the node's side, `child`, `serving` and
`serving_asyncio` the other side, `limits`, `sandbox`, `landlock` and `seccomp` what a process is denied.
Importing this package imports none of them: a worker must not carry trio, nor a node torch.
"""
