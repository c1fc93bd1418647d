#!/bin/sh
# redis.sh [QEMU OPTION...]: becomes the QEMU of a guest that is a Redis server, at 10.0.7.2:6379 for this host.
#
# One vCPU and a PCI network card as a server's guest has it: virtio with vhost and MSI-X, so that a packet costs the guest
# one exit at most. The host's end is tap0, 10.0.7.1, brought up once QEMU has made it. QMP is at $RUN/redis.qmp, the
# console in $RUN/redis.log. RAM is the pool's first 192 MiB where there is a pool, so none of the pool's other guests
# can run beside it.
set -eu
: "${RUN:=/run}" "${POOL:=/dev/dax0.0}" "${ACCEL:=kvm}" "${CPU:=host}" "${GUEST:=/guest}" "${APPEND:=}" "${VHOST:=on}"
modprobe tun
if [ "$VHOST" = on ]; then modprobe vhost_net; fi
ram=memory-backend-memfd,id=ram,share=on,size=192M
if [ -c "$POOL" ]; then
    ram="memory-backend-file,id=ram,mem-path=$POOL,share=on,align=2M,size=192M,offset=0"
fi
(
    while [ ! -e /sys/class/net/tap0 ]; do sleep 0.1; done
    ip addr add 10.0.7.1/30 dev tap0
    ip link set tap0 up
) &
# As in guest.sh: no calibration, and nothing that costs an emulator hundreds of millions of instructions at boot.
exec qemu-system-x86_64 -accel "$ACCEL" -cpu "$CPU" -nodefaults -no-user-config -display none -no-reboot \
    -M microvm,pcie=on,pit=off,pic=off,rtc=off,isa-serial=on,memory-backend=ram -m 192M -smp 1 -object "$ram" \
    -netdev "tap,id=net0,ifname=tap0,script=no,downscript=no,vhost=$VHOST" \
    -device virtio-net-pci,netdev=net0,romfile= \
    -kernel "${KERNEL:-$GUEST/vmlinuz}" -initrd "$GUEST/redis" \
    -append "console=ttyS0 quiet reboot=t panic=-1 mitigations=off nokaslr init_on_alloc=0 no_timer_check idle=halt rodata=off initcall_blacklist=load_system_certificate_list,cmos_init $APPEND" \
    -chardev "file,id=console,path=$RUN/redis.log" -serial chardev:console \
    -qmp "unix:$RUN/redis.qmp,server=on,wait=off" "$@"
