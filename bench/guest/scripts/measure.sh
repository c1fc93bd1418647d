#!/bin/sh
# measure.sh NAME [QEMU OPTION...]: becomes the QEMU of a guest that measures what its exits cost (lab_guest::measure).
#
# MEASURE says what, as in lab.measure=: with `console` (the default) the guest takes orders from its console, a socket at
# $RUN/NAME.serial (`lab-guest measure`); with a list such as `cpuid:1000,timer:50` it measures and ends. All that it says
# is in $RUN/NAME.log. A microvm, so that nothing but what is measured exits; RAM is anonymous, for a page that nobody has
# touched has to be one that the host has not given yet (the pool is given 2 MiB at a time).
set -eu
name=$1
shift
: "${RUN:=/run}" "${ACCEL:=kvm}" "${CPU:=host}" "${GUEST:=/guest}" "${APPEND:=}" "${MEASURE:=console}" "${CPUS:=1}"

# SeaBIOS starts the second CPU itself: with KVM in KVM on the emulated server both then spin on its lock for good. qboot
# leaves that to Linux.
[ "$CPUS" = 1 ] || set -- -bios qboot.rom "$@"
# As in guest.sh; memmap hides RAM for the EPT faults from the kernel, iomem=relaxed gives the IOAPIC to a program.
boot="console=ttyS0 quiet reboot=t panic=-1 mitigations=off nokaslr init_on_alloc=0 no_timer_check idle=halt rodata=off initcall_blacklist=load_system_certificate_list,cmos_init"
exec qemu-system-x86_64 -accel "$ACCEL,kernel-irqchip=on" -cpu "$CPU" -nodefaults -no-user-config -display none -no-reboot \
    -M microvm,pit=off,pic=off,rtc=off,isa-serial=on -m 160M -smp "$CPUS" \
    -kernel "${KERNEL:-$GUEST/vmlinuz}" -initrd "$GUEST/initrd" \
    -append "$boot memmap=32M\$112M iomem=relaxed lab.name=$name lab.modules=0 lab.measure=$MEASURE $APPEND" \
    -chardev "socket,id=console,path=$RUN/$name.serial,server=on,wait=off,logfile=$RUN/$name.log" -serial chardev:console \
    -qmp "unix:$RUN/$name.qmp,server=on,wait=off" "$@"
