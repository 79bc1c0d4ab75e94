#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Makes one cluster of the nodes, then what the bank needs in it. May run again: what is there stays.
set -eu
NODE=${NODE:-roach1}
HERE=$(dirname "$0")
TRIES=${TRIES:-120}

tried=0
# What a node says is shown when it is for the last time.
again() {
    tried=$((tried + 1))
    if [ "$tried" -ge "$TRIES" ]; then
        echo "$1" >&2
        exit 1
    fi
    sleep 1
}

until said=$(cockroach init --insecure --host="$NODE" 2>&1); do
    case $said in
    *"already been initialized"*) break ;;
    *) again "$said" ;;
    esac
done
until said=$(cockroach sql --insecure --host="$NODE" --execute="SELECT 1" 2>&1); do
    again "$said"
done
# The first statement that fails ends it.
cockroach sql --insecure --host="$NODE" --file="$HERE/init.sql"
echo "the cluster is ready"
