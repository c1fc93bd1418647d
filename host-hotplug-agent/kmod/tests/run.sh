#!/bin/sh
# Runs the module's tests on a stock kernel in QEMU, without VMX, on a fake L0.
# usage: run.sh VMLINUZ LOCUM.KO BUSYBOX DIR    (BUSYBOX: a static one; needs qemu-system-x86, gcc, static libc, cpio)
set -eu
here=$(dirname "$0")
vmlinuz=$1 module=$2 busybox=$3 dir=$4
mkdir -p "$dir/root/bin" "$dir/root/proc" "$dir/root/sys" "$dir/root/dev"
cc=${CC:-gcc}
$cc -O1 -Wall -Wextra -Werror -o "$dir/fake_l0" "$here/fake_l0.c"
"$dir/fake_l0" "$dir/region" "$dir/locm"
$cc -O1 -static -pthread -Wall -Wextra -Wno-sign-compare -Wno-pointer-arith -Werror -o "$dir/root/bin/check" "$here/check.c" "$here/access.c" \
	"$here/memory.c" "$here/sysfs.c" "$here/switch.c" "$here/cpus.c" "$here/channels.c" "$here/nested.c"
cp "$busybox" "$dir/root/bin/busybox"
cp "$module" "$dir/root/locum.ko"
cat > "$dir/root/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
echo 8 > /proc/sys/kernel/printk
if grep -q nol0 /proc/cmdline; then
	insmod /locum.ko && echo LOADED
else
	insmod /locum.ko && check fake && rmmod locum && insmod /locum.ko && echo PASSED
fi
poweroff -f
INIT
chmod +x "$dir/root/init"
ln -sf busybox "$dir/root/bin/sh"
(cd "$dir/root" && find . | cpio -o -H newc --quiet | gzip -1 > ../initrd)
boot() {
	timeout 300 qemu-system-x86_64 -M q35 -cpu max,-la57 -accel tcg,thread=multi -smp 2 -m 1536 -display none -no-reboot -serial stdio \
		-kernel "$vmlinuz" -initrd "$dir/initrd" "$@" < /dev/null
}
append="console=ttyS0 panic=-1 quiet nokaslr movablecore=640M memmap=4M\$0x8000000 iomem=relaxed ibt=off"
boot -append "$append nol0" > "$dir/nol0.log" 2>&1
grep -q 'L0 is not below this kernel' "$dir/nol0.log" && ! grep -q LOADED "$dir/nol0.log" || {
	echo "without L0 the module did not say so: $dir/nol0.log"; exit 1; }
boot -append "$append" -acpitable "sig=LOCM,rev=1,oem_id=LOCUM,data=$dir/locm" \
	-device "loader,file=$dir/region,addr=0x8000000,force-raw=on" > "$dir/fake.log" 2>&1
grep -E 'FAILED|checks,|BUG|WARNING|Oops' "$dir/fake.log" || true
grep -q '^PASSED' "$dir/fake.log" && ! grep -qE 'BUG|WARNING|Oops' "$dir/fake.log"
