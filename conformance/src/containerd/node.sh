# A node gets what containerd wants to find, on folders of its own.
set -e
# Peers only in here: we and containerd's own mount namespace see the same /run/netns.
mount --make-shared /run
mkdir -p /run/lock /run/.etc/up /run/.etc/work
mount -t overlay overlay -o lowerdir=/etc,upperdir=/run/.etc/up,workdir=/run/.etc/work /etc 2>/dev/null ||
  { cp -a /etc/. /run/.etc/up/ && mount --bind /run/.etc/up /etc; }
mount -t tmpfs tmpfs /opt
mkdir -p /etc/cni/net.d /opt/cni/bin
rm -f /etc/cni/net.d/*
for plugin in loopback bridge host-local portmap; do ln -s /usr/lib/cni/$plugin /opt/cni/bin/; done
# As in a container or a chroot, cgroups may not be mounted.
if ! grep -q ' cgroup2\? ' /proc/self/mounts; then
  mount -t tmpfs tmpfs /sys/fs/cgroup
  for c in cpu cpuacct cpuset memory devices freezer blkio pids; do
    mkdir /sys/fs/cgroup/$c; mount -t cgroup -o $c $c /sys/fs/cgroup/$c || rmdir /sys/fs/cgroup/$c
  done
fi
# A root file system for `ctr run --rootfs`, and the one of the image.
mkdir -p /run/rootfs/bin /run/rootfs/proc /run/rootfs/sys /run/rootfs/dev /run/rootfs/etc /run/rootfs/tmp
cp /bin/busybox /run/rootfs/bin/busybox
for applet in $(/bin/busybox --list); do
  test $applet = busybox || ln -s busybox /run/rootfs/bin/$applet
done
