#!/bin/sh
# Makes the pool one device-DAX, /dev/dax0.0, that QEMU and lab-guest map. May be run again.
#
# The pool is a Soft Reserved range, which Linux would turn into ordinary memory; with region_idle=1 it makes a device
# of size 0 instead and leaves the rest to us (drivers/dax/hmem/hmem.c, drivers/dax/bus.c).
set -eu
dax=/sys/bus/dax/devices/dax0.0

fail() {
    echo "pool-up: $1" >&2
    exit 1
}

modprobe dax_hmem region_idle=1
modprobe device_dax
[ -e $dax ] || fail "no dax0.0: /proc/iomem must show the pool as Soft Reserved, and dax_hmem must not be loaded already without region_idle=1"
if [ ! -e $dax/driver ]; then
    [ "$(cat $dax/size)" != 0 ] || cat $dax/../dax_region/available_size >$dax/size
    echo dax0.0 >/sys/bus/dax/drivers/device_dax/new_id
fi
[ -c /dev/dax0.0 ] || fail "no /dev/dax0.0: is devtmpfs mounted on /dev?"
echo "pool: $(cat $dax/size) bytes at $(cat $dax/resource), align $(cat $dax/align)"
