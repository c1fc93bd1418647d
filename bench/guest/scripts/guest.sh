#!/bin/sh
# guest.sh NAME [QEMU OPTION...]: becomes the QEMU of a guest; with `-incoming defer` it waits for the guest instead.
#
# Source and target are started with the same command line. QMP is at $RUN/NAME.qmp, the console in $RUN/NAME.log.
# The guests' places in the pool (bytes; each host has the same):
#   g1    0 -128 MiB  microvm, 1 vCPU, no devices: the smallest pause
#   g2  128 -320 MiB  q35, 2 vCPUs, virtio disk and net
#       320 -336 MiB  the disk of g2
#   g3    0 -384 MiB  q35, 2 vCPUs, virtio disk and net: Debian as it is, instead of the others (a pool of 512 MiB)
#   g4  128 -320 MiB  q35, 2 vCPUs, a network card on the segment: a Redis server (instead of g2)
#   mRAMcCPUSoOFFSET    like g1, of any size (MiB, vCPUs, MiB)
set -eu
name=$1
shift
: "${RUN:=/run}" "${POOL:=/dev/dax0.0}" "${ACCEL:=kvm}" "${CPU:=host}" "${GUEST:=/guest}" "${APPEND:=}"

# A guest that starts anew must not be mistaken for one whose beat page is still in the pool.
case "$name $* " in
*" -incoming "* | "g3 "* | "g4 "*) ;;
*) lab-guest forget --file "$POOL" --name "$name" ;;
esac

# Without TSC, timer and RTC calibration, and without what costs an emulator most.
# rodata=off leaves out the W+X check of the page tables (two hundred million instructions), the blacklist as many for RSA,
# and 40,000 exits to QEMU, half of all at boot: the RTC driver asks a second long for a clock that the machine does not have.
boot="console=ttyS0 quiet reboot=t panic=-1 mitigations=off nokaslr init_on_alloc=0 no_timer_check idle=halt rodata=off initcall_blacklist=load_system_certificate_list,cmos_init"
# RAM in the pool. QEMU is built without libdaxctl, so it must be told the alignment of device-DAX.
ram() {
    echo "memory-backend-file,id=ram,mem-path=$POOL,share=on,align=2M,size=$1,offset=$2"
}

# For whoever wants a short pause, by this file: devices that have less to save. QEMU saves 1,024 queues of each modern virtio device,
# and 256 buses of ACPI's hotplug, whatever there is.
virtio="" lean=""
if [ -e /etc/locum/lean ]; then
    virtio=",disable-modern=on,disable-legacy=off"
    lean="-global ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"
fi

case $name in
g1)
    set -- -M "${M:-microvm,pit=off,pic=off,rtc=off,isa-serial=on},suppress-vmdesc=on,memory-backend=ram" -m 128M -smp 1 \
        -object "$(ram 128M 0)" \
        -append "$boot lab.name=g1 lab.buffer_mib=32 lab.modules=0 $APPEND" "$@"
    ;;
m[0-9]*c[0-9]*o[0-9]*)
    ram=${name#m} cpus=${name#*c}
    set -- -M "${M:-microvm,pit=off,pic=off,rtc=off,isa-serial=on},suppress-vmdesc=on,memory-backend=ram" \
        -m "${ram%%c*}M" -smp "${cpus%%o*}" -object "$(ram "${ram%%c*}M" "${name#*o}M")" \
        -append "$boot lab.name=$name lab.buffer_mib=32 lab.duty=25 lab.modules=0 $APPEND" "$@"
    ;;
g2)
    # One process serves the disk and one the datagrams, for every QEMU of g2 on this host. For whoever wants requests to be under
    # way at any time, by this file: a disk that is so many milliseconds late, and a guest that asks for several blocks at once.
    late="" depth=""
    if [ -e /etc/locum/late ]; then
        late="--late $(cat /etc/locum/late)" depth="lab.disk_depth=4"
    fi
    [ -S "$RUN/g2.disk" ] || {
        lab-guest disk --file "$POOL" --offset 0x14000000 --length 0x1000000 --socket "$RUN/g2.disk" $late >"$RUN/g2.disk.log" 2>&1 &
        lab-guest echo >"$RUN/g2.echo.log" 2>&1 &
        while [ ! -S "$RUN/g2.disk" ]; do sleep 0.1; done
    }
    set -- -M "${M:-q35,vmport=off,smbus=off,sata=off,usb=off},suppress-vmdesc=on,memory-backend=ram" -m 192M -smp 2 \
        -object "$(ram 192M 128M)" \
        -blockdev "driver=nbd,node-name=disk0,server.type=unix,server.path=$RUN/g2.disk" \
        -device "virtio-blk-pci,drive=disk0$virtio" \
        -netdev user,id=net0 -device "virtio-net-pci,netdev=net0,romfile=$virtio" $lean \
        -append "$boot lab.name=g2 lab.buffer_mib=48 lab.duty=25 $depth $APPEND" "$@"
    ;;
g3)
    # Its own kernel and initramfs; all of q35; a network card that leads to its web server, from this host's port 8080. The
    # disk is storage on the network: /etc/locum/g3.disk says at which port of the lab, and goes along to a successor.
    # Its command line is that of Debian's own boot loader, with a console, and without mitigations, which cost the emulator most.
    KERNEL=$GUEST/stock/vmlinuz INITRD=$GUEST/stock/initrd
    set -- -M "${M:-q35},suppress-vmdesc=on,memory-backend=ram" -m 384M -smp 2 \
        -object "$(ram 384M 0)" \
        -blockdev "driver=nbd,node-name=disk0,server.type=inet,server.host=10.0.2.2,server.port=$(cat /etc/locum/g3.disk)" \
        -device virtio-blk-pci,drive=disk0 \
        -netdev user,id=net0,hostfwd=tcp:127.0.0.1:8080-:80 -device virtio-net-pci,netdev=net0,romfile= \
        -append "root=/dev/vda ro quiet mitigations=off console=ttyS0 $APPEND" "$@"
    ;;
g4)
    INITRD=$GUEST/redis
    set -- -M "${M:-q35,vmport=off,smbus=off,sata=off,usb=off},suppress-vmdesc=on,memory-backend=ram" -m 192M -smp 2 \
        -object "$(ram 192M 128M)" \
        -netdev "tap,id=net0,ifname=tap0,script=$GUEST/tap.sh,downscript=no" \
        -device virtio-net-pci,netdev=net0,romfile=,mac=52:54:00:00:09:02 \
        -append "$boot lab.address=10.0.9.2/24 $APPEND" "$@"
    ;;
*)
    echo "guest.sh: no guest $name; there are g1, g2, g3, g4 and mRAMcCPUSoOFFSET" >&2
    exit 1
    ;;
esac
# QEMU says what it does, for whoever wants to know: /etc/locum goes along to a successor.
if [ -e /etc/locum/trace ]; then
    set -- -msg timestamp=on -D "$RUN/$name.trace" -trace "$(cat /etc/locum/trace)" "$@"
fi
exec qemu-system-x86_64 -accel "$ACCEL" -cpu "$CPU" -nodefaults -no-user-config -display none -no-reboot \
    -kernel "${KERNEL:-$GUEST/vmlinuz}" -initrd "${INITRD:-$GUEST/initrd}" \
    -chardev "file,id=console,path=$RUN/$name.log" -serial chardev:console \
    -qmp "unix:$RUN/$name.qmp,server=on,wait=off" "$@"
