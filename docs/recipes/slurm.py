"""Prepare a store on a SLURM cluster: one job per GPU, each with one worker, and another when its time is up.

    python slurm.py --jobs 8 --queue gpu -- SOURCE STORE --split train --sam sam_vit_h

What follows `--` goes to `samdeblur-prep run`, whose exit code this script ends with; its SLURM jobs end with it. Run
it where jobs are submitted from and the nodes can connect to, in a terminal that stays or in a long SLURM job without a
GPU. The environment it runs in is the workers', too. Needs pip install "samdeblur[slurm]".
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys

from dask_jobqueue import SLURMCluster

REPLACE = 30.0  # seconds between two looks for jobs that have ended
ENVIRONMENT = {
    "OMP_NUM_THREADS": 1,
    "MKL_NUM_THREADS": 1,
    "OPENBLAS_NUM_THREADS": 1,
    "OPENCV_FOR_THREADS_NUM": 1,
    # Dask sets this variable for its workers; it makes them map and unmap every large array, which is slow.
    "DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON": "\"{'MALLOC_TRIM_THRESHOLD_': None}\"",
    # Imported before a worker joins, not when it gets its first block.
    "DASK_DISTRIBUTED__WORKER__PRELOAD": "\"['samdeblur.pipeline.job.worker']\"",
}


def main() -> int:
    options = parse()
    cluster = SLURMCluster(
        queue=options.queue,
        account=options.account,
        walltime=options.walltime,
        job_extra_directives=[] if options.gres == "none" else [f"--gres={options.gres}"],
        job_cpu=options.cpus,
        memory=options.memory,
        processes=1,
        cores=1 if options.gres == "none" else 2,  # threads: one uses the GPU while the other writes
        interface=options.interface,
        worker_extra_args=["--lifetime", options.lifetime, "--lifetime-stagger", options.lifetime_stagger],
        job_script_prologue=[f"export {name}={value}" for name, value in ENVIRONMENT.items()],
        log_directory=options.logs,
        scheduler_options={"dashboard_address": ":0"},
    )
    with cluster:
        print(cluster.job_script())
        cluster.scale(jobs=options.jobs)
        command = [sys.executable, "-m", "samdeblur.cli.prep", "run", *options.run]
        job = subprocess.Popen([*command, "--scheduler", cluster.scheduler_address])
        signal.signal(signal.SIGTERM, lambda number, frame: job.terminate())
        while True:
            try:
                return job.wait(timeout=REPLACE)
            except subprocess.TimeoutExpired:
                cluster.scale(jobs=options.jobs)  # submits others for those that have ended
            except KeyboardInterrupt:  # the preparation was interrupted, too, and ends by itself
                continue


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=4, help="SLURM jobs at a time, each with one worker")
    parser.add_argument("--queue", help="partition")
    parser.add_argument("--account")
    parser.add_argument("--walltime", default="01:00:00", help="of a job; the preparation may take much longer")
    parser.add_argument(
        "--lifetime", default="55m", help="after which a worker leaves by itself; less than the walltime"
    )
    parser.add_argument(
        "--lifetime-stagger", default="4m", help="by which lifetimes differ, so that not all leave at once"
    )
    parser.add_argument("--gres", default="gpu:1", help="what a job asks for; none for workers without a GPU")
    parser.add_argument("--cpus", type=int, default=4, help="cores of a job")
    parser.add_argument("--memory", default="32GB", help="of a job, and so of its worker")
    parser.add_argument("--interface", help="network interface by which nodes connect, such as ib0")
    parser.add_argument("--logs", default="slurm-logs", help="folder for what the jobs write")
    parser.add_argument("run", nargs="+", metavar="-- SOURCE STORE ...", help="arguments of samdeblur-prep run")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
