"""Prepare a store on the GPUs of one host with dask-cuda. Not run by this project, which has it in no environment.

    python local_cuda.py SOURCE STORE --split train --sam sam_vit_h

All arguments go to `samdeblur-prep run`, which does the same without dask-cuda; this is for those who want each process
on the cores near its GPU. Needs an environment of its own: pip install "samdeblur[cuda]", without constraints.txt.
"""

from __future__ import annotations

import subprocess
import sys

from dask_cuda import LocalCUDACluster

MEMORY = "32GB"  # of each worker process

if __name__ == "__main__":
    with LocalCUDACluster(threads_per_worker=2, memory_limit=MEMORY) as cluster:  # one process per GPU
        command = [sys.executable, "-m", "samdeblur.cli.prep", "run", *sys.argv[1:]]
        sys.exit(subprocess.call([*command, "--scheduler", cluster.scheduler_address]))
