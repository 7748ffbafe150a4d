"""Elastic Distributed Inference, a room with all layers: models with a kernel, a program of users that answers texts.

A task comes in at `api`; `usecases/ask_kernels.py` looks whether its model is started and hands it to `engine`, whose
pool queues it and sends it, with others, to a kernel: a process that the programs in `worker` start, watch and end.
The output goes back the same way. `domain` says what models and profiles may be, `storage` has their rows and files,
and the loop of `usecases/run_kernels.py` has pools made and drained. The service uses `wiring` and `settings` alone.
"""
