# The health check of one node; `rlhf launch` puts it into the job's script.
# shellcheck shell=bash
bad() { echo "$(hostname): $1" >&2; exit 1; }
gpus=@GPUS@
if [ "$gpus" -gt 0 ]; then
  there=$(nvidia-smi --list-gpus 2>/dev/null | wc -l)
  [ "$there" -ge "$gpus" ] || bad "$there of $gpus GPUs answer"
  # Uncorrected memory errors since the last reset: results cannot be trusted.
  errors=$(nvidia-smi --query-gpu=ecc.errors.uncorrected.volatile.total --format=csv,noheader 2>/dev/null | grep -Ec '^[1-9]')
  [ "$errors" -eq 0 ] || bad "$errors GPUs have uncorrected memory errors"
fi
# NCCL and data loaders share memory there, and fail in riddles without.
[ "$(df --output=avail -k /dev/shm | tail -n 1)" -gt 65536 ] || bad "/dev/shm has less than 64 MiB free"
# Libraries unpack and compile there.
[ "$(df --output=avail -k "${TMPDIR:-/tmp}" | tail -n 1)" -gt 1048576 ] || bad "${TMPDIR:-/tmp} has less than 1 GiB free"
touch @FOLDER@/logs/.node-"$(hostname)" 2>/dev/null || bad "cannot write to the launch folder; is the filesystem shared?"
rm -f @FOLDER@/logs/.node-"$(hostname)"
