#!/usr/bin/env bash
# A run with several processes on this host:
#
#   launch/local.sh 2 --config-name train_tiny_action parallel.data=2 global_packs=2
#
# `python run.py` does the same by itself; this is for machines whose settings are in launch/env (CLUSTER=h100).
set -euo pipefail
if (($# < 2)); then
    echo "usage: launch/local.sh PROCESSES --config-name NAME key=value ..." >&2
    exit 2
fi
PROCESSES=$1 NODES=1 MASTER=127.0.0.1 PORT=0 exec "$(dirname "$0")/torchrun.sh" "${@:2}"
