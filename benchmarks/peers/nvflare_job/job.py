"""Runs in NVFlare's own environment: `job.py export FOLDER BYTES CLIENTS ROUNDS`, or `job.py submit KIT JOB CLIENTS`."""

import sys
import time
from pathlib import Path


def export(folder, size, clients, rounds):
    """Write the job: FedAvg over zeros. One array, since NVFlare's store of NumPy models knows one."""
    import numpy as np
    from nvflare.app_common.np.recipes import NumpyFedAvgRecipe

    first = Path(folder) / "initial.npy"
    first.parent.mkdir(parents=True, exist_ok=True)
    np.save(first, np.zeros(int(size) // 4, np.float32))
    script = str(Path(__file__).with_name("step.py"))
    NumpyFedAvgRecipe(
        name="trivial", initial_ckpt=str(first), min_clients=int(clients), num_rounds=int(rounds), train_script=script
    ).export(folder)


def submit(kit, job, clients):
    """Submit it as the project's administrator, and wait until it is over."""
    from nvflare.fuel.flare_api.flare_api import new_secure_session

    deadline = time.monotonic() + 120
    while True:
        try:
            session = new_secure_session("admin@nvidia.com", kit)
            break
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)
    try:
        while len(session.get_system_info().client_info) < int(clients):
            if time.monotonic() > deadline:
                sys.exit("its clients did not register within two minutes")
            time.sleep(1)
        name = session.submit_job(job)
        session.monitor_job(name)
        status = session.get_job_meta(name).get("status")
        if status != "FINISHED:COMPLETED":
            sys.exit(f"the job ended as {status}")
    finally:
        session.close()


if __name__ == "__main__":
    {"export": export, "submit": submit}[sys.argv[1]](*sys.argv[2:])
