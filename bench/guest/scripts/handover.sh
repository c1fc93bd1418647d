#!/bin/sh
# handover.sh NAME: hands a guest from its QEMU to a second one on the same host, by hand, and proves that it survived.
#
# This is what the agent does between two hosts, without the agent: RAM stays in the pool (x-ignore-shared), only the
# device state goes through a socket. Prints reports and the longest pauses as JSON.
set -eu
name=$1
: "${RUN:=/run}" "${POOL:=/dev/dax0.0}"
here=$(dirname "$0")
watch="lab-guest watch --file $POOL --name $name"
# QEMU removes its socket when it ends, so each has a path of its own, and NAME.qmp leads to the latest.
from=$(readlink -f "$RUN/$name.qmp")
to=$RUN/$name-$$
source="lab-guest qmp --socket $from"
target="lab-guest qmp --socket $to.qmp"
capabilities='migrate-set-capabilities {"capabilities":[{"capability":"x-ignore-shared","state":true}]}'
socket="{\"uri\":\"unix:$RUN/$name.migration\"}"

before=$RUN/$name.before.json
$watch --running --timeout 300 | tee "$before"
# In its own session: a hang-up of ours must not reach the guest.
TAG=-$$ setsid "$here/guest.sh" "$name" -incoming defer >"$to.qemu" 2>&1 </dev/null &
while [ ! -S "$to.qmp" ]; do sleep 0.2; done
$source "$capabilities"
$target "$capabilities" "migrate-incoming $socket"
$watch --gaps "${GAPS:-6}" >"$RUN/$name.gaps.json" &
gaps=$!
sleep 0.5
echo "migrate at tsc $(lab-guest watch --tsc)"
$source "migrate $socket"
until $target query-status | grep '"running":true'; do
    $source query-migrate | grep -q '"status":"failed"' && {
        echo "handover: QEMU refused; the guest goes on in the source" >&2
        cat "$to.qemu" >&2
        exit 1
    }
    sleep 0.1
done
wait $gaps
echo "longest pauses: $(cat "$RUN/$name.gaps.json")"
$source query-migrate quit
while [ -e "$from" ]; do sleep 0.1; done
ln -sf "$to.qmp" "$RUN/$name.qmp"
ln -sf "$to.log" "$RUN/$name.log"
$watch --survived "$before" --timeout 300
