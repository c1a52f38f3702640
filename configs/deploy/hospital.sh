#!/bin/sh
# A hospital's role: a SuperNode that calls the server (outgoing only) and trains on the images of
# one folder. Its own port is bound to this machine alone. fedkd is installed in the environment of
# `flower-supernode`; nothing is installed at run time unless you allow it here.
set -eu
: "${SUPERLINK:?address of the server, host:port}"
: "${PARTITION:?number of this hospital, from 0}"
: "${DATA:?absolute path of the folder with this hospital's images}"
: "${CA:?ca.crt of the server}"
: "${KEY:?private key of this hospital, made here: ssh-keygen -t ecdsa -b 384 -N '' -f KEY}"
umask 077  # decoded images in FEDKD_CACHE, logs: readable by this account alone
export FLWR_TELEMETRY_ENABLED="${FLWR_TELEMETRY_ENABLED:-0}"
exec flower-supernode --superlink "$SUPERLINK" --root-certificates "$CA" \
    --auth-supernode-private-key "$KEY" --host 127.0.0.1 --port "${PORT:-9094}" \
    --node-config "partition-id=$PARTITION data-path=\"$DATA\""
