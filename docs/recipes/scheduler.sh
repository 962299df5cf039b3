#!/usr/bin/env bash
# A Dask scheduler for workers and jobs on several hosts; started again when it dies, until this script is stopped.
#
#   scheduler.sh SCHEDULER_FILE [options of `dask scheduler`, such as --interface ib0]
#
# SCHEDULER_FILE lies on the shared disk: workers and jobs read the address from it. It goes when the scheduler is stopped.
set -u
file=$1
shift

trap 'kill $(jobs -p) 2>/dev/null; wait; rm -f "$file"; exit' INT TERM

while true; do
    dask scheduler --scheduler-file "$file" "$@" &
    wait $! && break # it was stopped, and not killed
    sleep 1
done
