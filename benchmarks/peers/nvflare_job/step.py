"""Answers with a trivial step, whatever came: the client's script. When each model came goes to a file of this process."""

import os
import time

import nvflare.client as flare

flare.init()
with open(os.path.join(os.environ["FREEHOLD_BENCH_OUT"], f"{os.getpid()}.times"), "w", encoding="utf-8") as times:
    while flare.is_running():
        model = flare.receive()
        if model is None:
            break
        times.write(f"{time.time()}\n")  # not print, which NVFlare replaces
        times.flush()
        stepped = {name: a + (a * 2**-10 + 2**-10) for name, a in model.params.items()}
        flare.send(flare.FLModel(params=stepped, metrics={"accuracy": 0.5}, meta={"NUM_STEPS_CURRENT_ROUND": 10}))
