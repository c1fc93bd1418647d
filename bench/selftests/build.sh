#!/bin/sh
# Builds Linux's own tests of KVM inside their Debian tree, linked statically: hosts have no libraries but QEMU's.
# /usr/lib/kvm-selftests has the programs afterwards, and nothing else.
set -eu
cd /usr/src
tar -xf linux-source-*.tar.xz --wildcards \
    '*/Makefile' '*/Kbuild' '*/Kconfig*' '*/scripts' '*/include' '*/arch/x86' '*/tools' '*/usr'
rm linux-source-*.tar.xz
cd linux-source-*/
make -s ARCH=x86 headers
cd tools/testing/selftests/kvm
# 512 times four CPUs that start and are killed take a quarter of an hour in the emulator; 16 times show the same.
find . -name hardware_disable_test.c -exec sed -i 's/^\(#define FORK_NUM\).*/\1 16/' {} +
out=/usr/src/out
mkdir "$out"
# It adds to what the environment has of LDFLAGS.
LDFLAGS=-static make -s -j "$(nproc)" ARCH=x86 OUTPUT="$out"
target=/usr/lib/kvm-selftests
mkdir "$target"
# Folders of architectures have other names in other versions; no two programs have one name.
find "$out" -type f -perm -u+x -exec strip {} + -exec mv -n -t "$target" {} +
rm -rf "$out" /usr/src/linux-source-*
