#!/usr/bin/env bash
# A SLURM of two nodes on this machine, on loopback, without systemd: cluster.sh up DIR [PORT] | cluster.sh down DIR
# Needs root and: apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge
# Then: export SLURM_CONF=DIR/slurm.conf PATH=<this folder>/bin:$PATH (bin/sacct stands in for the accounting data base)
set -eu
base=$2
here=$(cd "$(dirname "$0")" && pwd)

down() {
    for name in slurmd-n1 slurmd-n2 slurmctld munged; do
        file=$base/run/$name.pid
        if [ -f "$file" ]; then kill "$(cat "$file")" 2>/dev/null || true; fi
    done
}

up() {
    port=${3:-16817}
    mkdir -p "$base"/{state,log,run,spool/n1,spool/n2}
    sed -e "s#@BASE@#$base#g" -e "s#@HOST@#$(hostname)#g" -e "s#@CTLD@#$port#" -e "s#@SLURMD@#$((port + 1))#" \
        -e "s#@NODES@#$((port + 11))-$((port + 12))#" "$here/slurm.conf.in" > "$base/slurm.conf"
    for device in null zero full urandom; do # GPUs to be asked for, not to be used
        echo "NodeName=n[1-2] Name=gpu File=/dev/$device"
    done > "$base/gres.conf"
    export SLURM_CONF=$base/slurm.conf
    head -c 1024 /dev/urandom > "$base/munge.key"
    chmod 400 "$base/munge.key"
    munged --force --key-file="$base/munge.key" --socket="$base/run/munge.sock" --pid-file="$base/run/munged.pid" \
        --log-file="$base/log/munged.log" --seed-file="$base/run/munged.seed" --num-threads=2
    slurmctld -i -c -f "$SLURM_CONF"
    for name in n1 n2; do slurmd -N "$name" -f "$SLURM_CONF"; done
    for _ in $(seq 100); do
        if [ "$(sinfo -h -t idle -o %D 2>/dev/null)" = 2 ]; then exit 0; fi
        sleep 0.2
    done
    echo "the two nodes did not come up: see $base/log" >&2
    exit 1
}

"$1" "$@"
