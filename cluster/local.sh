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
    _wait_for "$_folder/head.log"
    for _node in $(seq "$_workers"); do
        ray start --address "$RAY_ADDRESS" --num-cpus "$_cpus" --block > "$_folder/node-$_node.log" 2>&1 &
        echo $! >> "$_folder/pids"
        # One after another: two nodes that start at once on one machine are taken for each other.
        _wait_for "$_folder/node-$_node.log"
    done
    echo "Ray at $RAY_ADDRESS with $_workers nodes of $_cpus CPUs; logs in $_folder"
}

_wait_for() {
    for _ in $(seq 300); do
        grep -q 'Ray runtime started' "$1" && return
        sleep 0.2
    done
    echo "Ray did not start within a minute; see $1" >&2
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
