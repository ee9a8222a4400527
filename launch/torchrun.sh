#!/usr/bin/env bash
# Start this host's processes of a run, and wait for them. Every way of starting a run on many processes ends here.
#
#   NODES=2 PROCESSES=8 MASTER=first-host launch/torchrun.sh --config-name NAME key=value ...
#
# NODES      hosts of the run, as parallel.hosts says                           (1)
# PROCESSES  processes on this host                                             (1)
# MASTER     the first host, where the others meet it                           (127.0.0.1)
# PORT       a port that is free there; 0 takes any, for a single host          (0)
# RUN_ID     tells runs apart that meet at one port                             (flagscale_vla)
# CLUSTER    settings of the machines: launch/env/CLUSTER.sh                    (none)
# PYTHON     the interpreter                                                    (.venv's, or python3)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

: "${NODES:=1}" "${PROCESSES:=1}" "${MASTER:=127.0.0.1}" "${PORT:=0}" "${RUN_ID:=flagscale_vla}"
if ((NODES > 1 && PORT == 0)); then
    echo "launch/torchrun.sh: PORT=0 is for one host, and NODES=$NODES. This would pass: PORT=29500" >&2
    exit 1
fi
if [[ -n "${CLUSTER:-}" ]]; then
    # shellcheck source=/dev/null
    source "launch/env/$CLUSTER.sh"
fi
if [[ -z "${PYTHON:-}" ]]; then
    PYTHON=$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)
fi

# An even share of the cores, which OpenMP would otherwise give to every process whole.
share=$(($(nproc) / PROCESSES))
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((share > 1 ? share : 1))}"
# After a signal the processes save and stop; this is how long they may take.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-300}"

exec "$PYTHON" -m torch.distributed.run \
    --nnodes "$NODES" --nproc-per-node "$PROCESSES" --max-restarts 0 \
    --rdzv-backend c10d --rdzv-endpoint "$MASTER:$PORT" --rdzv-id "$RUN_ID" \
    run.py "$@"
