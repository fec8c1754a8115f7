#!/bin/busybox sh
# The first process of the virtual machine: mounts the files, and runs guest.sh in them.
/bin/busybox mkdir -p /proc /sys /dev /lower /rw /system /sbin
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc && mount -t sysfs sys /sys && mount -t devtmpfs dev /dev
for module in crc32c_generic virtio_pci 9pnet_virtio 9p overlay; do modprobe $module; done
mount -t 9p -o trans=virtio,version=9p2000.L,msize=1048576,cache=loose,ro files /lower
mount -t tmpfs rw /rw && mkdir /rw/upper /rw/work
mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work overlay /system
for place in proc sys dev; do mount --move /$place /system/$place; done
mkdir -p /system/run /system/tmp /system/dev/pts /system/dev/shm
for place in run tmp dev/shm; do mount -t tmpfs tmpfs /system/$place; done
mount -t cgroup2 cgroup /system/sys/fs/cgroup
# `folder` and `kernel` are from the kernel's command line.
mkdir -p /system/lib/modules && mount --bind "/system$folder/$kernel/lib/modules" /system/lib/modules
rm -f /system/sbin/modprobe && cp /bin/busybox /system/sbin/modprobe
exec switch_root /system /bin/sh "$folder/guest.sh" </dev/console >/dev/console 2>&1
