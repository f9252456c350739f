#!/usr/bin/env bash
# A Ray cluster of separate processes on this machine: a head and WORKERS nodes of CPUS processors each.
#
#   source cluster/local.sh start     # sets RAY_ADDRESS and RAY_AUTH_TOKEN, which later commands need
#   raprune search --address "$RAY_ADDRESS" --budget-flops 0.3
#   source cluster/local.sh stop      # ends the processes that start began, and no others
#
# WORKERS (default 2), CPUS (default 1), PORT (default 6399) and FOLDER (default /tmp/raprune-cluster) may be set before.

_workers=${WORKERS:-2} _cpus=${CPUS:-1} _port=${PORT:-6399} _folder=${FOLDER:-/tmp/raprune-cluster}

_start() {
    mkdir -p "$_folder"
    export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
    export RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$(python -c 'import secrets; print(secrets.token_hex(32))')}
    # --block keeps each node's processes under one that we know the id of.
    ray start --head --port "$_port" --num-cpus 0 --include-dashboard false --temp-dir "$_folder/ray" --block \
        > "$_folder/head.log" 2>&1 &
    echo $! > "$_folder/pids"
    export RAY_ADDRESS=127.0.0.1:$_port
    for _ in $(seq 60); do ray status > "$_folder/status.log" 2>&1 && break; sleep 1; done
    for _node in $(seq "$_workers"); do
        ray start --address "$RAY_ADDRESS" --num-cpus "$_cpus" --block > "$_folder/node-$_node.log" 2>&1 &
        echo $! >> "$_folder/pids"
    done
    # A search takes the nodes that it finds when it begins. (A head without processors is not listed.)
    for _ in $(seq 60); do
        ray status > "$_folder/status.log" 2>&1
        [ "$(grep -c '^ 1 node_' "$_folder/status.log")" -ge "$_workers" ] && break
        sleep 1
    done
    echo "Ray at $RAY_ADDRESS with $_workers nodes of $_cpus CPUs; logs in $_folder"
}

_stop() {
    # The nodes first: a node whose head is gone takes a while to notice.
    [ -f "$_folder/pids" ] && tac "$_folder/pids" | while read -r _pid; do
        kill -TERM "$_pid" 2> /dev/null
        while kill -0 "$_pid" 2> /dev/null; do sleep 0.2; done
    done
    rm -f "$_folder/pids"
    unset RAY_ADDRESS RAY_AUTH_TOKEN RAY_AUTH_MODE
}

case "${1:-}" in
    start) _start ;;
    stop) _stop ;;
    *) echo "usage: source cluster/local.sh start|stop" >&2 ;;
esac
