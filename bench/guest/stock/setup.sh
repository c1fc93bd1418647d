#!/bin/sh
# setup.sh TREE: what an operator sets in a freshly installed Debian, and nothing else. All else of `g3` is Debian's.
#
# A name, a root file system, DHCP, a web server with CGI; pages by which the lab sees from outside how the guest is.
set -eu
cd "$1"
echo g3 >etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 g3\n' >etc/hosts
echo '/dev/vda / ext4 defaults 0 1' >etc/fstab
printf '[Match]\nName=en*\n\n[Network]\nDHCP=yes\n' >etc/systemd/network/10-wired.network
chroot . systemctl enable systemd-networkd
chroot . lighty-enable-mod cgi
chroot . usermod --append --groups systemd-journal www-data
mkdir -p usr/lib/cgi-bin var/lib/visits
chown 33:33 var/lib/visits

page() {
    { printf '#!/bin/sh\nprintf "Content-Type: text/plain\\r\\n\\r\\n"\n' && cat; } >"usr/lib/cgi-bin/$1"
    chmod 755 "usr/lib/cgi-bin/$1"
}
# Leaves a line on the disk, past the page cache, and says which boot this is and how many lines the disk has.
page visit <<'END'
cd /var/lib/visits
read -r boot </proc/sys/kernel/random/boot_id
read -r up _ </proc/uptime
echo "$boot $up" | dd of=visits oflag=append conv=notrunc,fsync 2>/dev/null
echo "$boot $up $(dd if=visits iflag=direct bs=64K 2>/dev/null | grep -c "^$boot ")"
END
# The journal of this boot at a priority and above: /cgi-bin/journal?err
page journal <<'END'
case $QUERY_STRING in
*[!a-z]*) echo "no priority" ;;
*) journalctl --boot --output=cat --no-pager --priority="$QUERY_STRING" 2>&1 && echo "end of journal" ;;
esac
END
# Leaves an error in the journal, so that a test can show that it would be seen.
page complain <<'END'
echo "complaint asked for" | systemd-cat --identifier=complaint --priority=err && echo complained
END
# Reads a file of 256 pages and says what its checksum is; past the page cache: /cgi-bin/kept?direct
page kept <<'END'
case $QUERY_STRING in
direct) dd if=/var/lib/kept iflag=direct bs=64K 2>/dev/null ;;
*) cat /var/lib/kept ;;
esac | sha256sum
END
# Whoever serves the disk knows each by its first words.
for page in $(seq 256); do
    printf 'kept page %-4085d\n' "$page"
done >var/lib/kept
# As after a first boot: caches that Debian rebuilds then are up to date.
chroot . ldconfig
chroot . journalctl --update-catalog
chroot . /usr/lib/systemd/systemd-update-done
# The packages' scripts make none where INITRD=No, which the lab sets.
chroot . env -u INITRD update-initramfs -c -k all
