# First process of what stands for a host: namespaces of its own, and Debian's libvirt in them.
# $1: the Debian tree; $2: the host's directory; $3: its name; $4: a directory that it shares with other hosts.
set -e
tree=$1 dir=$2 name=$3 shared=$4
root=$dir/root
mkdir -p "$root" "$dir/memory" "$dir/log/qemu"
# /proc is still the machine's: by this number the lab finds its way in.
read -r pid rest </proc/self/stat
echo "$pid" >"$dir/pid"
echo "$name" >/proc/sys/kernel/hostname

# The tree stays as it is, and all that is written to it ends with the host.
mount -t tmpfs memory "$dir/memory"
mkdir "$dir/memory/upper" "$dir/memory/work"
mount -t overlay -o "lowerdir=$tree,upperdir=$dir/memory/upper,workdir=$dir/memory/work" root "$root"
mount -t tmpfs -o mode=755 run "$root/run"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount --bind "$dir/log" "$root/var/log/libvirt"
# Domains have consoles there.
mkdir -p "$root/dev/pts"
mount -t devpts -o ptmxmode=666 pts "$root/dev/pts"
ln -sf pts/ptmx "$root/dev/ptmx"
mkdir "$root/shared" "$root/run/libvirt" "$root/usr/lib/locum"
mount --bind "$shared" "$root/shared"
cp "$shared/qemu" "$shared/incoming.qmp" "$root/usr/lib/locum/"
# It is found before libvirt's own.
cp "$shared/virsh" "$root/usr/sbin/"

# A name that does not resolve costs a migration 40 seconds.
echo "127.0.0.1 localhost $name" >"$root/etc/hosts"
# The groups of processes and the devices are the machine's.
cat >>"$root/etc/libvirt/qemu.conf" <<END
cgroup_controllers = [ ]
namespaces = [ ]
security_driver = "none"
END
# libvirt does not send a guest to the host that it is on.
echo "host_uuid = \"$(cat /proc/sys/kernel/random/uuid)\"" >>"$root/etc/libvirt/libvirtd.conf"

chroot "$root" virtlogd --daemon
chroot "$root" libvirtd >"$dir/log/libvirtd.log" 2>&1 &
# A child, not a builtin: meanwhile the shell reaps what has lost its parent, and libvirt waits for QEMUs to be gone. When
# the lab lets go of the other end, or ends itself, the host ends, and with its first process all others.
cat
