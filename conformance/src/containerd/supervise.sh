# The first process of a PID namespace: starts containerd, and again whenever it is killed.
mount -t proc proc /proc
while true; do
  containerd -c /run/containerd.toml >>/run/containerd.log 2>&1 </dev/null &
  echo $! >/run/containerd.pid
  wait $!
  while test -e /run/containerd.hold; do sleep 0.01; done
done
