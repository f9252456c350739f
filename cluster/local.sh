#!/usr/bin/env bash
# A Ray cluster of separate processes on this machine: a head without CPUs and WORKERS nodes of CPUS each.
# For one machine with several GPUs, and to see a search on a cluster before a real one is rented.
#
#   source cluster/local.sh start     # sets RAY_ADDRESS and RAY_AUTH_TOKEN, which later commands need
#   raprune search --address "$RAY_ADDRESS" --budget-flops 0.3
#   source cluster/local.sh stop      # ends the processes that start began, and no others
#
#   DASHBOARD=1 source cluster/local.sh start    # sets RAY_API_SERVER_ADDRESS too, on loopback
#   raprune submit job.toml --address "$RAY_API_SERVER_ADDRESS" --output /shared/run
#
# May be set before: WORKERS (2), CPUS (1) and GPUS (0) of a worker, PORT (6399; the next one is taken too),
# DASHBOARD (0), DASHBOARD_PORT (8265), FOLDER (/tmp/raprune-cluster; at most 40 characters, for sockets lie below it),
# RAY_AUTH_TOKEN (made up).
# FOLDER/pids holds the processes' ids, the head's first; FOLDER/*.log what they said.

_workers=${WORKERS:-2} _cpus=${CPUS:-1} _gpus=${GPUS:-0} _port=${PORT:-6399} _folder=${FOLDER:-/tmp/raprune-cluster}
_dashboard=${DASHBOARD:-0} _dashboard_port=${DASHBOARD_PORT:-8265}

_start() {
    if _running; then
        echo "A cluster of $_folder runs: 'source cluster/local.sh stop' ends it; FOLDER and PORT begin another." >&2
        return 1
    fi
    mkdir -p "$_folder" && : > "$_folder/pids" || return 1
    # With no time to drain: what stops here has nobody to hand its work to.
    export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0
    export RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$(python -c 'import secrets; print(secrets.token_hex(32))')}
    export RAY_ADDRESS=127.0.0.1:$_port
    _head=(--head --port "$_port" --ray-client-server-port $((_port + 1)) --temp-dir "$_folder/ray")
    _head+=(--num-cpus 0 --num-gpus 0)
    if [ "$_dashboard" = 1 ]; then
        _head+=(--include-dashboard true --dashboard-host 127.0.0.1 --dashboard-port "$_dashboard_port")
        export RAY_API_SERVER_ADDRESS=http://127.0.0.1:$_dashboard_port
    else
        _head+=(--include-dashboard false)
    fi
    _node head "${_head[@]}" || return 1
    for _number in $(seq "$_workers"); do
        # Each worker its own GPUs: Ray would give the first ones of the machine to every node.
        _first=$(((_number - 1) * _gpus))
        # One after another: two nodes that start at once on one machine are taken for each other.
        # And its own folder: nodes that share one unpack a job's files over each other, below the feet of its driver.
        CUDA_VISIBLE_DEVICES=$(seq -s , "$_first" $((_first + _gpus - 1))) \
            _node "node-$_number" --address "$RAY_ADDRESS" --temp-dir "$_folder/n$_number" \
            --num-cpus "$_cpus" --num-gpus "$_gpus" || return 1
    done
    echo "Ray at $RAY_ADDRESS with $_workers workers of $_cpus CPUs and $_gpus GPUs; logs in $_folder"
    if [ "$_dashboard" = 1 ]; then
        # shellcheck disable=SC2016  # The name is meant: the token itself belongs into no terminal's history.
        echo "Dashboard at $RAY_API_SERVER_ADDRESS; it asks for the token, which is in RAY_AUTH_TOKEN"
    fi
}

# A node of the name $1 with the arguments that follow, once it has joined; else everything is stopped again.
_node() {
    _log=$_folder/$1.log
    : > "$_log"
    # --block keeps a node's processes under one that we know the id of. Port 0: any free one, for others may run here.
    ray start --block --dashboard-agent-listen-port 0 "${@:2}" > "$_log" 2>&1 < /dev/null &
    echo $! >> "$_folder/pids"
    for _ in $(seq 450); do
        grep -q 'Ray runtime started' "$_log" && return
        # Not _alive: before it becomes Ray, the child is a shell of this file's.
        kill -0 $! 2> /dev/null || break
        sleep 0.2
    done
    echo "Ray did not start; the end of $_log:" >&2
    tail -n 5 "$_log" >&2
    _stop
    return 1
}

_stop() {
    # The nodes first: a node whose head is gone takes a while to notice.
    for _pid in $(_pids | tac); do
        if _alive "$_pid"; then kill -TERM "$_pid"; fi
        for _ in $(seq 300); do
            _alive "$_pid" || break
            sleep 0.2
        done
        if _alive "$_pid"; then kill -KILL "$_pid"; fi
    done
    rm -f "$_folder/pids"
    unset RAY_ADDRESS RAY_API_SERVER_ADDRESS RAY_AUTH_TOKEN RAY_AUTH_MODE RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S
}

_pids() { cat "$_folder/pids" 2> /dev/null; }

# Whether $1 is the id of a running `ray start`: the file may be older than the machine's last start.
_alive() { ps -ww -o stat= -o args= -p "$1" 2> /dev/null | grep -v '^Z' | grep -q 'ray start --block'; }

_running() {
    for _pid in $(_pids); do _alive "$_pid" && return; done
    return 1
}

case "${1:-}" in
    start) _start ;;
    stop) _stop ;;
    *) echo "usage: source cluster/local.sh start|stop" >&2; false ;;
esac
