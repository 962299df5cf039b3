#!/usr/bin/env bash
# The Dask workers of one host: one for each GPU, or WORKERS of them (default 1) where there is none.
#
#   workers.sh SCHEDULER_FILE MEMORY [options of `dask worker`, such as --interface ib0]
#
# MEMORY is that of one worker, such as 16GB. A worker that dies, or loses the scheduler, is started again for as long
# as SCHEDULER_FILE is there. CUDA_VISIBLE_DEVICES, if it is set, says which GPUs to use.
set -u
file=$1
memory=$2
shift 2

export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 OPENCV_FOR_THREADS_NUM=1
# Dask sets this variable for its workers; it makes them map and unmap every large array, which is slow.
export DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON="{'MALLOC_TRIM_THRESHOLD_': None}"
# Imported before a worker joins, not when it gets its first block.
export DASK_DISTRIBUTED__WORKER__PRELOAD="['samdeblur.pipeline.job.worker']"

stop='kill $(jobs -p) 2>/dev/null; wait; exit'

worker() { # GPU THREADS [options]: a worker that sees this GPU alone, or none
    trap "$stop" TERM
    while [ -e "$file" ]; do
        CUDA_VISIBLE_DEVICES=$1 dask worker --scheduler-file "$file" --death-timeout 60 \
            --nworkers 1 --nthreads "$2" --memory-limit "$memory" "${@:3}" &
        wait $!
        sleep 2
    done
}

trap "$stop" INT TERM
until [ -e "$file" ]; do sleep 1; done
gpus=${CUDA_VISIBLE_DEVICES-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null)}
if [ -n "$gpus" ]; then
    for gpu in ${gpus//,/ }; do
        worker "$gpu" 2 "$@" & # one thread uses the GPU while the other writes
    done
else
    for _ in $(seq "${WORKERS:-1}"); do
        worker "" 1 "$@" &
    done
fi
wait
