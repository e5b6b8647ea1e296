#!/bin/sh
# The peers of the benchmarks, from apt: redis-server with redis-benchmark, etcd with etcdctl. Nothing is done where
# they are there already. Debian starts both as services; `systemctl disable --now redis-server etcd` ends that.
set -eu

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

have() { command -v "$1" >/dev/null 2>&1; }

wanted=
have redis-server || wanted="$wanted redis-server"
have redis-benchmark || wanted="$wanted redis-tools"
have etcd || wanted="$wanted etcd-server"
have etcdctl || wanted="$wanted etcd-client"
if [ -n "$wanted" ]; then
  as_root apt-get update -qq
  # shellcheck disable=SC2086
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $wanted
fi
