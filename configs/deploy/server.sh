#!/bin/sh
# The server's role: a SuperLink that hospitals and researchers reach on port 8000, by TLS, and that
# lets in no SuperNode whose public key is not registered. fedkd is installed in the environment of
# `flower-superlink`, in the same version as everywhere. Run it in a folder that is backed up: with
# a relative `output`, run directories are made below it.
set -eu
: "${CERTIFICATES:?folder with ca.crt, server.crt and server.key}"
export FLWR_TELEMETRY_ENABLED="${FLWR_TELEMETRY_ENABLED:-0}"
exec flower-superlink --host 0.0.0.0 --port "${PORT:-8000}" \
    --ssl-ca-certfile "$CERTIFICATES/ca.crt" \
    --ssl-certfile "$CERTIFICATES/server.crt" \
    --ssl-keyfile "$CERTIFICATES/server.key" \
    --enable-supernode-auth --disable-runtime-dependency-installation
