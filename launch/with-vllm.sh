#!/bin/bash
# A vLLM server on the last N GPUs of this node, and a command on the others; the server ends with the command.
#
#   launch/with-vllm.sh MODEL N COMMAND ...
#   launch/with-vllm.sh runs/sft 2 rlhf launch --gpus 6 -- ppo --config configs/ppo.yaml --engine vllm_server
#
# MODEL is the policy's start, as in --model_name_or_path: the trainers send their weights before each rollout.
# VLLM_LOG is where the server writes (vllm.log), SERVER_PORT where it listens (8000, PPO's default), SERVER_SECONDS how
# long it may take to be up (900: a large model is read from a shared disk). Exit code: the command's, 3 where the server
# ended first or was not up in time.
set -u

if [ "$#" -lt 3 ] || ! [ "$2" -ge 1 ] 2>/dev/null; then
  echo "usage: with-vllm.sh MODEL N COMMAND ...: N GPUs for vLLM, at least 1, the others for the command" >&2
  exit 2
fi
model=$1 count=$2
shift 2
port=${SERVER_PORT:-8000} log=${VLLM_LOG:-vllm.log} patience=${SERVER_SECONDS:-900}

# What SLURM or you allow this job, else all there are.
IFS=, read -r -a gpus <<<"${CUDA_VISIBLE_DEVICES:-$(nvidia-smi --query-gpu=index --format=csv,noheader | paste -sd,)}"
left=$((${#gpus[@]} - count))
if [ "$left" -lt 1 ]; then
  echo "with-vllm.sh: $count GPUs for vLLM leave none of ${#gpus[@]} for the command; lower N" >&2
  exit 2
fi
joined() { local IFS=,; echo "$*"; }

# rlhf/ppo/vllm_engine.py says why each: weights are sent over NCCL, the log-probabilities are those that were sampled from.
VLLM_SERVER_DEV_MODE=1 CUDA_VISIBLE_DEVICES=$(joined "${gpus[@]:left}") vllm serve "$model" \
  --tensor-parallel-size "$count" --port "$port" \
  --weight-transfer-config '{"backend": "nccl"}' --logprobs-mode processed_logprobs >"$log" 2>&1 &
server=$!
command=
finish() {
  trap '' TERM INT USR1
  if [ -n "$command" ]; then kill "$command" 2>/dev/null; fi
  kill "$server" 2>/dev/null
  wait
}
server_failed() {
  echo "with-vllm.sh: the vLLM server $1; its last lines, of $log:" >&2
  tail -n 15 "$log" >&2
  finish
  exit 3
}
trap 'finish; exit 143' TERM
trap 'finish; exit 130' INT

healthy() { python3 -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=2)' "$1" 2>/dev/null; }
until healthy "http://localhost:$port/health"; do
  kill -0 "$server" 2>/dev/null || server_failed "ended before it was up"
  [ "$SECONDS" -lt "$patience" ] || server_failed "was not up after $patience s"
  sleep 1
done

CUDA_VISIBLE_DEVICES=$(joined "${gpus[@]:0:left}") "$@" &
command=$!
# SLURM's word before a time limit: the ranks save a checkpoint and exit with 75.
trap 'kill -USR1 "$command" 2>/dev/null' USR1
while kill -0 "$command" 2>/dev/null; do
  kill -0 "$server" 2>/dev/null || server_failed "ended while the command ran, which is stopped"
  wait -n "$command" "$server"
done
wait "$command"
code=$?
finish
exit "$code"
