# supervise.sh NAME COMMAND...: runs as the first process of a PID namespace. Starts the container
# runtime NAME, and kubelet once kubelet.hold is removed, and restarts each of them when it is killed.
mount -t proc proc /proc
. /run/cgroups.sh
# kubelet reads the kernel log for processes killed for lack of memory. Hide the log: it also
# reports processes outside of the lab.
if test -e /dev/kmsg; then mount --bind /dev/null /dev/kmsg; else ln -s null /dev/kmsg; fi
for file in /run/sysctl/*; do
  mount --bind -o ro $file /proc/sys/$(basename $file | tr . /)
done
keep() { # name, command...
  name=$1; shift
  while true; do
    "$@" >>/run/$name.log 2>&1 </dev/null &
    echo $! >/run/$name.pid
    wait $!
    while test -e /run/$name.hold; do sleep 0.01; done
  done
}
(while test -e /run/kubelet.hold; do sleep 0.05; done
 keep kubelet /mnt/bin/kubelet --config=/run/kubelet.yaml $(cat /run/kubelet.flags)) &
keep "$@"
