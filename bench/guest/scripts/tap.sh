#!/bin/sh
# tap.sh TAP: QEMU's script for a guest's end of a cable to the bridge of `image/segment`.
set -eu
brctl addif br0 "$1"
ip link set "$1" up
