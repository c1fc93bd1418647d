#!/bin/sh
# Runs the module's tests on a stock kernel in QEMU, without VMX, on fake L0s of the first and of a later release.
#
# usage: run.sh VMLINUZ LOCUM.KO BUSYBOX DIR [QEMU [ARGUMENT...]]
#
#   VMLINUZ, LOCUM.KO  a bzImage and the module built for it
#   BUSYBOX            a static one; it makes the initramfs here (cpio) and runs in the guest
#   DIR                for what is made: logs (nol0.log, first.log, later.log), programs, initramfs. Made if missing; use it for nothing else
#   QEMU ARGUMENT...   how to start qemu-system-x86_64, for instance through another tree's ld.so, and what it needs
#                      before all else, such as -L DIRECTORY for its firmware. Default: qemu-system-x86_64
#
#   CC                 a compiler for this machine with a static C library. Default: gcc
#   STALL              seconds without a new line on the console after which a guest counts as stuck. Default: 900
#
# Prints one line for each failure and, last, "N checks, N failed". Exit status: 0 if none failed, 1 if any did, 2 if the
# tests could not be made. No other time-out: a busy machine may take as long as it needs.
set -u
if [ $# -lt 4 ]; then
	sed -n 's/^# \(usage: .*\)/\1/p' "$0" >&2
	exit 2
fi
here=$(dirname "$0")
vmlinuz=$1 module=$2 busybox=$(readlink -f "$3") dir=$4
shift 4
[ $# -gt 0 ] || set -- qemu-system-x86_64
stall=${STALL:-900}
cc=${CC:-gcc}

give_up() {
	echo "$1" >&2
	exit 2
}

prepare() {
	rm -rf "$dir/root" &&
	mkdir -p "$dir/root/bin" "$dir/root/proc" "$dir/root/sys" "$dir/root/dev" &&
	$cc -O1 -Wall -Wextra -Werror -o "$dir/fake_l0" "$here/fake_l0.c" &&
	"$dir/fake_l0" "$dir/region.first" "$dir/locm.first" first &&
	"$dir/fake_l0" "$dir/region.later" "$dir/locm.later" later &&
	$cc -O1 -static -pthread -Wall -Wextra -Wno-sign-compare -Wno-pointer-arith -Werror -o "$dir/root/bin/check" \
		"$here/check.c" "$here/access.c" "$here/memory.c" "$here/sysfs.c" "$here/switch.c" "$here/cpus.c" \
		"$here/channels.c" "$here/nested.c" "$here/releases.c" &&
	cp "$busybox" "$dir/root/bin/busybox" &&
	ln -s busybox "$dir/root/bin/sh" &&
	cp "$module" "$dir/root/locum.ko" &&
	cat > "$dir/root/init" <<'INIT' &&
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
echo 8 > /proc/sys/kernel/printk
uname -r
if grep -q nol0 /proc/cmdline; then
	insmod /locum.ko && echo LOADED
else
	insmod /locum.ko && check fake; rmmod locum && insmod /locum.ko && echo RELOADED
	rmmod locum
	family=$(check family 2); insmod /locum.ko && echo FOREIGN; check family "$family"
	# Less than any L0's.
	size=$(check size 343); insmod /locum.ko && echo TRUNCATED
	check size "$size"; insmod /locum.ko
	mount -t securityfs securityfs /sys/kernel/security && echo integrity > /sys/kernel/security/lockdown
	(: < /dev/locum) 2> /dev/null && echo NOT LOCKED
fi
echo END
poweroff -f
INIT
	chmod +x "$dir/root/init" &&
	(cd "$dir/root" && "$busybox" find . | "$busybox" cpio -o -H newc > ../initrd 2> ../cpio.err)
}

# Runs QEMU with its console in the file $1 until it ends or says nothing for too long; the rest are its arguments.
boot() {
	log=$1
	shift
	: > "$log"
	"$@" < /dev/null > "$log.qemu" 2>&1 &
	qemu=$!
	size=0 quiet=0
	while kill -0 $qemu 2> /dev/null; do
		sleep 1
		now=$(wc -c < "$log")
		quiet=$((quiet + 1))
		[ "$now" = "$size" ] || quiet=0
		size=$now
		if [ $quiet -ge "$stall" ]; then
			echo "STUCK: nothing on the console for $stall s" >> "$log"
			kill -KILL $qemu
		fi
	done
	wait $qemu
	status=$?
	qemu=
	[ $status = 0 ] || { cat "$log.qemu"; echo "QEMU ended with status $status"; } >> "$log"
	# The serial console's lines end in CR LF.
	"$busybox" sed -i 's/\r$//' "$log"
}

# Counts a check of this script's own: $1 says what must hold, the rest is a command that succeeds if it does.
checks=0 failed=0
holds() {
	what=$1
	shift
	checks=$((checks + 1))
	"$@" && return
	failed=$((failed + 1))
	echo "FAILED: $what: $log"
}

says() { grep -q "$1" "$log"; }
silent() { ! grep -E "$1" "$log"; }

qemu=
trap '[ -z "$qemu" ] || kill -KILL $qemu' EXIT
trap 'exit 2' INT TERM HUP
prepare || give_up "run.sh cannot make its programs and initramfs (see above)"

# What is switched off is what locum.ko refuses, should this QEMU's "max" have it one day.
append="console=ttyS0 panic=-1 nokaslr movablecore=640M memmap=4M\$0x8000000 iomem=relaxed ibt=off nousershstk fred=off no5lvl clearcpuid=lass"
# Nor does the kernel judge by the clock how fast it gets on: lock-ups, stalls and hung tasks are a busy machine's.
append="$append nowatchdog rcupdate.rcu_cpu_stall_suppress=1 workqueue.watchdog_thresh=0 sysctl.kernel.hung_task_timeout_secs=0"
# What it complains of ends the guest at once, and is in the log.
append="$append panic_on_warn=1 oops=panic"
trouble='BUG:|WARNING:|Oops|Kernel panic|stack backtrace|Call Trace'

set -- "$@" -M q35 -cpu max,-la57 -accel tcg,thread=multi -smp 2 -m 1536 -nodefaults -display none -no-reboot \
	-kernel "$vmlinuz" -initrd "$dir/initrd"
boot "$dir/nol0.log" "$@" -serial "file:$dir/nol0.log" -append "$append nol0"
holds "the guest comes to its end" says '^END'
holds "without L0 the module says so" says 'L0 is not below this kernel'
holds "without L0 the module does not load" silent '^LOADED'
holds "the kernel has nothing to complain of" silent "$trouble"

# What the guest counted itself, as far as it came. A message of the kernel's may share the line.
add_inner() {
	inner=$(sed -n 's/^\([0-9]*\) checks, \([0-9]*\) failed.*/checks=$((checks + \1)) failed=$((failed + \2))/p' "$log" | tail -n 1)
	eval "$inner"
}

for release in first later; do
	boot "$dir/$release.log" "$@" -serial "file:$dir/$release.log" -append "$append" \
		-acpitable "sig=LOCM,rev=1,oem_id=LOCUM,data=$dir/locm.$release" \
		-device "loader,file=$dir/region.$release,addr=0x8000000,force-raw=on"
	grep '^FAILED' "$log"
	holds "the guest comes to its end" says '^END'
	holds "the checks come to their end" says '^[0-9]* checks, [0-9]* failed'
	holds "an L0 of another family is refused" silent '^FOREIGN'
	holds "it is told why" says 'L0 is of family 2, this module of family 1'
	holds "a header that is too short is refused" silent '^TRUNCATED'
	holds "what L0 does not know is told" says 'L0 is older than operation 0x4c4f434d00000000'
	holds "the module unloads and loads again" says '^RELOADED'
	holds "a kernel that is locked down" says 'Lockdown: .*mem.* is restricted'
	holds "shows nobody what is in memory" silent '^NOT LOCKED'
	holds "the kernel has nothing to complain of" silent "$trouble"
	add_inner
done

if [ $failed != 0 ]; then
	echo "the end of $log:"
	tail -n 30 "$log"
fi
echo "$checks checks, $failed failed"
[ $failed = 0 ]
