# Prepares a node for containerd: the directories and files that containerd expects, on mounts of
# the node's own.
set -e
# Shared only inside the node, so that we and containerd's mount namespace see the same /run/netns.
mount --make-shared /run
mkdir -p /run/lock
mount -t tmpfs tmpfs /opt
mkdir -p /etc/cni/net.d /opt/cni/bin
rm -f /etc/cni/net.d/*
for plugin in loopback bridge host-local portmap; do ln -s /usr/lib/cni/$plugin /opt/cni/bin/; done
# kubelet requires these sysctl values and would set them for the whole machine. It reads these
# files instead.
mount -t tmpfs tmpfs /var/log
mkdir -p /run/sysctl /etc/kubernetes/manifests
for setting in vm.overcommit_memory=1 vm.panic_on_oom=0 kernel.panic=10 kernel.panic_on_oops=1 \
               kernel.keys.root_maxkeys=1000000 kernel.keys.root_maxbytes=25000000; do
  test -e /run/sysctl/${setting%=*} || echo ${setting#*=} >/run/sysctl/${setting%=*}
done
touch /run/kubelet.hold
# A root file system for `ctr run --rootfs` and for the image.
mkdir -p /run/rootfs/bin /run/rootfs/proc /run/rootfs/sys /run/rootfs/dev /run/rootfs/etc /run/rootfs/tmp
cp /bin/busybox /run/rootfs/bin/busybox
for applet in $(/bin/busybox --list); do
  test $applet = busybox || ln -s busybox /run/rootfs/bin/$applet
done
