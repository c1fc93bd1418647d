#!/bin/sh
# virsh of a host where AppArmor confines libvirt's QEMUs, as this machine's kernel may not: the description of a domain that
# runs has a label then, and crosses with it unless another description is given.
label="<seclabel type='dynamic' model='apparmor' relabel='yes'><label>libvirt-guest</label></seclabel>"
case " $* " in
*" dumpxml "*)
    xml=$(/usr/bin/virsh "$@") || exit
    printf '%s\n' "${xml%</domain>*}$label</domain>"
    exit
    ;;
*" --xml "*) ;;
*" migrate "*)
    echo "error: unsupported configuration: Security driver model 'apparmor' is not available" >&2
    exit 1
    ;;
esac
exec /usr/bin/virsh "$@"
